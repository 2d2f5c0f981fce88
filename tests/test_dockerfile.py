"""What the Dockerfile says about its base image fits the package's extras."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def test_the_base_image_has_a_dali_that_the_extra_takes() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    (tag,) = re.findall(
        r"^ARG BASE=nvcr\.io/nvidia/pytorch:(.*)-py3$", dockerfile, re.M
    )
    about = dockerfile.replace("\n#", "").split("FROM")[0]
    (version,) = re.findall(rf"{tag} has [^;]*nvidia-dali-cuda130 ([\d.]+)", about)
    setup = (ROOT / "setup.py").read_text("utf-8")
    (text,) = re.findall(r'"(nvidia-dali-cuda130[^"]*)"', setup)
    assert Requirement(text).specifier.contains(version)
