"""A shard: slices of one unit that share a shape, one .npy file in each level.

1. The file is numpy's format 1.0, (n, rows, columns) little-endian uint16 in C
   order. Its header is padded to 4,096 bytes, so slices of 512x512 start on a page.
2. ``00000.npy`` holds a unit's 512x512 slices, ``00000-638x490.npy`` those of 638
   rows and 490 columns. The number is the unit's; a level does not change the name.
3. A `Shard` says everything about its files, to the last byte of their headers.

Shape letters: N slices in the shard, H rows, W columns.
"""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ichfast.errors import StoreError
from ichfast.store.levels import SOURCE_LEVEL

NPY_HEADER_BYTES = 4096
DIRECT_BYTES = 4096
"""What reads past the page cache are a multiple of, in place and length."""
PIXEL_DTYPE = np.dtype("<u2")
MAX_PIXELS = 4096 * 4096
"""Largest slice, rows times columns."""

_NAME = re.compile(r"([0-9]{5,9})(?:-[0-9]+x[0-9]+)?\.npy", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """What a store's header says of a shard."""

    name: str
    """Of the file, in the folder of every level."""

    rows: int
    columns: int
    """Of its slices at level 512."""

    count: int
    """Slices in it, unmapped ones included."""

    crc32c: Mapping[int, int]
    """Checksum of the whole file, for each level."""

    def shape(self, level: int) -> tuple[int, int, int]:
        """(n, rows, columns) of the file at `level`."""
        if level == SOURCE_LEVEL:
            return self.count, self.rows, self.columns
        return self.count, level, level

    def num_bytes(self, level: int) -> int:
        """The exact size of the file at `level`, bytes."""
        count, rows, columns = self.shape(level)
        return NPY_HEADER_BYTES + count * rows * columns * PIXEL_DTYPE.itemsize

    def to_json(self) -> dict[str, Any]:
        """As it stands in `store.json`."""
        sizes = {str(level): self.num_bytes(level) for level in self.crc32c}
        sums = {str(level): value for level, value in self.crc32c.items()}
        return {**asdict(self), "bytes": sizes, "crc32c": sums}

    @staticmethod
    def from_json(found: Mapping[str, Any], levels: Sequence[int]) -> Shard:
        """Read what `to_json` made, trusting nothing.

        Raises:
            ValueError, LookupError, TypeError: missing, or out of range.
        """
        rows = integer_field(found, "rows", 1, MAX_PIXELS)
        columns = integer_field(found, "columns", 1, MAX_PIXELS // rows)
        shard = Shard(
            name=str(found["name"]),
            rows=rows,
            columns=columns,
            count=integer_field(found, "count", 1, 2**31 - 1),
            crc32c={
                level: integer_field(found["crc32c"], str(level), 0, 2**32 - 1)
                for level in levels
            },
        )
        unit = _NAME.fullmatch(shard.name)
        if not unit or shard.name != shard_name(int(unit[1]), rows, columns):
            raise ValueError(f"shard name {shard.name!r} does not fit its shape")
        if found["bytes"] != shard.to_json()["bytes"]:
            raise ValueError(f"shard {shard.name} has bytes that do not fit its shape")
        return shard


def integer_field(found: Mapping[str, Any], name: str, low: int, high: int) -> int:
    """An integer out of JSON that nobody vouches for.

    Raises:
        ValueError, LookupError, TypeError: missing, or not from `low` to `high`.
    """
    value = found[name]
    if type(value) is not int or not low <= value <= high:
        raise ValueError(
            f"{name} is {value!r}, expected an integer from {low} to {high}"
        )
    return value


def shard_name(unit: int, rows: int, columns: int) -> str:
    """The file name of a unit's slices of one shape, the same at every level."""
    shape = "" if rows == columns == SOURCE_LEVEL else f"-{rows}x{columns}"
    return f"{unit:05d}{shape}.npy"


def shard_path(store: Path, name: str, level: int) -> Path:
    """Where the file of that name stands in the folder `store`."""
    return store / f"level-{level}" / name


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The first 4,096 bytes of a shard of that shape, padded with spaces.

    Source:
        numpy.lib.format, version 1.0: magic, uint16 length, a literal, newline.
    """
    fields = f"{{'descr': '{PIXEL_DTYPE.str}', 'fortran_order': False, "
    literal = f"{fields}'shape': {shape}, }}".encode("latin-1")
    length = NPY_HEADER_BYTES - 10
    magic = b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little")
    return magic + literal.ljust(length - 1) + b"\n"


class OpenShard:
    """A shard's file at one level, open for reading. Safe to share between threads.

    Reads are system calls into the caller's memory, not a memory map: a file that is
    cut short or a disk that fails is an error here, where a map would end the
    process (SIGBUS). The file is closed with the last reference to this object.

    Args:
        store: the store's folder.
        shard: what the store's header says of it.
        level: one of the store's.
        past_cache: read from the disk to the caller's memory (O_DIRECT), without a
            place in the page cache, where slice, memory and file system allow it.

    Raises:
        StoreError: the file cannot be opened, or is not this shard's.
    """

    def __init__(
        self, store: Path, shard: Shard, level: int, *, past_cache: bool = False
    ) -> None:
        self._path = shard_path(store, shard.name, level)
        shape = shard.shape(level)
        self.slice_shape = shape[1:]
        """Rows and columns of its slices."""
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(
                f"cannot open {self._path}: {error.strerror}; if it is gone, copy it "
                "back; if too many files are open, raise the limit (`ulimit -n`)"
            ) from error
        weakref.finalize(self, os.close, self._descriptor)
        self._direct = self._open_direct() if past_cache else None
        header = np.empty(NPY_HEADER_BYTES, np.uint8)
        self._read(0, header)
        if header.tobytes() != npy_header(shape):
            raise StoreError(
                f"{self._path} is damaged: its header is not that of uint16 {shape}; "
                "delete the store and run `ichfast prepare` again"
            )

    def _open_direct(self) -> int | None:
        """A second descriptor that reads past the page cache, where that is known."""
        try:
            direct = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError:
            return None
        weakref.finalize(self, os.close, direct)
        return direct

    def read_into(self, row: int, out_HW: npt.NDArray[np.uint16]) -> None:
        """Read a slice; waits for the disk, without the interpreter's lock.

        Args:
            row: of the slice in this shard.
            out_HW: shape `slice_shape`, uint16, C order; overwritten.

        Raises:
            StoreError: the file has become shorter, or cannot be read.
        """
        self._read(NPY_HEADER_BYTES + row * out_HW.nbytes, out_HW)

    def _read(self, start: int, out: npt.NDArray[Any]) -> None:
        """Read bytes from `start` on until `out` is full."""
        view = out.data.cast("B")
        descriptor = self._descriptor
        if self._direct is not None:
            # O_DIRECT wants whole pages, in the file and in memory.
            places = start | len(view) | out.ctypes.data
            if places % DIRECT_BYTES == 0:
                descriptor = self._direct
        num_read = 0
        while num_read < len(view):
            try:
                found = os.preadv(descriptor, [view[num_read:]], start + num_read)
            except OSError as error:
                raise StoreError(
                    f"cannot read {self._path}: {error.strerror}; check the disk, then "
                    "the store with `ichfast verify`"
                ) from error
            if not found:
                raise StoreError(
                    f"{self._path} has {os.fstat(self._descriptor).st_size:,} bytes, "
                    f"expected {start + len(view):,} or more: it was cut short since "
                    "it was opened; mend it with `ichfast verify STORE --repair SOURCE`"
                )
            num_read += found
            descriptor = self._descriptor  # for a rest, which is no whole page
