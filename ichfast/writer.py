"""Writing the shards of one unit: all of them complete, or none of the files.

Slices go straight to the files, so memory does not grow with a unit.

Shape letters: H rows, W columns.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import google_crc32c
import numpy as np
import numpy.typing as npt

from ichfast.checksums import combine
from ichfast.files import atomic_path, begin_flush, make_folder
from ichfast.levels import SMALL_LEVEL, SOURCE_LEVEL, reduce_to_256
from ichfast.shards import (
    NPY_HEADER_BYTES,
    PIXEL_DTYPE,
    Shard,
    npy_header,
    shard_name,
    shard_path,
)

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
        self._files: dict[tuple[int, int], dict[int, _ShardFile]] = {}
        for level in levels:
            make_folder(store / f"level-{level}")

    def add(self, stored_HW: npt.NDArray[np.uint16]) -> tuple[str, int, dict[int, int]]:
        """Append one slice.

        Args:
            stored_HW: shape (H, W), uint16, HU + `HU_OFFSET`. Not changed.

        Returns:
            Its shard's name, its row in the shard, and its checksum at each level.
        """
        rows, columns = stored_HW.shape
        name = shard_name(self._unit, rows, columns)
        if (rows, columns) not in self._files:
            self._files[rows, columns] = self._begin(name)
        files = self._files[rows, columns]
        row = files[SOURCE_LEVEL].count
        sums = {SOURCE_LEVEL: files[SOURCE_LEVEL].append(stored_HW)}
        if SMALL_LEVEL in files:
            sums[SMALL_LEVEL] = files[SMALL_LEVEL].append(reduce_to_256(stored_HW))
        return name, row, sums

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
                    name=shard_name(self._unit, rows, columns),
                    rows=rows,
                    columns=columns,
                    count=files[SOURCE_LEVEL].count,
                    crc32c={level: file.complete() for level, file in files.items()},
                )
                for (rows, columns), files in self._files.items()
            ]
        self.shards = sorted(shards, key=lambda shard: shard.name)

    def _begin(self, name: str) -> dict[int, _ShardFile]:
        paths = {level: shard_path(self._store, name, level) for level in self._levels}
        return {
            level: _ShardFile(self._stack.enter_context(atomic_path(path)))
            for level, path in paths.items()
        }


class _ShardFile:
    """One .npy file growing slice by slice; the header comes last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shape_HW: tuple[int, ...] = ()
        self._rows_crc32c = 0
        self._num_unflushed = 0
        self.count = 0
        path.write_bytes(bytes(NPY_HEADER_BYTES))

    def append(self, stored_HW: npt.NDArray[np.uint16]) -> int:
        """Add one slice; return its checksum."""
        row = np.ascontiguousarray(stored_HW, dtype=PIXEL_DTYPE)
        crc32c = int(google_crc32c.value(row))
        # Opened for each slice: a unit may hold hundreds of shapes, and opening
        # costs a hundredth of what writing half a megabyte does.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        try:
            left = row.data.cast("B")
            while left:
                left = left[os.write(descriptor, left) :]
            self._num_unflushed += row.nbytes
            if self._num_unflushed >= FLUSH_BYTES:
                begin_flush(descriptor)
                self._num_unflushed = 0
        finally:
            os.close(descriptor)
        self._shape_HW = row.shape
        self._rows_crc32c = combine(self._rows_crc32c, crc32c, row.nbytes)
        self.count += 1
        return crc32c

    def complete(self) -> int:
        """Write the header, known last; return the checksum of the whole file."""
        header = npy_header((self.count, *self._shape_HW))
        with self._path.open("r+b") as file:
            file.write(header)
        num_bytes = self.count * math.prod(self._shape_HW) * PIXEL_DTYPE.itemsize
        crc32c = int(google_crc32c.value(header))
        return combine(crc32c, self._rows_crc32c, num_bytes)
