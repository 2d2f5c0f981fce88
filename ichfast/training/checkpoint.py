"""Checkpoints: what survives a crash.

1. A checkpoint is written whole or not at all; the one before stays until then.
2. The place where training stands is kept twice, the newest and the one before:
   when the disk spoils the newest, the one before is taken, and it is said.
3. Reading one never runs code: tensors, numbers, texts and plain containers only.
4. A checkpoint that is damaged, foreign or of another format is an error that says
   so, not a surprise later.
"""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path
from typing import Any

import torch

from ichfast.errors import CheckpointError, first_line
from ichfast.models.torchfile import load_torch_file
from ichfast.system.files import atomic_path

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2

LAST = "last.pt"
"""Where training stands, in a run's folder."""

PREVIOUS = "last.previous.pt"
"""Where it stood when the checkpoint before was written."""

BEST = "best.pt"
"""The best epoch (`TrainConfig.best_by`), in a run's folder."""

_NEWEST = "last.newest.pt"
"""On its way to be `LAST`."""


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint, atomically.

    Args:
        path: replaced if it exists.
        content: tensors, numbers, texts and plain containers of these.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written.
    """
    try:
        with atomic_path(path) as temporary:
            torch.save({"format": FORMAT_VERSION, **content}, temporary)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as RuntimeError.
        raise CheckpointError(
            f"cannot write {path}: {first_line(error)}; free some space, then "
            "continue with --resume"
        ) from error


def save_last(run_dir: Path, content: dict[str, Any]) -> None:
    """Write where training stands, and keep the place before.

    Raises:
        CheckpointError: as `save_checkpoint`; both places are as they were.
    """
    # The newest is on the disk, flushed, before either of the others is touched.
    save_checkpoint(run_dir / _NEWEST, content)
    if (run_dir / LAST).exists():
        (run_dir / LAST).replace(run_dir / PREVIOUS)
    (run_dir / _NEWEST).replace(run_dir / LAST)


def has_last(run_dir: Path) -> bool:
    """Whether a run's folder holds a place to continue from, whole or damaged."""
    return any((run_dir / name).is_file() for name in (LAST, PREVIOUS))


def clear_leftovers(run_dir: Path) -> None:
    """Remove checkpoints that were not finished when their process was killed."""
    for path in run_dir.glob(".*.pt.*.tmp"):
        path.unlink()


def load_last(run_dir: Path) -> dict[str, Any]:
    """Read where training stands; if that is damaged, where it stood before.

    Raises:
        CheckpointError: neither can be read.
    """
    try:
        return load_checkpoint(run_dir / LAST)
    except CheckpointError as error:
        if not (run_dir / PREVIOUS).is_file():
            raise
        content = load_checkpoint(run_dir / PREVIOUS)
        logger.warning("%s; continuing from the one before, %s", error, PREVIOUS)
        return content


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: no such file, not a checkpoint of ours, damaged, or of
            another format version.
    """
    if not path.is_file():
        raise CheckpointError(
            f"no checkpoint at {path}; train first, or name the run's folder"
        )
    try:
        content = load_torch_file(path)
        _check_sums(path)
    except Exception as error:  # torch raises nearly anything here
        raise CheckpointError(
            f"{path} is damaged or no checkpoint: {first_line(error)}"
        ) from error
    if not isinstance(content, dict) or "format" not in content:
        raise CheckpointError(f"{path} is not a checkpoint that ichfast wrote")
    if content["format"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {content['format']}, this ichfast reads "
            f"{FORMAT_VERSION}; train again"
        )
    return content


def _check_sums(path: Path) -> None:
    """Compare the sums in the file, which `torch.load` does not look at."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise CheckpointError(f"the checksum of {damaged} in it is wrong")
