"""Progress displays, and text that is safe to print.

Progress is a bar with rate and ETA on a terminal, plain lines elsewhere. It goes to
stderr, so that stdout has only results. Names and ids from files are untrusted: control
characters in them are escaped before they are printed.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

PLAIN_INTERVAL_S = 10.0
"""Seconds between two lines when stderr is not a terminal."""


@contextmanager
def progress(
    label: str, total: int, unit: str, *, unit_bytes: float = 0.0, initial: int = 0
) -> Iterator[tqdm[Any]]:
    """Open a progress display; call `update(n)` on it as work gets done.

    Args:
        label: name of the work, such as ``prepare``; empty shows nothing.
        total: number of units of work.
        unit: name of one unit, such as ``slice``.
        unit_bytes: mean size of a unit, bytes; above 0 adds the rate in MB/s.
        initial: units that were done before, which do not count in the rate.

    Yields:
        The display: `update(n)` adds n units, `set_postfix_str(text)` adds a text after
        the rate.
    """
    on_terminal = sys.stderr.isatty()
    with _Display(
        unit_bytes=unit_bytes,
        total=total,
        initial=initial,
        desc=label,
        disable=not label,
        unit=f" {unit}",
        unit_scale=total >= 100_000,
        file=sys.stderr if on_terminal else _Lines(),
        **_size(on_terminal=on_terminal),
        mininterval=0.2 if on_terminal else PLAIN_INTERVAL_S,
        bar_format=_BAR_FORMAT if on_terminal else _PLAIN_FORMAT,
    ) as bar:
        yield bar


def _size(*, on_terminal: bool) -> dict[str, int | bool]:
    """Options of tqdm for the width of a bar."""
    if not on_terminal:
        return {"dynamic_ncols": False}
    if 0 in os.get_terminal_size(sys.stderr.fileno()):
        # `docker run -t` has a terminal of size 0, on which tqdm would show nothing.
        return {"ncols": 100, "nrows": 24}
    return {"dynamic_ncols": True}


class _Display(tqdm):  # type: ignore[type-arg]  # tqdm's class takes none at run time
    """A tqdm with ``{bytes_rate}`` in its format, such as ``, 53.1 MB/s``."""

    def __init__(self, *, unit_bytes: float, **options: Any) -> None:
        self._unit_bytes = unit_bytes
        super().__init__(**options)

    @property
    def format_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().format_dict)
        rate = state.get("rate")
        if rate is None and state["elapsed"]:
            rate = (state["n"] - state["initial"]) / state["elapsed"]
        mb_per_s = (rate or 0.0) * self._unit_bytes / 1e6
        shown = f", {mb_per_s:.1f} MB/s" if self._unit_bytes else ""
        return state | {"bytes_rate": shown}


# tqdm's own lock is also for other processes. It has a name in /dev/shm for a moment,
# which stays there if the process is killed then.
_Display.set_lock(threading.RLock())


class _Lines:
    """Writes each state of a display to stderr as a separate line."""

    def write(self, text: str) -> None:
        line = text.strip()
        if line:
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


_BAR_FORMAT = (
    "{l_bar}{bar}| {n_fmt}/{total_fmt} "
    "[{elapsed}<{remaining}, {rate_noinv_fmt}{bytes_rate}{postfix}]"
)
_PLAIN_FORMAT = (
    "{desc}: {n_fmt} of {total_fmt}{unit}s, {rate_noinv_fmt}{bytes_rate}, "
    "{elapsed} gone, {remaining} left{postfix}"
)


def printable(text: str) -> str:
    """Escape what cannot be printed, including line ends."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode()
        for each in text
    )


def printable_lines(text: str) -> str:
    """Escape what cannot be printed, except line ends."""
    return "\n".join(map(printable, text.split("\n")))
