"""The files of this checkout, as another place would get them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def tracked_files() -> list[str]:
    """The names of the tracked files that are there; skips the test without git."""
    git = ["git", "-C", str(ROOT), "ls-files", "-z"]
    listed = subprocess.run(git, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs a git checkout: it copies the tracked files")
    return [name for name in listed.stdout.split("\0")[:-1] if (ROOT / name).exists()]


def copy_tracked_files(folder: Path) -> None:
    """Copy the tracked files to a folder, which is made."""
    for name in tracked_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
