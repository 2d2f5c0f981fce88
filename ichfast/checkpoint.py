"""Checkpoints: what survives a crash.

1. A checkpoint is written whole or not at all; the one before stays until then.
2. Reading one never runs code: tensors, numbers, texts and plain containers only.
3. A checkpoint that is damaged, foreign or of another format is an error that says
   so, not a surprise later.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ichfast.errors import CheckpointError
from ichfast.files import atomic_path

FORMAT_VERSION = 1

LAST = "last.pt"
"""Where training stands, in a run's folder."""

BEST = "best.pt"
"""The epoch with the lowest validation loss, in a run's folder."""


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
            f"cannot write {path}: {_first_line(error)}; free some space, then "
            "continue with --resume"
        ) from error


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
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything here
        raise CheckpointError(
            f"{path} is damaged or no checkpoint: {_first_line(error)}"
        ) from error
    if not isinstance(content, dict) or "format" not in content:
        raise CheckpointError(f"{path} is not a checkpoint that ichfast wrote")
    if content["format"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {content['format']}, this ichfast reads "
            f"{FORMAT_VERSION}; train again"
        )
    return content


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
