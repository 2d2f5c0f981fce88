"""The log of a run: metrics.csv, TensorBoard, and one line per epoch.

Shape letters: B slices of the batch, C channels, H rows, W columns.
"""

from __future__ import annotations

import logging
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ichfast.loading.batch import Loader
from ichfast.training.history import History, write_history

logger = logging.getLogger(__name__)

NUM_SHOWN_SLICES = 8
"""Slices of a batch that TensorBoard shows."""

NUM_SHOWN_EPOCHS = 3
"""Epochs whose first batch TensorBoard shows, as the network sees it."""


class RunLog:
    """Logs a run's epochs in its folder, until it is closed.

    Args:
        run_dir: the run's folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._board = SummaryWriter(run_dir / "tensorboard")

    def show_slices(self, loader: Loader, num_epochs: int) -> None:
        """Show the augmented slices with which the first epochs begin.

        Args:
            loader: gives the training slices.
            num_epochs: epochs of the run.
        """
        for epoch in range(min(num_epochs, NUM_SHOWN_EPOCHS)):
            batch = next(iter(loader.epoch(epoch)))
            images_BCHW = batch.images_BCHW[:NUM_SHOWN_SLICES]
            self._board.add_images("augmented", _to_display(images_BCHW), epoch)

    def log_epoch(self, history: History) -> None:
        """Log the newest epoch, and write the whole history to `metrics.csv`."""
        write_history(self._run_dir, history)
        row = history[-1]
        for name, value in row.items():
            self._board.add_scalar(name, value, row["epoch"])
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
        """Write what TensorBoard still holds back, and close its file."""
        self._board.close()


def _to_display(images_BCHW: Tensor) -> Tensor:
    """Each slice scaled from its darkest to its brightest value, on the CPU."""
    values_BCHW = images_BCHW.float().cpu()
    low = values_BCHW.amin(dim=(1, 2, 3), keepdim=True)
    high = values_BCHW.amax(dim=(1, 2, 3), keepdim=True)
    return (values_BCHW - low) / (high - low).clamp(min=1e-6)
