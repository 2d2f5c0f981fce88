"""What is wrong with a machine and what to do about it, one line each."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from ichfast.doctor.machine import STOPPED, Machine

DRIVER_FLOORS = {12: (525, 60), 13: (580,)}
"""Oldest driver for each major version of CUDA.

Source:
    CUDA Compatibility, "Minor Version Compatibility"; DALI, "Installation".
"""

MIN_DISK_BYTES = 2 * 2**30
"""Free space that a run needs: while one checkpoint of the largest backbone replaces
another there are three, of 0.4 GB each."""

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Problem:
    """Something missing or wrong."""

    text: str
    """What it is, and what to do."""

    is_error: bool
    """Whether nothing can be trained here, or a GPU stays unused."""


def find_problems(machine: Machine) -> list[Problem]:
    """List what is wrong, errors first.

    A machine without a GPU is not wrong: everything runs on the CPU.
    """
    errors = (*_stage_errors(machine), *_driver_errors(machine), *_gpu_errors(machine))
    notes = (*_part_notes(machine), *_gpu_notes(machine), *_space_notes(machine))
    return [Problem(text, is_error=True) for text in errors] + [
        Problem(text, is_error=False) for text in notes
    ]


def next_command(machine: Machine) -> str:
    """The command to type next."""
    is_default = machine.store_path == "ichfast-store"
    option = "" if is_default else f" --store {shlex.quote(machine.store_path)}"
    if any(problem.is_error for problem in find_problems(machine)):
        return f"ichfast doctor{option}"
    if machine.store is None or machine.store.labelled == 0:
        return f"ichfast prepare DICOM... --labels stage_2_train.csv{option}"
    if machine.run is None:
        return f"ichfast train --arch xresnet50-attn --size 512{option}"
    return f"ichfast report {shlex.quote(machine.run)}"


def _install(machine: Machine) -> str:
    """Installs the packages that fit torch."""
    extra = "cuda12" if _major(machine.torch_cuda) == 12 else "cuda13"
    return f"pip install --upgrade 'ichfast[{extra}]'"


def _major(version: str | None) -> int:
    return int(version.partition(".")[0]) if version else 0


def _dali_builds(machine: Machine) -> dict[str, int]:
    """Installed packages of DALI, and the major version of their CUDA."""
    names = machine.versions("nvidia-dali-cuda")
    return {name: int(name.removeprefix("nvidia-dali-cuda")) // 10 for name in names}


def _stage_errors(machine: Machine) -> Iterator[str]:
    """The first error of a stage that every machine needs; it explains the others."""
    in_cuda = "CUDA" in machine.errors.get("torch", "")
    advice = {
        STOPPED: "restart the machine if this happens again; the driver may be broken",
        "decoders": "pip install --upgrade pydicom",
        "torch": "see nvidia-smi" if in_cuda else "pip install --upgrade torch timm",
        "DALI": _install(machine),
        "self-test": "do not use this device, and report what you see here",
    }
    for stage in advice:
        if stage in machine.errors:
            name = "" if stage == STOPPED else f"{stage}: "
            yield f"{name}{machine.errors[stage]}; {advice[stage]}"
            return


def _driver_errors(machine: Machine) -> Iterator[str]:
    if machine.driver is None or machine.hides_gpus:
        return
    if machine.torch_cuda is None and "torch" not in machine.errors:
        yield "torch is built without CUDA: install a CUDA build, see pytorch.org"
    found = tuple(map(int, machine.driver.split(".")))
    builds = {"torch": _major(machine.torch_cuda), **_dali_builds(machine)}
    for part, major in builds.items():
        floor = DRIVER_FLOORS.get(major, ())
        if found < floor:
            other = "" if major == 12 else ", or install builds for CUDA 12"
            yield (
                f"driver {machine.driver} is too old for {part} with CUDA {major}: "
                f"update it to {'.'.join(map(str, floor))} or newer{other}"
            )
    if machine.torch_cuda and not machine.gpus:
        reason = f" ({machine.gpu_warning})" if machine.gpu_warning else ""
        yield (
            f"torch sees no GPU{reason}: check nvidia-smi, CUDA_VISIBLE_DEVICES and "
            "(Docker) --gpus all"
        )


def _gpu_errors(machine: Machine) -> Iterator[str]:
    known = [arch for arch in machine.torch_archs if arch.startswith("sm_")]
    oldest = min((int(re.sub(r"\D", "", arch)) for arch in known), default=0)
    for gpu in machine.gpus:
        if int(gpu.capability.replace(".", "")) < oldest:
            yield (
                f"torch has no kernels for {gpu.name}, compute capability "
                f"{gpu.capability}: install its build for CUDA 12.6 and ichfast[cuda12]"
            )
    builds = _dali_builds(machine)
    if len(builds) > 1:
        yield (
            f"two builds of DALI overwrite each other: pip uninstall {' '.join(builds)}"
            f"; {_install(machine)}"
        )


def _gpu_notes(machine: Machine) -> Iterator[str]:
    """What matters only with a GPU."""
    if not machine.gpus:
        return
    if "CuPy" in machine.errors:
        yield (
            f"CuPy: {machine.errors['CuPy']}; so torch gathers the slices of --cache "
            f"device; {_install(machine)}"
        )
    builds = _dali_builds(machine)
    for name, major in builds.items():
        if len(builds) == 1 and major != _major(machine.torch_cuda):
            yield (
                f"{name} is for CUDA {major}, torch for {machine.torch_cuda}; if the "
                f"self-test fails: pip uninstall {name}; {_install(machine)}"
            )


def _part_notes(machine: Machine) -> Iterator[str]:
    for package in machine.outdated:
        yield f"{package} is installed: {_install(machine)}"
    if machine.apex == "other":
        yield "apex is another project of that name, not used: pip uninstall apex"
    if machine.apex == "broken":
        yield "NVIDIA apex does not load, so it is not used: build it for this torch"
    if machine.missing_decoders:
        yield (
            f"no decoder for {len(machine.missing_decoders)} transfer syntaxes, whose "
            "files are rejected: pip install 'ichfast[decoders]'"
        )
    if machine.packed_by == "NumPy":
        yield (
            "the C library is missing, so slices are unpacked many times slower, and "
            "halved several times: install gcc, then ichfast again"
        )
    if machine.cpp_compiler is None:
        yield "no C++ compiler, so train.compile has no effect: install g++"


def _space_notes(machine: Machine) -> Iterator[str]:
    if machine.disk_bytes < MIN_DISK_BYTES:
        yield (
            f"{machine.disk_bytes / GIB:.1f} GiB free on the disk, a run needs "
            f"{MIN_DISK_BYTES / GIB:.0f} GiB for checkpoints: delete something"
        )
    if "store" in machine.errors:
        yield machine.errors["store"]
    store = machine.store
    if store is None:
        return
    if store.labelled == 0:
        yield (
            f"{machine.store_path} has no labels: add them with "
            "`ichfast prepare SOURCE... --append --labels CSV`"
        )
    level, num_bytes = min(store.level_bytes.items(), key=lambda each: each[1])
    if num_bytes > store.spare_bytes:
        yield (
            f"level {level} takes {num_bytes / GIB:.1f} GiB, host memory can spare "
            f"{store.spare_bytes / GIB:.1f}: leave out --cache host"
        )
