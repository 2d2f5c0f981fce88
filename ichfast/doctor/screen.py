"""The screen that `ichfast doctor` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import wrap

from ichfast.doctor.checks import GIB, Problem, next_command
from ichfast.doctor.machine import Machine

WIDTH = 79
"""Columns of the screen."""

_APEX = {
    "nvidia": "NVIDIA's",
    "broken": "NVIDIA's, does not load",
    "other": "another project of that name",
    "none": "not installed; optimizers of torch and timm run",
}


def format_machine(machine: Machine, problems: Sequence[Problem]) -> str:
    """Write a machine and its problems as text.

    Args:
        machine: what was found.
        problems: from `find_problems`.
    """
    has_error = any(problem.is_error for problem in problems)
    offers_demo = machine.store is None and not has_error
    rows = [
        *_machine_rows(machine),
        *_package_rows(machine),
        *_store_rows(machine),
        *(("ERROR" if each.is_error else "note", each.text) for each in problems),
        ("next", next_command(machine)),
        *((("or", "ichfast demo"),) if offers_demo else ()),
    ]
    return "\n".join(
        line
        for name, text in rows
        for line in wrap(
            f"{name:<13}{text}",
            WIDTH,
            subsequent_indent=" " * 13,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def _machine_rows(machine: Machine) -> Iterator[tuple[str, str]]:
    host = machine.host
    version = host["versions"].get("ichfast", "not installed")
    yield "ichfast", f"{version}, Python {host['python']}"
    yield "processor", f"{host['cores']} cores of {host['processor']}"
    available, total = machine.available_bytes / GIB, machine.memory_bytes / GIB
    yield "memory", f"{available:.1f} of {total:.1f} GiB available"
    yield "disk", f"{machine.disk_bytes / GIB:.1f} GiB free in this folder"
    yield "driver", machine.driver or "none found"
    for number, gpu in enumerate(machine.gpus):
        memory = f"{gpu.memory_bytes / GIB:.0f} GiB"
        capability = f"compute capability {gpu.capability}"
        yield f"GPU {number}", f"{gpu.name}, {memory}, {capability}"
    if not machine.gpus:
        why = "hidden by CUDA_VISIBLE_DEVICES" if machine.hides_gpus else "none"
        yield "GPU", f"{why}; everything runs on the CPU, only slower"


def _package_rows(machine: Machine) -> Iterator[tuple[str, str]]:
    cuda = f"CUDA {machine.torch_cuda}" if machine.torch_cuda else "no CUDA"
    nvrtc = f", NVRTC {machine.nvrtc}" if machine.nvrtc else ""
    added = {"torch": f", {cuda}", "DALI": "", "CuPy": nvrtc}
    for stage, prefix in (
        ("torch", "torch"),
        ("DALI", "nvidia-dali"),
        ("CuPy", "cupy"),
    ):
        found = machine.versions(prefix)
        found.pop("torchvision", None)
        texts = (v if k == prefix else f"{v} ({k})" for k, v in found.items())
        sees = ", sees the GPU" if machine.gpus else ""
        end = ", does not work" if stage in machine.errors else added[stage] + sees
        yield stage, ", ".join(texts) + end if found else "not installed"
    yield "apex", _APEX[machine.apex]
    missing = len(machine.missing_decoders)
    lacking = f"none for {missing} transfer syntaxes"
    yield "decoders", lacking if missing else "for every transfer syntax"
    slow = ", many times slower" if machine.packed_by == "NumPy" else ""
    yield "packing", f"by {machine.packed_by}{slow}"
    triton = machine.versions("triton").get("triton")
    compilers = machine.cpp_compiler, f"Triton {triton}" if triton else None
    yield "compilers", ", ".join(filter(None, compilers)) or "none"


def _store_rows(machine: Machine) -> Iterator[tuple[str, str]]:
    store = machine.store
    if store is None:
        yield "store", f"none in {machine.store_path}"
    else:
        sizes = (f"level {k}: {v / GIB:.1f} GiB" for k, v in store.level_bytes.items())
        labelled = f"{store.slices:,} slices, {store.labelled:,} labelled"
        form = "packed: " if store.is_packed else ""
        yield "store", f"{machine.store_path}: {labelled}; {form}{', '.join(sizes)}"
        spare = {"host": store.spare_bytes}
        if machine.gpus:
            spare["device"] = min(gpu.spare_bytes for gpu in machine.gpus)
        for place, num_bytes in spare.items():
            fits = [k for k, v in store.level_bytes.items() if v <= num_bytes]
            levels = f"keeps level {' or '.join(fits)}" if fits else "is too small"
            yield f"cache {place}", f"{levels}: {num_bytes / GIB:.1f} GiB to spare"
    device = {"cuda": "GPU", "cpu": "CPU", None: ""}[machine.tested_on]
    passed = f"passed on the {device} in {machine.test_seconds:.1f} s: batches equal"
    failed = "failed" if "self-test" in machine.errors else "did not run"
    yield "self-test", f"{passed} the NumPy reference" if device else failed
