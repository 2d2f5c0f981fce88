"""The losses of an epoch, read from the device an interval after they arose.

Reading a number from a GPU waits until the GPU has got there. Losses are copied
out in the background and looked at when the next interval ends, so that the loop
never waits, and a loss that is not finite is still found within two intervals.

Shape letters: B slices of the batch.

How long training waits for data, and a word about it when it is too long.

On a GPU the host runs ahead of the device, so that the host's clock says little.
There the wait is the time between the last kernel of a step and the first of the
next, on the device's own clock, and read when it is known without waiting.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

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


logger = logging.getLogger(__name__)

WARM_UP = 20
"""Batches at the start of a run that do not count: compilers and caches warm up."""

WINDOW = 60
"""Batches that a verdict is made of."""

TOO_LONG = 0.2
"""Share of the time that training may wait for data without a word."""


class WaitMeter:
    """Adds up the seconds that training waited for data."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._pending: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._seconds = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Wrap what asks for the next batch."""
        if self._on_cuda:
            begin, end = _event(), _event()
            begin.record()
            yield
            end.record()
            self._pending.append((begin, end))
        else:
            asked = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - asked

    def seconds(self) -> float:
        """What is known so far; never waits for the device."""
        while self._pending and _has_passed(self._pending[0][1]):
            begin, end = self._pending.popleft()
            self._seconds += begin.elapsed_time(end) / 1000
        return self._seconds


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _has_passed(event: torch.cuda.Event) -> bool:
    passed: bool = event.query()  # type: ignore[no-untyped-call]
    return passed


class LoaderWatch:
    """Warns, once a run, when training waits for data too long."""

    def __init__(self) -> None:
        self._num_batches = 0
        self._since: tuple[float, float] | None = None
        self._is_done = False

    def note(self, *, elapsed_s: float, waited_s: float) -> None:
        """Note a batch.

        Args:
            elapsed_s: seconds of training so far, without validation.
            waited_s: seconds of these that were spent waiting for data.
        """
        self._num_batches += 1
        if self._num_batches == WARM_UP:
            self._since = (elapsed_s, waited_s)
        if self._is_done or self._since is None:
            return
        if self._num_batches < WARM_UP + WINDOW:
            return
        self._is_done = True
        share = (waited_s - self._since[1]) / max(elapsed_s - self._since[0], 1e-9)
        if share > TOO_LONG:
            logger.warning(
                "the loader is the limit: %.0f %% of the time of %d batches went into "
                "waiting for data; read fewer bytes (--set data.level=256), keep the "
                "slices in memory (--set data.cache=host), put the store on a local "
                "disk, or take a machine with more CPU cores",
                100 * share,
                WINDOW,
            )
