"""A reader of slices that takes its time, importable by workers without pytest."""

from __future__ import annotations

import time
from collections.abc import Iterator

from ichfast.dicom.slices import Slice, read_slices


def slow_read(content: bytes, _name: str) -> Iterator[Slice]:
    """`read_slices`, 40 ms later."""
    time.sleep(0.04)
    yield from read_slices(content)
