"""Ctrl-C, SIGTERM and SIGHUP, as a flag that a loop checks or as a KeyboardInterrupt.

A closed terminal sends SIGHUP. Under `nohup` it is ignored, and stays so.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end a command, which then keeps or removes what it made."""

Handler = Callable[[int, FrameType | None], object] | int

ECHO_S = 1.0
"""A signal within this time of the first one is ignored, seconds. A terminal and
torchrun, or Slurm and torchrun, both send it."""


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn the first of `STOPPING` into a flag while the block runs.

    A second signal, `ECHO_S` later or more, has its usual effect at once. Only for the
    main thread.

    Yields:
        A function that returns whether a signal came.
    """
    came_at: float | None = None
    before = _handlers()

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
def signals_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise a KeyboardInterrupt in the block, as Ctrl-C does.

    Outside the main thread, which receives no signals, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _handlers()
    del before[signal.SIGINT]
    for number in before:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def signals_held() -> Iterator[None]:
    """Let `STOPPING` have their effects after the block.

    For imports. A KeyboardInterrupt in one may be printed, or become another error.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _handlers() -> dict[signal.Signals, signal.Handlers | Handler | None]:
    """The handlers of `STOPPING`; without SIGHUP's if `nohup` ignores it."""
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    if handlers[signal.SIGHUP] == signal.SIG_IGN:
        del handlers[signal.SIGHUP]
    return handlers
