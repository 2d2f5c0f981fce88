"""The losses of an epoch, read from the device an interval after they arose.

Reading a number from a GPU waits until the GPU has got there. Losses are copied
out in the background and looked at when the next interval ends, so that the loop
never waits, and a loss that is not finite is still found within two intervals.

Shape letters: B slices of the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

READ_INTERVAL = 20
"""Batches between two looks at the losses."""


class LossTrace:
    """Losses of the batches of an epoch, in order."""

    def __init__(self, device: torch.device) -> None:
        self.values: list[float] = []
        """What has been read so far."""
        self._on_cuda = device.type == "cuda"
        self._fresh: list[tuple[Tensor, Tensor]] = []
        self._in_flight = torch.empty(0)
        self._in_flight_indices: list[Tensor] = []
        self._copied: torch.cuda.Event | None = None

    @property
    def due(self) -> bool:
        """Whether it is time to look."""
        return len(self._fresh) >= READ_INTERVAL

    def add(self, loss: Tensor, indices_B: Tensor) -> None:
        """Note a batch.

        Args:
            loss: scalar on the device.
            indices_B: store positions of the batch, on the CPU.
        """
        self._fresh.append((loss, indices_B))

    def read_late(self) -> Tensor | None:
        """Read the losses before the fresh ones, and send for the fresh ones.

        Returns:
            The positions of the first batch whose loss was not finite, or None.
        """
        bad_B = self._read_in_flight()
        if self._fresh:
            losses = torch.stack([loss for loss, _ in self._fresh])
            self._in_flight = losses.to("cpu", non_blocking=True)
            self._in_flight_indices = [indices_B for _, indices_B in self._fresh]
            self._fresh = []
            if self._on_cuda:
                self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._copied.record()
        return bad_B

    def read_all(self) -> Tensor | None:
        """Read every loss, waiting for the device; returns as `read_late`."""
        first_B, second_B = self.read_late(), self._read_in_flight()
        return second_B if first_B is None else first_B

    def _read_in_flight(self) -> Tensor | None:
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None
        arrived = self._in_flight.tolist()
        batches, self._in_flight_indices = self._in_flight_indices, []
        self._in_flight = torch.empty(0)
        self.values += arrived
        for loss, indices_B in zip(arrived, batches, strict=True):
            if not math.isfinite(loss):
                return indices_B
        return None

    def mean(self) -> float:
        """Mean of what was read; NaN before anything was."""
        return math.fsum(self.values) / len(self.values) if self.values else math.nan

    def clear(self) -> None:
        """Forget everything, for the next epoch."""
        self.values = []
