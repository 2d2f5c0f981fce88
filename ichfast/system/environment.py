"""The environment of a run or a benchmark: versions, hardware and commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

PACKAGES = (
    "ichfast",
    "numpy",
    "pandas",
    "pyarrow",
    "pydicom",
    "torch",
    "torchvision",
    "timm",
    "scikit-learn",
    "albumentations",
    "monai",
    "nvidia-dali-cuda120",
    "nvidia-dali-cuda130",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "triton",
)


def describe_environment() -> dict[str, Any]:
    """Collect what `describe_host` does, and the GPUs, which starts CUDA.

    Returns:
        Plain values for JSON, which identify neither the machine nor its user.
    """
    return {**describe_host(), "gpus": _gpus()}


def describe_host() -> dict[str, Any]:
    """Collect versions, processor, cores and commit.

    Returns:
        Plain values for JSON, which identify neither the machine nor its user.
    """
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": {name: _version(name) for name in PACKAGES if _version(name)},
        "commit": _commit(),
    }


USED_EXTRAS = ("cuda12", "cuda13", "decoders", "nifti")
"""Extras whose packages ichfast uses where they are installed."""


def outdated_packages() -> list[str]:
    """Installed packages that ichfast or one of `USED_EXTRAS` does not take.

    Returns:
        A name, the version found and the versions taken, for each package.
    """
    found = []
    try:
        texts = requires("ichfast") or ()
    except PackageNotFoundError:  # a checkout that is not installed
        texts = ()
    for requirement in map(Requirement, texts):
        marker, installed = requirement.marker, _version(requirement.name)
        is_used = marker is None or any(
            marker.evaluate({"extra": extra}) for extra in USED_EXTRAS
        )
        if (
            is_used
            and installed
            and not requirement.specifier.contains(installed, prereleases=True)
        ):
            found.append(
                f"{requirement.name} {installed} (not {requirement.specifier})"
            )
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return models[0] if models else platform.machine()


def driver_version(root: Path = Path("/")) -> str | None:
    """The version of NVIDIA's kernel driver, such as ``580.65.06``; None without one.

    Source:
        NVIDIA driver README, "The /proc file system interface".
    """
    try:
        text = (root / "proc/driver/nvidia/version").read_text("utf-8")
    except OSError:
        return None
    found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", text)
    return found[1] if found else None


def _gpus() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return []
    return [
        torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
    ]


def _commit() -> str | None:
    """The commit of this checkout; None for an installed package."""
    folder = str(Path(__file__).parent)
    command = ["git", "-C", folder, "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
