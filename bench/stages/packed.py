"""Packed slices against raw ones: their size, their code, and what reads them.

The code of a slice, in one thread: packing and unpacking, checksums included, against a
copy of the pixels and against other compressors. In the cache each slice is worked on
several times in a row. Out of it there are more slices than most caches hold, each with
memory of its own.

Shape letters: N slices in memory, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import numpy.typing as npt

from bench.harness.measure import Contender, Meter, Record
from bench.harness.workload import Workload
from bench.peers import peers_of, reason_to_skip
from bench.stages.loader import pick_slices
from ichfast.packed import pack, unpack_into
from ichfast.store.store import Store

STAGE = "packed"

UNCACHED_BYTES = 2**29
"""Memory of the slices that are not in the processor's cache."""

CACHED_SLICES, CACHED_TIMES = 16, 32
"""Slices that are in the cache, and how often each is worked on in a row."""

PEER_SHARE = 8
"""A peer works on one of this many slices; its cost per slice is the same."""


@dataclass(frozen=True, slots=True)
class _Memory:
    """Slices in memory."""

    place: str
    """``in cache`` or ``out of cache``."""

    stored_NHW: npt.NDArray[np.uint16]
    out_NHW: npt.NDArray[np.uint16]
    """Memory for the unpacked slices; as many as `stored_NHW`, or one."""

    times: int
    """How often each is worked on in a row."""

    def out_HW(self, number: int) -> npt.NDArray[np.uint16]:
        """Memory for the unpacked slice of a number."""
        return self.out_NHW[number % len(self.out_NHW)]
