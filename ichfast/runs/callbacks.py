"""Callbacks: what a run reports to while it trains.

1. A run calls its callbacks on the rank that writes: once before the first epoch,
   after each epoch, and once at the end; in their order, and at the end in reverse.
   The other ranks wait meanwhile, up to `system.ranks.TIMEOUT`.
2. The end is reported also after an error or Ctrl-C, to every callback whose `on_start`
   was called.
3. An epoch is reported before it is saved. So a run that is killed between the two
   reports that epoch again when it is resumed.
4. What a callback raises ends the run, on all ranks. A callback that must not do so
   catches its own errors.
5. A callback reads. Rows are copies, and batches that it reads in `on_start` are given
   to the training all the same. But it shares the process: if it draws from torch's
   global random numbers, the run becomes another one.
6. There is no callback for a step: one that reads a number would make the host wait for
   the device (`training.step`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ichfast.loading.batch import Loader
from ichfast.recipes.recipe import Recipe
from ichfast.recipes.settings import flatten
from ichfast.training.checkpoint import how_to_continue
from ichfast.training.history import History, write_history

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStart:
    """A run that is about to train."""

    run_dir: Path
    """The run's folder."""

    recipe: Recipe
    """The settings as it trains with them, such as a batch that was made to fit."""

    num_epochs: int
    """Epochs of the whole run; `train.patience` may end it before."""

    history: History
    """Rows of the epochs before; none unless the run is resumed."""

    train_loader: Loader
    """Gives the training slices of this rank; to read in `Callback.on_start` only."""

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting by its name in `--set`, such as ``train.phases.0.lr``."""
        return flatten(self.recipe)


class Callback:
    """Base class of callbacks: a run calls these methods, which do nothing here."""

    def on_start(self, start: RunStart) -> None:
        """Called before the first epoch, or the one with which a run is resumed."""

    def on_epoch(self, row: dict[str, Any]) -> None:
        """Called after each epoch, with a copy of its row in `training.history`."""

    def on_end(self, error: BaseException | None) -> None:
        """Called at the end, with what ended the run; None if it has finished."""


@contextmanager
def reporting(
    start: RunStart, callbacks: Sequence[Callback]
) -> Iterator[Callable[[History], None]]:
    """Report the start of a run, and when the block ends, its end.

    Args:
        start: what begins.
        callbacks: in the order in which they are called.

    Yields:
        Reports the newest epoch of a history: to `metrics.csv`, the log and the
        callbacks.

    Raises:
        CheckpointError: `metrics.csv` cannot be written, here or in the function that
            is yielded.
    """

    def write(history: History) -> None:
        advice = how_to_continue(start.run_dir)
        write_history(start.run_dir, history, advice=advice)

    def on_epoch(history: History) -> None:
        write(history)
        row = history[-1]
        _log_epoch(row)
        for callback in callbacks:
            callback.on_epoch(dict(row))

    with ExitStack() as stack:
        for callback in callbacks:
            stack.push(partial(_end, callback))
            callback.on_start(start)
        if start.history:  # a kill may have come before it was written
            write(start.history)
        yield on_epoch


def _end(
    callback: Callback, _kind: object, error: BaseException | None, _traceback: object
) -> None:
    callback.on_end(error)


def _log_epoch(row: dict[str, Any]) -> None:
    logger.info(
        "epoch %d: train loss %.5f (mean), %.5f (smooth), valid loss %.5f, "
        "weighted log loss %.5f, accuracy %.4f, %.1f slices/s, %.0f %% waiting for "
        "data",
        row["epoch"] + 1,
        row["train_loss"],
        row["train_loss_smooth"],
        row["valid_loss"],
        row["valid_weighted_log_loss"],
        row["valid_accuracy"],
        row["slices_per_s"],
        100 * row["wait_share"],
    )
