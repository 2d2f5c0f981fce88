"""A file of events for TensorBoard.

TensorBoard's own writer has a thread, which prints a traceback when the disk is full,
and puts the machine's name into the name of the file.

Shape letters: B slices, C channels, H rows, W columns.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard.summary import image, scalar


class EventFile:
    """Events in the order in which they were added. Each is written at once.

    Args:
        folder: where to make the file; made if it is missing.

    Raises:
        OSError: the file cannot be made. All methods raise it if they cannot write.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"
        self._file = (folder / name).open("xb")
        self._records = RecordWriter(self._file)
        self._add(0, file_version="brain.Event:2")

    def add_scalars(self, values: dict[str, float], step: int) -> None:
        """Add numbers.

        Args:
            values: the numbers by name.
            step: where they are on the horizontal axis.
        """
        for name, value in values.items():
            self._add(step, summary=scalar(name, value))  # type: ignore[no-untyped-call]

    def add_images(self, name: str, images_BCHW: Tensor, step: int) -> None:
        """Add pictures, side by side.

        Args:
            name: of the pictures.
            images_BCHW: values in [0, 1], shape (B, C, H, W), on the CPU.
            step: where they are on the horizontal axis.
        """
        summary = image(name, images_BCHW, dataformats="NCHW")  # type: ignore[no-untyped-call]
        self._add(step, summary=summary)

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # raised before, when the event was added
            self._file.close()

    def _add(self, step: int, **content: Any) -> None:
        event = Event(wall_time=time.time(), step=step, **content)
        self._records.write(event.SerializeToString())
        self._records.flush()
