"""A shard: slices of one unit that share a shape, one .npy file in each level.

1. The file is numpy's format 1.0, (n, rows, columns) little-endian uint16 in C
   order. Its header is padded to 4,096 bytes, so slices of 512x512 start on a page.
2. ``00000.npy`` holds a unit's 512x512 slices, ``00000-638x490.npy`` those of 638
   rows and 490 columns. The number is the unit's; a level does not change the name.
3. A `Shard` determines the size of its files and every byte of their headers.
4. The checksum of a shard's file is that of its rows' checksums (`shard_checksum`). The
   header is not part of it: it is compared byte by byte.

Shape letters: N slices in the shard, H rows, W columns.
"""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from ichfast.errors import StoreError
from ichfast.store.levels import SOURCE_LEVEL, level_folder

NPY_HEADER_BYTES = 4096
"""Size of a shard's header: one page, so that slices of 512x512 start on pages."""

DIRECT_BYTES = 4096
"""Reads past the page cache start at, and have lengths of, multiples of this."""

PIXEL_DTYPE = np.dtype("<u2")
"""Type of a stored pixel: little-endian uint16."""

MAX_PIXELS = 4096 * 4096
"""Upper limit of a slice's rows times columns; `prepare` rejects larger ones."""

_NAME = re.compile(r"([0-9]{5,9})(?:-[0-9]+x[0-9]+)?\.npy", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """The entry of a shard in a store's header."""

    name: str
    """Name of its file in the folder of every level."""

    rows: int
    """Rows of its slices at level 512."""

    columns: int
    """Columns of its slices at level 512."""

    count: int
    """Number of slices, including those that no row of the table points to."""

    crc32c: Mapping[int, int]
    """For each level, the file's `shard_checksum`."""

    def shape(self, level: int) -> tuple[int, int, int]:
        """Shape (N, H, W) of the array in the file at `level`."""
        if level == SOURCE_LEVEL:
            return self.count, self.rows, self.columns
        return self.count, level, level

    def num_bytes(self, level: int) -> int:
        """Exact size of the file at `level`, bytes."""
        count, rows, columns = self.shape(level)
        return NPY_HEADER_BYTES + count * rows * columns * PIXEL_DTYPE.itemsize

    def to_json(self) -> dict[str, Any]:
        """The shard as an object of `store.json`."""
        sizes = {str(level): self.num_bytes(level) for level in self.crc32c}
        sums = {str(level): value for level, value in self.crc32c.items()}
        return {**asdict(self), "bytes": sizes, "crc32c": sums}

    @staticmethod
    def from_json(found: Mapping[str, Any], levels: Sequence[int]) -> Shard:
        """Read what `to_json` made, and check every type and range.

        Args:
            found: an object from an untrusted `store.json`.
            levels: the store's.

        Raises:
            ValueError, LookupError, TypeError: a field is missing or out of range.
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
    """Take an integer out of untrusted JSON.

    Args:
        found: a JSON object.
        name: of the field.
        low: smallest allowed value.
        high: largest allowed value.

    Raises:
        ValueError, LookupError, TypeError: the field is missing or out of range.
    """
    value = found[name]
    if type(value) is not int or not low <= value <= high:
        raise ValueError(
            f"{name} is {value!r}, expected an integer from {low} to {high}"
        )
    return value


def shard_name(unit: int, rows: int, columns: int) -> str:
    """The file name of a unit's shard for slices of one shape, at every level.

    Args:
        unit: the unit's number.
        rows: of the slices at level 512.
        columns: of the slices at level 512.
    """
    shape = "" if rows == columns == SOURCE_LEVEL else f"-{rows}x{columns}"
    return f"{unit:05d}{shape}.npy"


def shard_path(store: Path, name: str, level: int) -> Path:
    """The path of a shard's file.

    Args:
        store: the store's folder.
        name: the shard's.
        level: one of the store's.
    """
    return store / level_folder(level) / name


def shard_checksum(row_crc32c: Iterable[int]) -> int:
    """The checksum of a shard's file: the CRC-32C of the checksums of all its rows.

    Args:
        row_crc32c: the CRC-32C of each row's bytes, in the order of rows. They are
            put together as 4 bytes each, little-endian.
    """
    return int(google_crc32c.value(np.fromiter(row_crc32c, "<u4").tobytes()))


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The header of a shard with that shape: `NPY_HEADER_BYTES`, padded with spaces.

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
        past_cache: read from the disk into the caller's memory without filling the
            page cache (O_DIRECT), where slice, memory and file system allow it.

    Raises:
        StoreError: the file cannot be opened, or its header is not this shard's.
    """

    def __init__(
        self, store: Path, shard: Shard, level: int, *, past_cache: bool = False
    ) -> None:
        self.path = shard_path(store, shard.name, level)
        """Path of the file."""
        shape = shard.shape(level)
        self.slice_shape = shape[1:]
        """Rows and columns of its slices."""
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(
                f"cannot open {self.path}: {error.strerror}; if it is gone, copy it "
                "back; if too many files are open, raise the limit (`ulimit -n`)"
            ) from error
        weakref.finalize(self, os.close, self._descriptor)
        self._direct = self._open_direct() if past_cache else None
        header = np.empty(NPY_HEADER_BYTES, np.uint8)
        self._read(0, header)
        if header.tobytes() != npy_header(shape):
            raise StoreError(
                f"{self.path} is damaged: its header is not that of uint16 {shape}; "
                f"copy it back, or mend it with `ichfast verify {store} --repair "
                "SOURCE`"
            )

    def _open_direct(self) -> int | None:
        """A second descriptor that reads past the page cache, if that is supported."""
        try:
            direct = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError:
            return None
        weakref.finalize(self, os.close, direct)
        return direct

    def read_into(self, row: int, out_HW: npt.NDArray[np.uint16]) -> None:
        """Read a slice. Waits for the disk without holding the interpreter's lock.

        Args:
            row: the slice's row in this shard.
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
            # O_DIRECT needs whole pages, in the file and in memory.
            places = start | len(view) | out.ctypes.data
            if places % DIRECT_BYTES == 0:
                descriptor = self._direct
        num_read = 0
        while num_read < len(view):
            try:
                found = os.preadv(descriptor, [view[num_read:]], start + num_read)
            except OSError as error:
                raise StoreError(
                    f"cannot read {self.path}: {error.strerror}; check the disk, then "
                    "the store with `ichfast verify`"
                ) from error
            if not found:
                raise StoreError(
                    f"{self.path} has {os.fstat(self._descriptor).st_size:,} bytes, "
                    f"expected {start + len(view):,} or more: it was cut short since "
                    "it was opened; mend it with `ichfast verify STORE --repair SOURCE`"
                )
            num_read += found
            descriptor = self._descriptor  # what is left is not a whole page
