"""A disk that can be full, and sources that are listed once."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ichfast.errors import IchfastError
from ichfast.prepare import prepare
from ichfast.sources.listing import Listing


@pytest.fixture
def listed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not list sources again, each time in a process, in hundreds of runs."""
    listing, found = prepare._list, dict[str, Listing | IchfastError]()

    def list_once(sources: Sequence[Path | str], without: Sequence[Path]) -> Listing:
        key = f"{list(map(str, sources))} {list(map(str, without))}"
        if key not in found:
            try:
                found[key] = listing(sources, without)
            except IchfastError as error:
                found[key] = error
        outcome = found[key]
        if isinstance(outcome, IchfastError):
            raise outcome
        return outcome

    monkeypatch.setattr(prepare, "_list", list_once)


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
