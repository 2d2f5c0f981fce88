"""Checkpoints: what survives a crash.

Promises:

1. A checkpoint is written whole or not at all; the one before stays until then.
2. The newest checkpoint and the one before are kept: if the newest is damaged, the
   one before is taken, with a warning.
3. Reading one never runs code: it holds tensors, numbers, texts and plain containers.
4. A checkpoint that is damaged, foreign or of another format is an error that says
   so when it is read: every field has a type.
5. It tells what it was trained with and on: the settings and the patients of its run.
"""

from __future__ import annotations

import logging
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ichfast.errors import CheckpointError, first_line
from ichfast.models.torchfile import load_torch_file
from ichfast.system.files import atomic_path, flush
from ichfast.training.history import is_history

logger = logging.getLogger(__name__)

FORMAT_VERSION = 3

LAST = "last.pt"
"""Newest checkpoint of a run, in its folder."""

PREVIOUS = "last.previous.pt"
"""The checkpoint before `LAST`."""

BEST = "best.pt"
"""Checkpoint of the best epoch (`TrainConfig.best_by`)."""

NEWEST = "last.newest.pt"
"""Name of a new checkpoint until it replaces `LAST`."""


SETTINGS = "settings"
"""Field with the settings of the run (`runs.record.trained_settings`)."""

PATIENTS = "patients"
"""Field with the patients that the weights were trained on (`runs.patients`)."""


def is_state(value: object) -> bool:
    """Whether a value is the state of a model."""
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor)
        for name, tensor in value.items()
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def is_count(value: object) -> bool:
    """Whether a value is a whole number from 0."""
    return type(value) is int and value >= 0


def _is_generator(value: object) -> bool:
    return isinstance(value, dict) and value.keys() == {"cpu", "cuda"}


def _are_losses(value: object) -> bool:
    return isinstance(value, list) and all(type(loss) is float for loss in value)


Fields = Mapping[str, Callable[[object], bool]]
"""For each field of a checkpoint, whether a value is of its kind."""

FIELDS: Fields = {"model": is_state, SETTINGS: _is_text, PATIENTS: _is_text}
"""What every checkpoint has."""

RESUMED_FIELDS: Fields = {
    "trained": lambda value: value is None or is_state(value),
    "optimizer": lambda value: isinstance(value, dict),
    "scaler": lambda value: isinstance(value, dict),
    "rng": lambda value: isinstance(value, list) and all(map(_is_generator, value)),
    "losses": lambda value: isinstance(value, list) and all(map(_are_losses, value)),
    "epoch": is_count,
    "iteration": is_count,
    "history": is_history,
}
"""What a run needs to continue; `rng` and `losses` have an item for each rank."""


class Checkpointer:
    """Saves the checkpoints of a run, on the rank that writes.

    Args:
        run_dir: the run's folder; exists.
        writes: whether this rank writes.
        minutes: time between two checkpoints within an epoch.
    """

    def __init__(self, run_dir: Path, *, writes: bool, minutes: float) -> None:
        self.run_dir = run_dir
        self._writes = writes
        self._minutes = minutes
        self._saved_at = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is old enough for a new one."""
        return (time.monotonic() - self._saved_at) / 60 >= self._minutes

    def save_epoch(self, content: dict[str, Any], *, is_best: bool) -> None:
        """Write `LAST` after an epoch, and `BEST` if it is the best so far.

        A folder with `BEST` alone holds a finished run whose `LAST` was deleted. So in
        the first epoch `LAST` is written before `BEST`, later after it.

        Args:
            content: what `save_checkpoint` takes.
            is_best: whether the epoch is the best so far.

        Raises:
            CheckpointError: `save_checkpoint` raised it.
        """
        is_first = not has_last(self.run_dir)
        if is_first:
            self.save_last(content)
        if is_best and self._writes:
            save_checkpoint(self.run_dir / BEST, content)
        if not is_first:
            self.save_last(content)

    def save_lost_best(self, content: dict[str, Any]) -> None:
        """Write `BEST` if a kill came between the checkpoints of the first epoch.

        Args:
            content: that of `LAST`.

        Raises:
            CheckpointError: `save_checkpoint` raised it.
        """
        path, ends_first = self.run_dir / BEST, content["epoch"] == 1
        if self._writes and ends_first and not path.is_file():
            save_checkpoint(path, content)

    def save_last(self, content: dict[str, Any]) -> None:
        """Write `LAST`, keep `PREVIOUS`; raises as `save_checkpoint`."""
        if self._writes:
            save_last(self.run_dir, content)
        self._saved_at = time.monotonic()


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint, atomically.

    Args:
        path: replaced if it exists.
        content: tensors, numbers, texts and plain containers of these.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written.
    """
    try:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            torch.save({"format": FORMAT_VERSION, **content}, file)
    except (OSError, RuntimeError) as error:
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError | RuntimeError) -> CheckpointError:
    # torch raises a RuntimeError of its own after that of the file.
    cause = error.__context__ if isinstance(error.__context__, OSError) else error
    reason = cause.strerror if isinstance(cause, OSError) else first_line(error)
    return CheckpointError(
        f"cannot write {path}: {reason}; {how_to_continue(path.parent)}"
    )


def how_to_continue(run_dir: Path) -> str:
    """What to do when a run's folder cannot be written."""
    again = "continue with --resume" if has_last(run_dir) else "start again"
    return f"free some space or mend the disk, then {again}"


def save_last(run_dir: Path, content: dict[str, Any]) -> None:
    """Write `LAST`, and keep the one before as `PREVIOUS`.

    Args:
        run_dir: the run's folder; exists.
        content: tensors, numbers, texts and plain containers of these.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written; the
            newest checkpoint of before is there, as `LAST` or `PREVIOUS`.
    """
    # The new file is on the disk, flushed, before either of the others changes.
    save_checkpoint(run_dir / NEWEST, content)
    try:
        if (run_dir / LAST).exists():
            (run_dir / LAST).replace(run_dir / PREVIOUS)
        (run_dir / NEWEST).replace(run_dir / LAST)
        flush(run_dir)
    except OSError as error:
        raise _not_written(run_dir / LAST, error) from error


def has_last(run_dir: Path) -> bool:
    """Whether a run's folder holds a checkpoint to resume, intact or damaged."""
    return any((run_dir / name).is_file() for name in (LAST, PREVIOUS))


def load_last(
    run_dir: Path, load: Callable[[Path], dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Read `LAST`; if it is damaged, `PREVIOUS`, with a warning.

    Args:
        run_dir: the run's folder.
        load: reads a file, and raises CheckpointError; None: that of `Trainer`.

    Returns:
        What `load` returns. For `Trainer` it has `FIELDS` and `RESUMED_FIELDS`.

    Raises:
        CheckpointError: neither can be read.
    """
    load = load or _load_resumed
    try:
        return load(run_dir / LAST)
    except CheckpointError as error:
        if not (run_dir / PREVIOUS).is_file():
            raise
        content = load(run_dir / PREVIOUS)
        logger.warning("%s; continuing from the one before, %s", error, PREVIOUS)
        return content


def _load_resumed(path: Path) -> dict[str, Any]:
    content = load_checkpoint(path, RESUMED_FIELDS)
    counts = [len(losses) for losses in content["losses"]]
    if counts != [content["iteration"]] * len(content["rng"]):
        raise foreign_checkpoint(path, f"it has the losses of {counts} batches")
    if content["epoch"] != len(content["history"]):
        raise foreign_checkpoint(
            path, f"it has the history of {len(content['history'])} epochs"
        )
    return content


def load_checkpoint(
    path: Path, fields: Fields = MappingProxyType({})
) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Args:
        path: the file.
        fields: what it has beside `FIELDS`.

    Returns:
        Has `FIELDS` and those.

    Raises:
        CheckpointError: there is no file, it is damaged or not a checkpoint of
            ichfast, or it has another format version.
    """
    if not path.is_file():
        raise CheckpointError(
            f"no checkpoint at {path}; train first, or name the run's folder"
        )
    try:
        content = load_torch_file(path)
        _check_sums(path)
    except Exception as error:  # torch raises almost any type here
        raise CheckpointError(
            f"{path} is damaged or no checkpoint: {first_line(error)}"
        ) from error
    if not isinstance(content, dict) or type(content.get("format")) is not int:
        raise foreign_checkpoint(path, "it has no format")
    if content["format"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {content['format']}, this ichfast reads "
            f"{FORMAT_VERSION}; train again"
        )
    for name, is_valid in {**FIELDS, **fields}.items():
        if name not in content or not is_valid(content[name]):
            raise foreign_checkpoint(
                path, f"its field {name} is missing or of another kind"
            )
    return content


def foreign_checkpoint(path: Path, reason: str) -> CheckpointError:
    """The error for a checkpoint with other content than ichfast writes.

    Args:
        path: the file.
        reason: what is wrong with it.
    """
    return CheckpointError(
        f"{path} is not a checkpoint that ichfast wrote: {reason}; train again"
    )


_MISFITS = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""Errors that torch raises for a state of another kind."""


@contextmanager
def restoring() -> Iterator[None]:
    """Explain errors of torch about a state that does not fit.

    Raises:
        CheckpointError: for an error in the block.
    """
    try:
        yield
    except _MISFITS as error:
        raise CheckpointError(
            f"the checkpoint does not fit this run: {first_line(error)}; train again"
        ) from error


def _check_sums(path: Path) -> None:
    """Compare the checksums in the file, which `torch.load` ignores."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise CheckpointError(f"the checksum of {damaged} in it is wrong")
