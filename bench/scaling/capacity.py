"""What holds every slice of the competition: disks, memories and GPUs of common sizes.

A size is its nominal one, in 10^9 bytes. A share of it is left for everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.harness.measure import Record
from bench.scaling.quantities import packed_record
from ichfast.loading.cache import RESERVED_SHARE
from ichfast.store.levels import LEVELS

NUM_SLICES = 752_803
"""Training slices of the competition."""

GB = 1e9

SIZES_GB = {
    "disk": (64, 128, 256, 512, 1_000),
    "memory": (32, 64, 128, 256, 512),
    "GPU": (24, 40, 48, 80, 96, 141, 180, 288),
}
"""Common sizes of what holds slices."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """A level of a store, raw or packed."""

    level: int
    """The slices are squares of this side."""

    name: str
    """``raw`` or ``packed``."""

    share: float | None
    """Bytes, divided by those of the raw level; None if not measured."""

    @property
    def slice_bytes(self) -> float | None:
        """Bytes of a slice, or None."""
        return None if self.share is None else 2 * self.level**2 * self.share

    @property
    def total_gb(self) -> float | None:
        """10^9 bytes of all slices, or None."""
        return self.slice_bytes and NUM_SLICES * self.slice_bytes / GB

    def holder(self, kind: str) -> str:
        """Name the smallest of `SIZES_GB` that holds all slices; ``none`` if none."""
        assert self.total_gb is not None
        fitting = [
            size
            for size in SIZES_GB[kind]
            if self.total_gb <= (1 - RESERVED_SHARE) * size
        ]
        return f"{fitting[0]:,} GB" if fitting else "none"


def encodings(records: Sequence[Record]) -> list[Encoding]:
    """List each level raw and packed, with its measured size."""
    found = []
    for level in LEVELS:
        record = packed_record(records, level)
        share = record.estimate.median / 100 if record and record.estimate else None
        found += [Encoding(level, "raw", 1.0), Encoding(level, "packed", share)]
    return found
