"""A disk of a given rate: reads of files that are in the page cache, held to it.

A read takes as long as the disk needs for its bytes and for those that were asked for
before, by any thread. So readers of large and of small pieces get the same bytes per
second, however many threads they have. Time in which nothing is asked for is lost, save
for the last `BURST_S`: a disk reads ahead, and a thread that sleeps wakes up late.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

BURST_S = 0.02
"""Seconds of the disk's work that are done before they are asked for, at most."""


class TokenBucket:
    """Lets bytes pass at a rate. Safe to share between threads.

    Args:
        bytes_per_s: The rate.
        clock: Returns seconds.
        sleep: Waits for seconds.
    """

    def __init__(
        self,
        bytes_per_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._idle_from_s = clock()
        """When all bytes that were asked for have passed."""

    def begin(self) -> None:
        """Let nothing pass that was not asked for from now on."""
        self._idle_from_s = self._clock()

    def take(self, num_bytes: int) -> float:
        """Ask for bytes to pass, and return when they have, on the clock, seconds."""
        with self._lock:
            begin_s = max(self._idle_from_s, self._clock() - BURST_S)
            self._idle_from_s = begin_s + num_bytes / self._bytes_per_s
            return self._idle_from_s

    def wait(self, until_s: float) -> None:
        """Wait until a time on the clock."""
        left_s = until_s - self._clock()
        if left_s > 0:
            self._sleep(left_s)


@contextmanager
def slow_disk(bytes_per_s: float) -> Iterator[TokenBucket]:
    """Hold every `os.preadv` of this process to a rate, bytes per second, together.

    Yields:
        What holds them.
    """
    bucket = TokenBucket(bytes_per_s)
    read = os.preadv

    def read_slowly(
        descriptor: int, buffers: Sequence[Any], offset: int, *flags: int
    ) -> int:
        passed_s = bucket.take(sum(len(buffer) for buffer in buffers))
        num_read = read(descriptor, buffers, offset, *flags)
        bucket.wait(passed_s)
        return num_read

    with patch.object(os, "preadv", read_slowly):
        yield bucket
