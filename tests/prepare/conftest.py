"""A disk that can be full, for tests by root."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system in memory."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "ichfast-test", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, timeout=10)
    except OSError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip("this user may not mount a tmpfs")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True, timeout=10)


def remount(disk: Path, option: str) -> None:
    """Change an option of a mounted disk, such as ``size=64k`` or ``ro``."""
    options = f"remount,{option}"
    subprocess.run(["mount", "-o", options, str(disk)], check=True, timeout=10)
