"""How long training waits for data, and a word about it when it is too long.

On a GPU the host runs ahead of the device, so that the host's clock says little.
There the wait is the time between the last kernel of a step and the first of the
next, on the device's own clock, and read when it is known without waiting.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

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
