"""The TensorBoard log of a run: the metrics of its epochs, and some slices.

Shape letters: B slices of the batch, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ichfast.errors import TrainError
from ichfast.runs.callbacks import Callback, RunStart
from ichfast.runs.event_file import EventFile
from ichfast.training.checkpoint import how_to_continue

TENSORBOARD = "tensorboard"
"""Folder of TensorBoard's files, in a run's folder."""

NUM_SHOWN_SLICES = 8
"""Slices of a batch that TensorBoard shows."""

NUM_SHOWN_EPOCHS = 3
"""Epochs whose first batch TensorBoard shows, as the network sees it."""


class TensorBoard(Callback):
    """Writes a file for TensorBoard into the run's folder; part of every run.

    All methods raise TrainError if it cannot be written.

    Args:
        run_dir: the run's folder; exists.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        with self._write_errors():
            self._events = EventFile(run_dir / TENSORBOARD)

    def on_start(self, start: RunStart) -> None:
        """Show the augmented slices with which the first epochs begin."""
        if start.history:  # they were shown when the run began
            return
        channels = start.recipe.data.shown_channels
        for epoch in range(min(start.num_epochs, NUM_SHOWN_EPOCHS)):
            batch = next(iter(start.train_loader.epoch(epoch)))
            images_BCHW = _to_display(batch.images_BCHW[:NUM_SHOWN_SLICES, channels])
            with self._write_errors():
                self._events.add_images("augmented", images_BCHW, epoch)

    def on_epoch(self, row: dict[str, Any]) -> None:
        """Add the numbers of an epoch."""
        with self._write_errors():
            self._events.add_scalars(row, row["epoch"])

    def on_end(self, error: BaseException | None) -> None:
        """Close the file."""
        del error
        self._events.close()

    @contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainError(
                f"cannot write {self._run_dir / TENSORBOARD}: {error.strerror}; "
                f"{how_to_continue(self._run_dir)}"
            ) from error


def _to_display(images_BCHW: Tensor) -> Tensor:
    """Each slice scaled from its darkest to its brightest value, on the CPU."""
    values_BCHW = images_BCHW.float().cpu()
    low = values_BCHW.amin(dim=(1, 2, 3), keepdim=True)
    high = values_BCHW.amax(dim=(1, 2, 3), keepdim=True)
    return (values_BCHW - low) / (high - low).clamp(min=1e-6)
