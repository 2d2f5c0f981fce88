"""Writing the shards of one unit: all of them complete, or none of the files.

Slices go straight to the files, so memory does not grow with a unit. Only the files of
the last shape are open: a unit may hold hundreds of shapes.

Shape letters: H rows, W columns.

The CRC32C of parts put together.

A shard grows slice by slice, and each slice has its own checksum. The checksum of
the whole file follows from those of its parts and their lengths, so that no byte is
read twice.

A checksum is a polynomial over GF(2), modulo CRC32C's: 32 bits, that of x^0 highest.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType

import google_crc32c
import numpy as np
import numpy.typing as npt

from ichfast.store.levels import SMALL_LEVEL, SOURCE_LEVEL, reduce_to_256
from ichfast.store.shards import (
    NPY_HEADER_BYTES,
    PIXEL_DTYPE,
    Shard,
    npy_header,
    shard_name,
    shard_path,
)
from ichfast.system.files import atomic_path, begin_flush, make_folder

FLUSH_BYTES = 32 * 2**20
"""After so many bytes the disk is set to work, so that the end of a unit is no wait."""


class UnitWriter:
    """Takes the slices of one unit in turn. Use it as a context manager.

    Leaving the block completes the files, flushes them to the disk and renames
    them; leaving it by an exception removes them.

    Args:
        store: the store's folder.
        unit: the unit's number.
        levels: (512, 256) or (512,).
    """

    def __init__(self, store: Path, unit: int, levels: Sequence[int]) -> None:
        self.shards: list[Shard] = []
        """What was written, by name; empty until the block is left."""
        self._store = store
        self._unit = unit
        self._levels = levels
        self._stack = ExitStack()
        self._begun: dict[tuple[int, ...], _Begun] = {}
        self._last: _Begun | None = None
        for level in levels:
            make_folder(store / f"level-{level}")

    def add(self, stored_HW: npt.NDArray[np.uint16]) -> tuple[str, int, dict[int, int]]:
        """Append one slice.

        Args:
            stored_HW: shape (H, W), uint16, HU + `HU_OFFSET`. Not changed.

        Returns:
            Its shard's name, its row in the shard, and its checksum at each level.
        """
        begun = self._begun.get(stored_HW.shape) or self._begin(stored_HW.shape)
        if begun is not self._last:
            self._close_last()
            self._last = begun
        files = begun.files
        row = files[SOURCE_LEVEL].count
        sums = {SOURCE_LEVEL: files[SOURCE_LEVEL].append(stored_HW)}
        if SMALL_LEVEL in files:
            sums[SMALL_LEVEL] = files[SMALL_LEVEL].append(reduce_to_256(stored_HW))
        return begun.name, row, sums

    def __enter__(self) -> UnitWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            shards = [
                Shard(
                    name=begun.name,
                    rows=rows,
                    columns=columns,
                    count=begun.files[SOURCE_LEVEL].count,
                    crc32c={
                        level: file.complete() for level, file in begun.files.items()
                    },
                )
                for (rows, columns), begun in self._begun.items()
            ]
        self.shards = sorted(shards, key=lambda shard: shard.name)

    def _begin(self, shape_HW: tuple[int, ...]) -> _Begun:
        rows, columns = shape_HW
        name = shard_name(self._unit, rows, columns)
        paths = {level: shard_path(self._store, name, level) for level in self._levels}
        files = {}
        for level, path in paths.items():
            files[level] = _ShardFile(self._stack.enter_context(atomic_path(path)))
            # Before the file is flushed and renamed, or removed.
            self._stack.callback(files[level].close)
        self._begun[shape_HW] = _Begun(name, files)
        return self._begun[shape_HW]

    def _close_last(self) -> None:
        if self._last is not None:
            for file in self._last.files.values():
                file.close()


@dataclass(frozen=True, slots=True)
class _Begun:
    """The files of a shard that is being written."""

    name: str
    files: Mapping[int, _ShardFile]
    """For each level."""


class _ShardFile:
    """One .npy file growing slice by slice; the header comes last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shape_HW: tuple[int, ...] = ()
        self._rows_crc32c = 0
        self._num_unflushed = 0
        self._descriptor: int | None = None
        self.count = 0
        path.write_bytes(bytes(NPY_HEADER_BYTES))

    def append(self, stored_HW: npt.NDArray[np.uint16]) -> int:
        """Add one slice; return its checksum."""
        row = np.ascontiguousarray(stored_HW, dtype=PIXEL_DTYPE)
        crc32c = int(google_crc32c.value(row))
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        left = row.data.cast("B")
        while left:
            left = left[os.write(self._descriptor, left) :]
        self._num_unflushed += row.nbytes
        if self._num_unflushed >= FLUSH_BYTES:
            begin_flush(self._descriptor)
            self._num_unflushed = 0
        self._shape_HW = row.shape
        self._rows_crc32c = combine(self._rows_crc32c, crc32c, row.nbytes)
        self.count += 1
        return crc32c

    def close(self) -> None:
        """Close the file; the next slice opens it again."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)

    def complete(self) -> int:
        """Write the header, known last; return the checksum of the whole file."""
        header = npy_header((self.count, *self._shape_HW))
        with self._path.open("r+b") as file:
            file.write(header)
        num_bytes = self.count * math.prod(self._shape_HW) * PIXEL_DTYPE.itemsize
        crc32c = int(google_crc32c.value(header))
        return combine(crc32c, self._rows_crc32c, num_bytes)


_POLYNOMIAL = 0x82F6_3B78
"""CRC32C's, without x^32.

Source:
    RFC 3720, appendix B.4 (Castagnoli).
"""

_ONE = 1 << 31
_X = 1 << 30


def combine(first: int, second: int, num_bytes: int) -> int:
    """The CRC32C of two parts, one behind the other.

    Args:
        first: CRC32C of the first part.
        second: CRC32C of the second part.
        num_bytes: length of the second part.

    Source:
        crc32_combine of zlib: so many zero bytes multiply the first checksum by
        x^(8 * num_bytes).
    """
    t0, t1, t2, t3 = _shift_tables(num_bytes)
    shifted = t0[first & 255] ^ t1[first >> 8 & 255]
    return shifted ^ t2[first >> 16 & 255] ^ t3[first >> 24] ^ second


@lru_cache(maxsize=256)
def _shift_tables(num_bytes: int) -> tuple[list[int], ...]:
    """What so many zero bytes make of each byte, at each of its four places."""
    shift = _power_of_x(8 * num_bytes)
    tables: tuple[list[int], ...] = ([0], [0], [0], [0])
    for bit in range(32):
        product = _times(1 << bit, shift)
        # Products are linear: those of the numbers with this bit, and none above.
        table = tables[bit // 8]
        table += [product ^ below for below in table]
    return tables


def _power_of_x(exponent: int) -> int:
    """X to a power."""
    power, square = _ONE, _X
    while exponent:
        if exponent & 1:
            power = _times(power, square)
        square = _times(square, square)
        exponent >>= 1
    return power


def _times(first: int, second: int) -> int:
    """The product of two polynomials."""
    product = 0
    for bit in range(31, -1, -1):
        if first >> bit & 1:
            product ^= second
        # Times x; where a bit falls out, the polynomial comes in.
        second = second >> 1 ^ (_POLYNOMIAL if second & 1 else 0)
    return product
