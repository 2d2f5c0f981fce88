"""Each thing that can be wrong with a machine is a line that says what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ichfast.doctor.checks import find_problems, next_command
from ichfast.doctor.machine import STOPPED
from tests.doctor.machines import (
    GIB,
    H200,
    HOST,
    LAPTOP,
    SERVER,
    STORE,
    with_packages,
)


@pytest.mark.parametrize("machine", [SERVER, LAPTOP])
def test_a_machine_with_and_one_without_a_gpu_can_be_in_order(machine: Any) -> None:
    assert find_problems(machine) == []


PACKAGES_12 = with_packages(
    without=("nvidia-dali-cuda130",), nvidia_dali_cuda120="2.4.0"
)
WITHOUT_DALI = with_packages(without=("nvidia-dali-cuda130",))
CUDA_12 = {"torch_cuda": "12.6", "host": PACKAGES_12}

ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "torch is missing": (
        {"errors": {"torch": "No module named 'torch'", "DALI": "the same"}},
        "torch: No module named 'torch'; pip install --upgrade torch timm",
    ),
    "another program has the GPU": (
        {"errors": {"torch": "CUDA error: all CUDA-capable devices are busy"}},
        "torch: CUDA error: all CUDA-capable devices are busy; see nvidia-smi",
    ),
    "DALI is missing": (
        {"errors": {"DALI": "No module named 'nvidia'"}},
        "DALI: No module named 'nvidia'; pip install --upgrade 'ichfast[cuda13]'",
    ),
    "DALI is missing beside torch for CUDA 12": (
        {**CUDA_12, "errors": {"DALI": "No module named 'nvidia'"}},
        "DALI: No module named 'nvidia'; pip install --upgrade 'ichfast[cuda12]'",
    ),
    "DALI does not see the device": (
        {"errors": {"DALI": "CUDA driver is a stub library"}},
        "DALI: CUDA driver is a stub library; pip install --upgrade 'ichfast[cuda13]'",
    ),
    "pydicom does not load": (
        {"errors": {"decoders": "No module named 'pydicom'"}},
        "decoders: No module named 'pydicom'; pip install --upgrade pydicom",
    ),
    "the driver hangs": (
        {"errors": {STOPPED: "DALI gives no answer within 60 s"}},
        (
            "DALI gives no answer within 60 s; restart the machine if this happens "
            "again; the driver may be broken"
        ),
    ),
    "the graph is wrong": (
        {"errors": {"self-test": "9 of 15,552 values of slice 0 differ"}},
        (
            "self-test: 9 of 15,552 values of slice 0 differ; do not use this "
            "device, and report what you see here"
        ),
    ),
    "torch has no CUDA": (
        {"torch_cuda": None, "gpus": ()},
        "torch is built without CUDA: install a CUDA build, see pytorch.org",
    ),
    "the driver is too old for CUDA 13": (
        {"driver": "575.57.08", "host": WITHOUT_DALI},
        (
            "driver 575.57.08 is too old for torch with CUDA 13: update it to 580 "
            "or newer, or install builds for CUDA 12"
        ),
    ),
    "the driver is too old for DALI only": (
        {"driver": "550.54", "torch_cuda": "12.6"},
        (
            "driver 550.54 is too old for nvidia-dali-cuda130 with CUDA 13: update "
            "it to 580 or newer, or install builds for CUDA 12"
        ),
    ),
    "the driver is too old for CUDA 12": (
        {"torch_cuda": "12.6", "driver": "470.256.02", "host": WITHOUT_DALI},
        (
            "driver 470.256.02 is too old for torch with CUDA 12: update it to "
            "525.60 or newer"
        ),
    ),
    "torch sees no GPU": (
        {"gpus": ()},
        (
            "torch sees no GPU: check nvidia-smi, CUDA_VISIBLE_DEVICES and (Docker)"
            " --gpus all"
        ),
    ),
    "torch says why it sees no GPU": (
        {"gpus": (), "gpu_warning": "CUDA unknown error"},
        (
            "torch sees no GPU (CUDA unknown error): check nvidia-smi, "
            "CUDA_VISIBLE_DEVICES and (Docker) --gpus all"
        ),
    ),
    "the GPU is too old for torch": (
        {"gpus": (replace(H200, name="Tesla V100", capability="7.0"),)},
        (
            "torch has no kernels for Tesla V100, compute capability 7.0: install "
            "its build for CUDA 12.6 and ichfast[cuda12]"
        ),
    ),
    "two builds of DALI": (
        {"host": with_packages(nvidia_dali_cuda120="2.4.0")},
        (
            "two builds of DALI overwrite each other: pip uninstall "
            "nvidia-dali-cuda130 nvidia-dali-cuda120; pip install --upgrade "
            "'ichfast[cuda13]'"
        ),
    ),
}

NOTES: dict[str, tuple[dict[str, Any], str]] = {
    "CuPy finds no compiler": (
        {"errors": {"CuPy": "CuPy failed to load libnvrtc.so.13"}},
        (
            "CuPy: CuPy failed to load libnvrtc.so.13; so torch gathers the slices "
            "of --cache device; pip install --upgrade 'ichfast[cuda13]'"
        ),
    ),
    "DALI is for another CUDA than torch": (
        {"host": PACKAGES_12},
        (
            "nvidia-dali-cuda120 is for CUDA 12, torch for 13.0; if the self-test "
            "fails: pip uninstall nvidia-dali-cuda120; pip install --upgrade "
            "'ichfast[cuda13]'"
        ),
    ),
    "an old package": (
        {"outdated": ("nvidia-dali-cuda130 1.51.2 (not >=2.0)",)},
        (
            "nvidia-dali-cuda130 1.51.2 (not >=2.0) is installed: pip install "
            "--upgrade 'ichfast[cuda13]'"
        ),
    ),
    "PyPI's apex": (
        {"apex": "other"},
        "apex is another project of that name, not used: pip uninstall apex",
    ),
    "an apex for another torch": (
        {"apex": "broken"},
        "NVIDIA apex does not load, so it is not used: build it for this torch",
    ),
    "no decoder": (
        {"missing_decoders": ("JPEG 2000 Image Compression", "JPEG-LS Lossless")},
        (
            "no decoder for 2 transfer syntaxes, whose files are rejected: pip "
            "install 'ichfast[decoders]'"
        ),
    ),
    "no C library": (
        {"packed_by": "NumPy"},
        (
            "the C library is missing, so slices are unpacked many times slower, and "
            "halved several times: install gcc, then ichfast again"
        ),
    ),
    "no compiler": (
        {"cpp_compiler": None},
        "no C++ compiler, so train.compile has no effect: install g++",
    ),
    "a full disk": (
        {"disk_bytes": GIB},
        "1.0 GiB free on the disk, a run needs 2 GiB for checkpoints: delete something",
    ),
    "too little memory": (
        {"store": replace(STORE, spare_bytes=20 * GIB)},
        "level 256 takes 92.0 GiB, host memory can spare 20.0: leave out --cache host",
    ),
    "a store without labels": (
        {"store": replace(STORE, labelled=0)},
        (
            "ichfast-store has no labels: add them with `ichfast "
            "prepare SOURCE... --append --labels CSV`"
        ),
    ),
    "a damaged store": (
        {"store": None, "errors": {"store": "ichfast-store/store.json is damaged"}},
        "ichfast-store/store.json is damaged",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_a_line_that_says_what_to_do(case: str) -> None:
    changes, line = ERRORS[case]
    problems = find_problems(replace(SERVER, **changes))
    assert [problem.text for problem in problems if problem.is_error] == [line]


@pytest.mark.parametrize("case", NOTES)
def test_a_note_is_a_line_that_says_what_to_do(case: str) -> None:
    changes, line = NOTES[case]
    (problem,) = find_problems(replace(SERVER, **changes))
    assert (problem.text, problem.is_error) == (line, False)


def test_without_a_gpu_what_only_a_gpu_needs_is_not_missed() -> None:
    errors = {"CuPy": "No module named 'cupy'"}
    host = {**HOST, "versions": {"ichfast": "0.1.0", "nvidia-dali-cuda120": "2.4.0"}}
    assert find_problems(replace(LAPTOP, host=host, errors=errors)) == []


def test_gpus_that_are_hidden_on_purpose_are_not_missed() -> None:
    hidden = replace(SERVER, gpus=(), hides_gpus=True, driver="470.256.02")
    assert find_problems(hidden) == []


def test_errors_come_first() -> None:
    problems = find_problems(replace(SERVER, apex="other", gpus=()))
    assert [problem.is_error for problem in problems] == [True, False]


def test_the_next_command_fits_what_is_there() -> None:
    prepare = "ichfast prepare DICOM... --labels stage_2_train.csv"
    train = "ichfast train --arch xresnet50-attn --size 512"
    bare = replace(SERVER, store=None)
    assert next_command(bare) == prepare
    assert next_command(replace(bare, store_path="a b")) == f"{prepare} --store 'a b'"
    assert next_command(replace(SERVER, store=replace(STORE, labelled=0))) == prepare
    assert next_command(SERVER) == train
    assert next_command(replace(SERVER, store_path="s")) == f"{train} --store s"
    assert next_command(replace(SERVER, run="runs/r")) == "ichfast report runs/r"
    assert next_command(replace(SERVER, gpus=())) == "ichfast doctor"
