"""What is measured during an epoch: its losses, its time, and the wait for data.

Losses: reading a number from a GPU waits for the GPU. So losses are copied to the
host in the background and read at the end of the next interval. The loop never
waits, and a loss that is not finite is found within two intervals.

Waiting: the host runs ahead of a GPU, so its clock does not show the wait. On a GPU
the wait is the time between the last kernel of a step and the first of the next, by
the device's clock, and it is read once it is known without waiting.

Shape letters: B slices of the batch.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

READ_INTERVAL = 20
"""Batches between two reads of the losses."""

WARM_UP = 20
"""Batches at the start of a run that `LoaderWatch` skips, while compilers and caches
warm up."""

WINDOW = 60
"""Batches over which `LoaderWatch` measures the wait."""

MAX_WAIT_SHARE = 0.2
"""Share of the time, in [0, 1], that training may wait for data without a warning."""

SMOOTHING = 0.98
"""Factor by which a loss fades in the moving average with each step; fastai's."""


class LossTrace:
    """The losses of an epoch's batches, in order.

    Args:
        device: where the losses are computed.
    """

    def __init__(self, device: torch.device) -> None:
        self.values: list[float] = []
        """The losses that have been read."""
        self._on_cuda = device.type == "cuda"
        self._fresh: list[tuple[Tensor, Tensor]] = []
        self._in_flight = torch.empty(0)
        self._in_flight_indices: list[Tensor] = []
        self._copied: torch.cuda.Event | None = None

    @property
    def due(self) -> bool:
        """Whether `READ_INTERVAL` batches were added since the last read."""
        return len(self._fresh) >= READ_INTERVAL

    def add(self, loss: Tensor, indices_B: Tensor) -> None:
        """Add the loss of a batch.

        Args:
            loss: scalar on the device.
            indices_B: store positions of the batch, on the CPU.
        """
        self._fresh.append((loss, indices_B))

    def read_late(self) -> Tensor | None:
        """Read the losses of the interval before, and start to copy the fresh ones.

        Returns:
            Store positions of the first batch whose loss is not finite, or None.
        """
        bad_B = self._read_in_flight()
        if self._fresh:
            losses = torch.stack([loss for loss, _ in self._fresh])
            self._in_flight = losses.to("cpu", non_blocking=True)
            self._in_flight_indices = [indices_B for _, indices_B in self._fresh]
            self._fresh = []
            if self._on_cuda:
                # Blocking: the wait for another event keeps a core busy.
                self._copied = _event(blocking=True)
                self._copied.record()
        return bad_B

    def read_all(self) -> Tensor | None:
        """Read every loss, waiting for the device.

        Returns:
            Store positions of the first batch whose loss is not finite, or None.
        """
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
        """Mean of the losses that have been read; NaN if there are none."""
        return math.fsum(self.values) / len(self.values) if self.values else math.nan

    def clear(self) -> None:
        """Drop the losses that have been read, for the next epoch."""
        self.values = []


def moving_average(losses: Sequence[float], before: float, num_before: int) -> float:
    """Continue a moving average of losses, of which each fades by `SMOOTHING` a step.

    Args:
        losses: the further steps, in order.
        before: the average of the steps before; ignored if there are none.
        num_before: number of the steps before.

    Returns:
        The average over all steps, with weights that add up to 1; NaN without steps.

    Source:
        fastai v1 `SmoothenValue`, from which the train loss of its tables comes: one
        average for a call of `fit`, beta 0.98, divided by 1 - beta^n.
    """
    average = before * (1.0 - SMOOTHING**num_before) if num_before else 0.0
    for loss in losses:
        average = SMOOTHING * average + (1.0 - SMOOTHING) * loss
    num_steps = num_before + len(losses)
    return average / (1.0 - SMOOTHING**num_steps) if num_steps else math.nan


class WaitMeter:
    """Adds up the seconds that training waits for data.

    Args:
        device: where the model trains.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._pending: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._seconds = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Wrap the call that takes the next batch."""
        if self._on_cuda:
            begin, end = _event(enable_timing=True), _event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._pending.append((begin, end))
        else:
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began

    def seconds(self) -> float:
        """Seconds known so far; never waits for the device."""
        while self._pending and _has_passed(self._pending[0][1]):
            begin, end = self._pending.popleft()
            self._seconds += begin.elapsed_time(end) / 1000
        return self._seconds


def _event(**options: bool) -> torch.cuda.Event:
    return torch.cuda.Event(**options)  # type: ignore[no-untyped-call]


def _has_passed(event: torch.cuda.Event) -> bool:
    passed: bool = event.query()  # type: ignore[no-untyped-call]
    return passed


class LoaderWatch:
    """Warns, once per run, when training waits for data too long."""

    def __init__(self) -> None:
        self._num_batches = 0
        self._elapsed_s, self._waited_s = 0.0, 0.0
        self._warm: tuple[float, float] | None = None
        self._is_done = False

    def note(self, *, elapsed_s: float, waited_s: float) -> None:
        """Note a batch.

        Args:
            elapsed_s: seconds since the epoch began.
            waited_s: seconds of these spent waiting for data.
        """
        self._num_batches += 1
        elapsed_s, waited_s = self._elapsed_s + elapsed_s, self._waited_s + waited_s
        if self._num_batches == WARM_UP:
            self._warm = (elapsed_s, waited_s)
        if self._is_done or self._warm is None:
            return
        if self._num_batches < WARM_UP + WINDOW:
            return
        self._is_done = True
        share = (waited_s - self._warm[1]) / max(elapsed_s - self._warm[0], 1e-9)
        if share > MAX_WAIT_SHARE:
            logger.warning(
                "the loader is the limit: %.0f %% of the time of %d batches went into "
                "waiting for data; read fewer bytes (--set data.level=256), keep the "
                "slices in memory (--set data.cache=host), put the store on a local "
                "disk, or take a machine with more CPU cores",
                100 * share,
                WINDOW,
            )

    def end_epoch(self, *, elapsed_s: float, waited_s: float) -> None:
        """End an epoch: the next one's seconds count from 0 again.

        Args:
            elapsed_s: seconds that its training took, without validation.
            waited_s: seconds of these spent waiting for data.
        """
        self._elapsed_s += elapsed_s
        self._waited_s += waited_s


class EpochTimer:
    """Times one epoch of training, from its creation to `finish`.

    Args:
        device: where the model trains.
        watch: told the time of each batch.
    """

    def __init__(self, device: torch.device, watch: LoaderWatch) -> None:
        self._watch = watch
        self._waits = WaitMeter(device)
        self._num_slices = 0
        self._began = time.perf_counter()

    def waiting(self) -> AbstractContextManager[None]:
        """Wrap the call that takes the next batch."""
        return self._waits.waiting()

    def add(self, num_slices: int) -> None:
        """Add a batch of `num_slices`."""
        self._num_slices += num_slices
        self._watch.note(elapsed_s=self._elapsed_s(), waited_s=self._waits.seconds())

    def _elapsed_s(self) -> float:
        return time.perf_counter() - self._began

    def wait_share(self) -> float:
        """Share of the time so far spent waiting for data, in [0, 1]."""
        return self._waits.seconds() / max(self._elapsed_s(), 1e-9)

    def finish(self, world_size: int) -> dict[str, float]:
        """End the epoch.

        Args:
            world_size: ranks that each train on as many slices.

        Returns:
            slices_per_s, of all ranks together; seconds; wait_share, in [0, 1].
        """
        elapsed_s, waited_s = self._elapsed_s(), self._waits.seconds()
        self._watch.end_epoch(elapsed_s=elapsed_s, waited_s=waited_s)
        return {
            "slices_per_s": self._num_slices * world_size / elapsed_s,
            "seconds": elapsed_s,
            "wait_share": waited_s / elapsed_s,
        }
