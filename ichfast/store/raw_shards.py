"""Raw files of shards: .npy files, readable by anyone.

The file is numpy's format 1.0, (n, rows, columns) little-endian uint16 in C order. Its
header is padded to 4,096 bytes, so slices of 512x512 start on a page. A `Shard`
determines the size of the file and every byte of its header, which is compared.

Shape letters: N slices in the shard, H rows, W columns.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt

from ichfast.store.levels import halve_into
from ichfast.store.shard_file import GrowingFile, ReadFile, damage_error
from ichfast.store.shards import (
    NPY_HEADER_BYTES,
    PIXEL_DTYPE,
    Shard,
    shard_checksum,
    shard_path,
)
from ichfast.system.memory import ThreadMemory

_whole = ThreadMemory()
"""The slice that a thread halves, small enough to stay in the processor's cache."""


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The header of a file with that shape: `NPY_HEADER_BYTES`, padded with spaces.

    Source:
        numpy.lib.format, version 1.0: magic, uint16 length, a literal, newline.
    """
    fields = f"{{'descr': '{PIXEL_DTYPE.str}', 'fortran_order': False, "
    literal = f"{fields}'shape': {shape}, }}".encode("latin-1")
    length = NPY_HEADER_BYTES - 10
    magic = b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little")
    return magic + literal.ljust(length - 1) + b"\n"


class RawReader:
    """A raw file open for reading. Safe to share between threads.

    Args:
        store: the store's folder.
        shard: what the store's header says of it.
        level: one of the store's.
        past_cache: read past the page cache where that is possible.

    Raises:
        StoreError: the file cannot be opened, or its header is not this shard's.
    """

    def __init__(
        self, store: Path, shard: Shard, level: int, *, past_cache: bool
    ) -> None:
        shape = shard.shape(level)
        self.path = shard_path(store, shard.name, level)
        """Path of the file."""
        self.slice_shape = shape[1:]
        """Rows and columns of its slices."""
        self._store = store
        self._file = ReadFile(self.path, past_cache=past_cache)
        header = np.empty(NPY_HEADER_BYTES, np.uint8)
        self._file.read(0, header)
        if header.tobytes() != npy_header(shape):
            raise damage_error(
                self.path, store, f"its header is not that of uint16 {shape}"
            )

    def read_into(
        self,
        row: int,
        out_HW: npt.NDArray[np.uint16],
        *,
        halvings: int = 0,
        crc32c: int | None = None,
    ) -> None:
        """Read a slice, halved as often as asked.

        Args:
            row: the slice's row in this shard.
            out_HW: shape of the halved slice, uint16, C order; overwritten.
            halvings: see `ichfast.store.levels.halve_into`.
            crc32c: the checksum to compare the slice with; None compares nothing.

        Raises:
            StoreError: the slice is damaged, or the file has become shorter or cannot
                be read.
        """
        whole_HW = out_HW if halvings == 0 else _whole.array(*self.slice_shape)
        self._file.read(NPY_HEADER_BYTES + row * whole_HW.nbytes, whole_HW)
        if crc32c is not None and (found := google_crc32c.value(whole_HW)) != crc32c:
            raise damage_error(
                self.path,
                self._store,
                f"row {row} has the CRC-32C {found:#010x}, expected {crc32c:#010x}",
            )
        if halvings:
            halve_into(whole_HW, halvings, out_HW)


class RawWriter:
    """A raw file that grows slice by slice; its header is written last.

    Args:
        path: an empty file.
        shape: rows and columns of its slices.
    """

    def __init__(self, path: Path, shape: Sequence[int]) -> None:
        self.path = path
        """Path of the file."""
        self._shape = shape
        self._file = GrowingFile(path)
        self.row_crc32c = array("L")
        """The checksum of each slice."""
        path.write_bytes(bytes(NPY_HEADER_BYTES))

    def append(self, stored_HW: npt.NDArray[np.uint16]) -> int:
        """Add one slice; return its checksum."""
        row_HW = np.ascontiguousarray(stored_HW, dtype=PIXEL_DTYPE)
        self._file.append(row_HW.data.cast("B"))
        self.row_crc32c.append(int(google_crc32c.value(row_HW)))
        return self.row_crc32c[-1]

    def close(self) -> None:
        """Close the file; the next slice opens it again."""
        self._file.close()

    def complete(self) -> int:
        """Write the header; return the file's checksum."""
        with self.path.open("r+b") as file:
            file.write(npy_header((len(self.row_crc32c), *self._shape)))
        return shard_checksum(self.row_crc32c)


def check_raw_file(
    file: Path, shape: tuple[int, int, int]
) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Read every byte of a raw file.

    Args:
        file: of the size that its shard promises.
        shape: (N, H, W) of its array.

    Returns:
        A line if the header is damaged, and the checksum of each slice, shape (N,).

    Raises:
        OSError: the file cannot be read.
    """
    count, rows, columns = shape
    with file.open("rb") as opened:
        header = opened.read(NPY_HEADER_BYTES)
        row_bytes = (opened.read(2 * rows * columns) for _ in range(count))
        found_N = np.fromiter(map(google_crc32c.value, row_bytes), np.int64, count)
    is_sound = header == npy_header(shape)
    problem = f"{file} is damaged: its header is not that of uint16 {shape}"
    return [] if is_sound else [problem], found_N
