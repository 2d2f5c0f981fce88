"""Ctrl-C and SIGTERM: as a question a loop can ask, or as one interruption."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ECHO_S = 1.0
"""Signals that follow the first one sooner are the same one: a terminal and torchrun,
or Slurm and torchrun, both pass it on."""


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a flag while the block runs.

    A second signal, `ECHO_S` later or more, has its usual effect at once. Must be
    entered in the main thread.

    Yields:
        A function that tells whether a signal came.
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
    """Let SIGTERM end the block as Ctrl-C does: with a KeyboardInterrupt.

    Does nothing outside the main thread, where no signal arrives.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
