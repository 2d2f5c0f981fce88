"""The log of a run: metrics.csv, TensorBoard, and one line per epoch.

Shape letters: B slices of the batch, C channels, H rows, W columns.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from ichfast.errors import TrainError
from ichfast.loading.batch import Loader
from ichfast.runs.event_file import EventFile
from ichfast.training.checkpoint import how_to_continue
from ichfast.training.history import History, write_history

logger = logging.getLogger(__name__)

TENSORBOARD = "tensorboard"
"""Folder of TensorBoard's files, in a run's folder."""

NUM_SHOWN_SLICES = 8
"""Slices of a batch that TensorBoard shows."""

NUM_SHOWN_EPOCHS = 3
"""Epochs whose first batch TensorBoard shows, as the network sees it."""


class RunLog:
    """Logs a run's epochs in its folder, until it is closed.

    Args:
        run_dir: the run's folder.

    Raises:
        TrainError: a file cannot be written.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        with self._tensorboard_errors():
            self._events = EventFile(run_dir / TENSORBOARD)

    def show_slices(self, loader: Loader, num_epochs: int, channels: slice) -> None:
        """Show the augmented slices with which the first epochs begin.

        Args:
            loader: gives the training slices.
            num_epochs: epochs of the run.
            channels: the channels to show, 1 or 3.
        """
        for epoch in range(min(num_epochs, NUM_SHOWN_EPOCHS)):
            batch = next(iter(loader.epoch(epoch)))
            images_BCHW = _to_display(batch.images_BCHW[:NUM_SHOWN_SLICES, channels])
            with self._tensorboard_errors():
                self._events.add_images("augmented", images_BCHW, epoch)

    def log_epoch(self, history: History) -> None:
        """Log the newest epoch, and write the whole history to `metrics.csv`.

        Args:
            history: all rows so far.

        Raises:
            CheckpointError: `metrics.csv` cannot be written.
            TrainError: TensorBoard's file cannot be written.
        """
        write_history(self._run_dir, history, advice=how_to_continue(self._run_dir))
        row = history[-1]
        with self._tensorboard_errors():
            self._events.add_scalars(row, row["epoch"])
        logger.info(
            "epoch %d: train loss %.5f (mean), %.5f (smooth), valid loss %.5f, "
            "weighted log loss %.5f, accuracy %.4f, %.1f slices/s, "
            "%.0f %% waiting for data",
            row["epoch"] + 1,
            row["train_loss"],
            row["train_loss_smooth"],
            row["valid_loss"],
            row["valid_weighted_log_loss"],
            row["valid_accuracy"],
            row["slices_per_s"],
            100 * row["wait_share"],
        )

    def close(self) -> None:
        """Close TensorBoard's file."""
        self._events.close()

    @contextmanager
    def _tensorboard_errors(self) -> Iterator[None]:
        folder = self._run_dir / TENSORBOARD
        try:
            yield
        except OSError as error:
            raise TrainError(
                f"cannot write {folder}: {error.strerror}; "
                f"{how_to_continue(self._run_dir)}"
            ) from error


def _to_display(images_BCHW: Tensor) -> Tensor:
    """Each slice scaled from its darkest to its brightest value, on the CPU."""
    values_BCHW = images_BCHW.float().cpu()
    low = values_BCHW.amin(dim=(1, 2, 3), keepdim=True)
    high = values_BCHW.amax(dim=(1, 2, 3), keepdim=True)
    return (values_BCHW - low) / (high - low).clamp(min=1e-6)
