"""Waiting for something that happens in another thread."""

from __future__ import annotations

import time
from collections.abc import Callable

LIMIT_S = 60.0


def becomes_true(condition: Callable[[], bool]) -> bool:
    """Wait until a condition holds, for `LIMIT_S` at most; return whether it does."""
    end_s = time.monotonic() + LIMIT_S
    while not condition() and time.monotonic() < end_s:
        time.sleep(0.001)
    return condition()
