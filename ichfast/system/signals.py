"""Ctrl-C and SIGTERM, as a flag that a loop checks or as a KeyboardInterrupt."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ECHO_S = 1.0
"""A signal within this time of the first one is ignored, seconds. A terminal and
torchrun, or Slurm and torchrun, both send it."""


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a flag while the block runs.

    A second signal, `ECHO_S` later or more, has its usual effect at once. Only for the
    main thread.

    Yields:
        A function that returns whether a signal came.
    """
    came_at: float | None = None
    before = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)
    }

    def note(number: int, _frame: FrameType | None) -> None:
        nonlocal came_at
        if came_at is None:
            came_at = time.monotonic()
        elif time.monotonic() - came_at >= ECHO_S:
            restore()
            signal.raise_signal(number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: came_at is not None
    finally:
        restore()


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM raise a KeyboardInterrupt in the block, as Ctrl-C does.

    Outside the main thread, which receives no signals, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
