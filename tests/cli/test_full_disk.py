"""A full disk or a read-only folder is one line, and changes no file.

The line names the file and the system's reason. Disks are a small file system in memory
and a read-only mount, which need root; a limit of the size of files stands in for a
full disk anywhere.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import COMMANDS, Place
from tests.cli.forked import Outcome
from tests.conftest import contents

OLDER = b"older"
"""What a file holds before the command."""

ONE_FORM = [name for name in COMMANDS if name not in ("p.csv", "p.npz")]
"""The files of `COMMANDS` with predictions in one form only."""


@contextmanager
def mounted(path: Path, *commands: tuple[str, ...]) -> Iterator[None]:
    """Mount something at a folder with one or more commands, or skip the test."""
    try:
        for command in commands:
            done = subprocess.run([*command, str(path)], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"needs root to mount: {done.stderr.strip()}")
        yield
    finally:
        subprocess.run(["umount", str(path)], capture_output=True)


def fill(path: Path) -> None:
    """Leave no space on the disk of a file, which is made."""
    full = pytest.raises(OSError, match="No space left on device")
    with path.open("wb", buffering=0) as file, full:
        while True:
            file.write(bytes(4096))


def check_refused(
    place: Place,
    name: str,
    outcome: Outcome,
    reason: str,
    before: dict[str, bytes],
) -> None:
    """Check the message, and that no file was changed; parts of a journal may stay."""
    journal = f".{name}.work"
    assert outcome.status == 1, outcome.output
    assert outcome.error.startswith(
        (
            f"Error: cannot write out/{name}: {reason}; ",
            f"Error: cannot write out/{journal}: {reason}; ",
        )
    )
    assert "Traceback" not in outcome.output
    assert before[name] == OLDER
    found = contents(place.out)
    assert before == {
        name: content
        for name, content in found.items()
        if not name.startswith(f"{journal}/")
    }
    assert list(place.temporary.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "dicom.csv"])
def test_a_file_that_is_too_large_is_one_line(name: str, place: Place) -> None:
    (place.out / name).write_bytes(OLDER)
    before = contents(place.out)
    outcome = place.server.run(place.path, *COMMANDS[name], max_bytes=2000)
    check_refused(place, name, outcome, "File too large", before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_FORM)
def test_a_full_disk_is_one_line(name: str, place: Place) -> None:
    right = (place.out / "right.csv").read_bytes()
    with mounted(place.out, ("mount", "-t", "tmpfs", "-o", "size=1m", "none")):
        (place.out / name).write_bytes(OLDER)
        (place.out / "right.csv").write_bytes(right)
        fill(place.out / "filler")
        before = contents(place.out)
        outcome = place.server.run(place.path, *COMMANDS[name])
        check_refused(place, name, outcome, "No space left on device", before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_FORM)
def test_a_read_only_disk_is_one_line(name: str, place: Place) -> None:
    (place.out / name).write_bytes(OLDER)
    before = contents(place.out)
    bind = ("mount", "--bind", str(place.out))
    with mounted(place.out, bind, ("mount", "-o", "remount,ro,bind")):
        outcome = place.server.run(place.path, *COMMANDS[name])
    predicts = COMMANDS[name][0] == "predict"
    reason = "its folder is read-only" if predicts else "Read-only file system"
    check_refused(place, name, outcome, reason, before)


@pytest.mark.slow
def test_a_temporary_store_that_cannot_be_written_is_one_line(place: Place) -> None:
    before = contents(place.out)
    outcome = place.server.run(place.path, *COMMANDS["dicom.csv"], max_bytes=2000)
    assert outcome.status == 1, outcome.output
    assert outcome.error == (
        f"Error: {place.temporary} cannot hold the slices (File too large), 0.7 MB "
        "each; make room, or set TMPDIR to another folder"
    )
    assert contents(place.out) == before
    assert list(place.temporary.iterdir()) == []
