"""Writing the shards of one unit: all files complete, or none at all.

Slices go straight to the files, so memory does not grow with the unit. Only the files
of the last shape are open, because a unit may have hundreds of shapes.

Shape letters: H rows, W columns.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import google_crc32c
import numpy as np
import numpy.typing as npt

from ichfast.store.levels import SOURCE_LEVEL, level_folder, reduce_to_level
from ichfast.store.shards import (
    NPY_HEADER_BYTES,
    PIXEL_DTYPE,
    Shard,
    npy_header,
    shard_checksum,
    shard_name,
    shard_path,
)
from ichfast.system.files import atomic_path, begin_flush, make_folder

FLUSH_BYTES = 32 * 2**20
"""Bytes written before the disk is told to start writing, so that the flush at the end
of a unit is short."""


class UnitWriter:
    """Writes the slices of one unit, one after the other. Use it as a context manager.

    At the end of the block the files are completed, flushed to the disk and renamed.
    If the block raises, they are removed.

    Args:
        store: the store's folder.
        unit: the unit's number.
        levels: the store's, the source level first.
    """

    def __init__(self, store: Path, unit: int, levels: Sequence[int]) -> None:
        self.shards: list[Shard] = []
        """The shards by name; empty until the block has ended."""
        self._store = store
        self._unit = unit
        self._levels = levels
        self._stack = ExitStack()
        self._begun: dict[tuple[int, ...], _Begun] = {}
        self._last: _Begun | None = None
        for level in levels:
            make_folder(store / level_folder(level))

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
        row = begun.count
        sums = {}
        for level, file in begun.files.items():
            is_source = level == SOURCE_LEVEL
            sums[level] = file.append(
                stored_HW if is_source else reduce_to_level(stored_HW, level)
            )
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
                    count=begun.count,
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
        files = {}
        for level in self._levels:
            path = shard_path(self._store, name, level)
            files[level] = _ShardFile(self._stack.enter_context(atomic_path(path)))
            # Runs before the file is flushed and renamed, or removed.
            self._stack.callback(files[level].close)
        self._begun[shape_HW] = _Begun(name, files)
        return self._begun[shape_HW]

    def _close_last(self) -> None:
        if self._last is not None:
            for file in self._last.files.values():
                file.close()


@dataclass(frozen=True, slots=True)
class _Begun:
    """A shard that is being written."""

    name: str
    files: Mapping[int, _ShardFile]
    """Its file at each level."""

    @property
    def count(self) -> int:
        """Slices written so far."""
        return len(self.files[SOURCE_LEVEL].row_crc32c)


class _ShardFile:
    """A .npy file that grows slice by slice; the header is written last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shape_HW: tuple[int, ...] = ()
        self._num_unflushed = 0
        self._descriptor: int | None = None
        self.row_crc32c = array("L")
        """The checksum of each slice."""
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
        self.row_crc32c.append(crc32c)
        return crc32c

    def close(self) -> None:
        """Close the file; the next slice opens it again."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)

    def complete(self) -> int:
        """Write the header; return the file's checksum."""
        with self._path.open("r+b") as file:
            file.write(npy_header((len(self.row_crc32c), *self._shape_HW)))
        return shard_checksum(self.row_crc32c)
