"""Progress of long work: a bar with rate and ETA on a terminal, plain lines else.

Everything goes to stderr, so that stdout carries results only.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

PLAIN_INTERVAL_S = 10.0
"""Seconds between two lines when stderr is not a terminal."""


@contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[tqdm[Any]]:
    """Open a progress display; call `update(n)` on it as work gets done.

    Args:
        label: what is being done, such as ``prepare``; empty shows nothing.
        total: units of work altogether.
        unit: what is counted, in the singular, such as ``slice``.

    Yields:
        The display: `update(n)` adds n units, `set_postfix_str(text)` adds a
        remark behind the rate.
    """
    on_terminal = sys.stderr.isatty()
    bar: tqdm[Any]
    with tqdm(
        total=total,
        desc=label,
        disable=not label,
        unit=f" {unit}",
        unit_scale=total >= 100_000,
        file=sys.stderr if on_terminal else _Lines(),
        dynamic_ncols=on_terminal,
        mininterval=0.2 if on_terminal else PLAIN_INTERVAL_S,
        bar_format=_BAR_FORMAT if on_terminal else _PLAIN_FORMAT,
    ) as bar:
        yield bar


class _Lines:
    """Writes each state of a display to stderr as a line of its own."""

    def write(self, text: str) -> None:
        line = text.strip()
        if line:
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


_BAR_FORMAT = (
    "{l_bar}{bar}| {n_fmt}/{total_fmt} "
    "[{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
)
_PLAIN_FORMAT = (
    "{desc}: {n_fmt} of {total_fmt}{unit}s, {rate_noinv_fmt}, {elapsed} gone, "
    "{remaining} left{postfix}"
)
