"""Checkpoints: damaged, truncated, hostile, and on a full disk."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from ichfast.errors import CheckpointError
from ichfast.training.checkpoint import (
    LAST,
    PREVIOUS,
    has_last,
    load_checkpoint,
    load_last,
    save_checkpoint,
    save_last,
)
from ichfast.training.history import COLUMNS


def content(epoch: int) -> dict[str, Any]:
    row = dict.fromkeys(COLUMNS, 0.5)
    return {
        "model": {"weights": torch.arange(50_000)},
        "settings": "",
        "patients": "",
        "trained": None,
        "optimizer": {},
        "scaler": {},
        "rng": [],
        "losses": [],
        "epoch": epoch,
        "iteration": 0,
        "history": [row] * epoch,
    }


@contextmanager
def files_no_larger_than(num_bytes: int) -> Iterator[None]:
    """A disk on which a larger file cannot be finished."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_missing_damaged_or_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(path)
    save_checkpoint(path, content(1))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)
    torch.save({"epoch": 1}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint that ichfast wrote"):
        load_checkpoint(path)
    torch.save({"format": 99}, path)
    with pytest.raises(CheckpointError, match="format 99, this ichfast reads 3"):
        load_checkpoint(path)


class Hostile:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_a_hostile_checkpoint_runs_nothing(tmp_path: Path) -> None:
    torch.save(
        {"format": 3, "model": Hostile(tmp_path / "owned")}, tmp_path / "last.pt"
    )
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        load_checkpoint(tmp_path / "last.pt")
    assert not (tmp_path / "owned").exists()


def test_a_single_wrong_bit_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, content(1))
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"the checksum of .* in it is wrong"):
        load_checkpoint(path)


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99, None])
def test_the_checkpoint_before_is_read_when_the_last_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kept: float | None
) -> None:
    for epoch in (1, 2, 3):
        save_last(tmp_path, content(epoch))
    assert load_last(tmp_path)["epoch"] == 3
    assert caplog.text == ""
    if kept is None:
        (tmp_path / LAST).unlink()
    else:
        whole = (tmp_path / LAST).read_bytes()
        (tmp_path / LAST).write_bytes(whole[: int(kept * len(whole))])
    assert has_last(tmp_path)
    assert load_last(tmp_path)["epoch"] == 2
    assert "continuing from the one before, last.previous.pt" in caplog.text


def test_two_damaged_checkpoints_are_an_error(tmp_path: Path) -> None:
    for epoch in (1, 2):
        save_last(tmp_path, content(epoch))
    (tmp_path / LAST).write_bytes(b"")
    (tmp_path / PREVIOUS).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"last.previous.pt is damaged"):
        load_last(tmp_path)


def test_a_full_disk_leaves_the_saved_checkpoints_unchanged(tmp_path: Path) -> None:
    for epoch in (1, 2):
        save_last(tmp_path, content(epoch))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    message = r"newest.pt: File too large; free some space .* with --resume$"
    with files_no_larger_than(100_000), pytest.raises(CheckpointError, match=message):
        save_last(tmp_path, content(3))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    save_last(tmp_path, content(3))
    assert load_last(tmp_path)["epoch"] == 3


def test_a_first_checkpoint_that_cannot_be_saved_leaves_nothing_to_resume(
    tmp_path: Path,
) -> None:
    with (
        files_no_larger_than(100_000),
        pytest.raises(CheckpointError, match=r"File too large; .* start again$"),
    ):
        save_last(tmp_path, content(1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [LAST, PREVIOUS])
def test_a_rename_that_fails_is_an_error_and_the_newest_saved_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for epoch in (1, 2):
        save_last(tmp_path, content(epoch))
    rename = Path.replace

    def replace_or_fail(self: Path, target: Path) -> Path:
        if target.name == name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace_or_fail)
    message = "last.pt: Input/output error; .* continue with --resume"
    with pytest.raises(CheckpointError, match=message):
        save_last(tmp_path, content(3))
    assert load_last(tmp_path)["epoch"] == 2
    monkeypatch.undo()
    save_last(tmp_path, content(3))
    assert load_last(tmp_path)["epoch"] == 3


def test_the_folder_is_flushed_after_the_last_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_last(tmp_path, content(1))
    events: list[str] = []
    rename, fsync = Path.replace, os.fsync

    def note_rename(self: Path, target: Path) -> Path:
        events.append(target.name)
        return rename(self, target)

    def note_flush(descriptor: int) -> None:
        events.append(f"flush {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    monkeypatch.setattr(Path, "replace", note_rename)
    monkeypatch.setattr(os, "fsync", note_flush)
    save_last(tmp_path, content(2))
    assert events[-3:] == [PREVIOUS, LAST, f"flush {tmp_path.name}"]
