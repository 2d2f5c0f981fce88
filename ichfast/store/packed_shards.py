"""Packed files of shards: slices as records, a quarter of the bytes, without loss.

A record is what `ichfast.packed` makes of one slice. The file, all little-endian:

    0          ICPSHARD, uint32 version 1, rows, columns, zeros to 64
    64         the records, one behind the other, each a multiple of 64 bytes
    I          index: for each record uint64 place, uint32 bytes, uint32 its CRC-32C,
               then zeros to a multiple of 64 bytes
    end - 64   ICPINDEX, uint64 I, uint64 number of records, uint32 rows, columns,
               CRC-32C of the index without its zeros, zeros; the last 4 bytes are
               the CRC-32C of the 60 before

1. Each byte is checked: header, index and footer when the file is opened, a record by
   its checksums in the index and in itself before it is unpacked.
2. A slice is compared with its checksum in the table by the one in its record, so that
   a record in another's place is noticed without unpacking it.

Shape letters: N slices in the shard, H rows, W columns, R bytes of a record.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt

from ichfast.errors import StoreError
from ichfast.packed import (
    RecordHeader,
    check_record,
    pack,
    read_header,
    unpack_halved_into,
    unpack_into,
)
from ichfast.packed.record import BLOCK, find_layout
from ichfast.store.levels import halve_into
from ichfast.store.shard_file import (
    DIRECT_BYTES,
    GrowingFile,
    ReadFile,
    damage_error,
)
from ichfast.store.shards import PIXEL_DTYPE, Shard, shard_checksum, shard_path
from ichfast.system.memory import ThreadMemory

ALIGNMENT = 64
"""Records, index and footer begin at multiples of this."""

VERSION = 1

HEADER = struct.Struct("<8s3I44x")
"""Magic bytes, version, rows, columns."""

ENTRY = np.dtype([("at", "<u8"), ("bytes", "<u4"), ("crc32c", "<u4")])
"""A record in the index: its place in the file, its size, its checksum."""

FOOTER = struct.Struct("<8s2Q3I24x")
"""Magic bytes, place of the index, number of records, rows, columns, checksum of the
index, zeros. A checksum of these 60 bytes follows."""

FOOTER_BYTES = 64

_record = ThreadMemory()
"""The record that a thread unpacks, with the pages that it lies in."""

_halved = ThreadMemory()
"""The slice that a thread halves more than once."""


def unpack_record(
    record_R: npt.NDArray[np.uint8], halvings: int, out_HW: npt.NDArray[np.uint16]
) -> None:
    """Unpack a record, and halve the slice as often as asked.

    Args:
        record_R: shape (R,), uint8, C order.
        halvings: see `ichfast.store.levels.halve_into`.
        out_HW: shape of the halved slice, uint16, C order; overwritten.

    Raises:
        StoreError: the record is damaged, or of another shape.
    """
    if halvings == 0:
        unpack_into(record_R, out_HW)
    elif halvings == 1:
        unpack_halved_into(record_R, out_HW)
    else:
        rows, columns = read_header(record_R).shape
        halved_HW = _halved.array(-(-rows // 2), -(-columns // 2))
        unpack_halved_into(record_R, halved_HW)
        halve_into(halved_HW, halvings - 1, out_HW)


class PackedReader:
    """A packed file open for reading. Safe to share between threads.

    Args:
        store: the store's folder.
        shard: what the store's header says of it.
        level: one of the store's.
        past_cache: read past the page cache where that is possible.

    Raises:
        StoreError: the file cannot be opened; or its header, index or footer is damaged
            or not this shard's.
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
        self._num_bytes = shard.num_bytes(level)
        self._file = ReadFile(self.path, past_cache=past_cache)
        try:
            self._index_N = _read_index(self._file, shape, self._num_bytes)
        except ValueError as error:
            raise damage_error(self.path, store, str(error)) from error

    @property
    def record_bytes_N(self) -> npt.NDArray[np.int64]:
        """Size of each record, bytes, shape (N,), int64."""
        return self._index_N["bytes"].astype(np.int64)

    def read_into(
        self,
        row: int,
        out_HW: npt.NDArray[np.uint16],
        *,
        halvings: int = 0,
        crc32c: int | None = None,
    ) -> None:
        """Read a slice, halved as often as asked. Its record is always checked.

        Args:
            row: the slice's row in this shard.
            out_HW: shape of the halved slice, uint16, C order; overwritten. Not valid
                after an error.
            halvings: see `ichfast.store.levels.halve_into`.
            crc32c: the checksum that the slice must have; None compares nothing.

        Raises:
            StoreError: the record is damaged, or the file has become shorter or cannot
                be read.
        """
        record_R = self._record(row)
        try:
            self._compare(row, read_header(record_R), crc32c)
            unpack_record(record_R, halvings, out_HW)
        except StoreError as error:
            raise damage_error(self.path, self._store, f"row {row}: {error}") from error

    def read_record_into(
        self, row: int, out_R: npt.NDArray[np.uint8], *, crc32c: int | None = None
    ) -> None:
        """Read a record. Its bytes are always checked.

        Args:
            row: the slice's row in this shard.
            out_R: shape (R,), uint8, the size in `record_bytes_N`; overwritten.
            crc32c: the checksum that the slice must have; None compares nothing.

        Raises:
            StoreError: the record is damaged, or the file has become shorter or cannot
                be read.
        """
        out_R[:] = self._record(row)
        try:
            self._compare(row, check_record(out_R), crc32c)
        except StoreError as error:
            raise damage_error(self.path, self._store, f"row {row}: {error}") from error

    def _record(self, row: int) -> npt.NDArray[np.uint8]:
        """Read a record into memory of this thread, shape (R,)."""
        at, num_bytes, _ = self._index_N[row].item()
        first, end = at, at + num_bytes
        if self._file.is_direct:
            # Whole pages around the record; the last page of the file is not whole.
            first = at // DIRECT_BYTES * DIRECT_BYTES
            end = min(-(-end // DIRECT_BYTES) * DIRECT_BYTES, self._num_bytes)
        pages = _record.bytes(end - first)
        self._file.read(first, pages)
        return pages[at - first : at - first + num_bytes]

    def _compare(self, row: int, header: RecordHeader, crc32c: int | None) -> None:
        """Compare the checksums in a record with those in the index and the table."""
        expected = int(self._index_N["crc32c"][row])
        if header.crc32c != expected:
            raise StoreError(
                f"its record has the CRC-32C {header.crc32c:#010x}, expected "
                f"{expected:#010x}"
            )
        if crc32c is not None and header.pixels_crc32c != crc32c:
            raise StoreError(
                f"it has the CRC-32C {header.pixels_crc32c:#010x}, expected "
                f"{crc32c:#010x}"
            )


class PackedWriter:
    """A packed file that grows slice by slice; index and footer are written last.

    Args:
        path: an empty file.
        shape: rows and columns of its slices.
    """

    def __init__(self, path: Path, shape: Sequence[int]) -> None:
        self.path = path
        """Path of the file."""
        self._shape = shape
        self._file = GrowingFile(path)
        self._index: list[tuple[int, int, int]] = []
        self._end = HEADER.size
        self.row_crc32c = array("L")
        """The checksum of each slice."""
        path.write_bytes(_header(shape))

    def append(self, stored_HW: npt.NDArray[np.uint16]) -> int:
        """Add one slice; return its checksum."""
        record = pack(np.ascontiguousarray(stored_HW, dtype=PIXEL_DTYPE))
        header = read_header(record)
        self._file.append(memoryview(record))
        self._index.append((self._end, len(record), header.crc32c))
        self._end += len(record)
        self.row_crc32c.append(header.pixels_crc32c)
        return header.pixels_crc32c

    def close(self) -> None:
        """Close the file; the next slice opens it again."""
        self._file.close()

    def complete(self) -> int:
        """Write index and footer; return the file's checksum."""
        index = np.array(self._index, ENTRY).tobytes()
        footer = _footer(self._end, index, self._shape)
        self._file.append(memoryview(_padded(index) + footer))
        self.close()
        return shard_checksum(self.row_crc32c)


def check_packed_file(
    file: Path, shape: tuple[int, int, int], num_bytes: int
) -> npt.NDArray[np.int64]:
    """Read every byte of a packed file, and unpack every record.

    Args:
        file: of the size that its shard promises.
        shape: (N, H, W) of its slices.
        num_bytes: its size, bytes.

    Returns:
        The checksum of each slice, shape (N,); -1 for a damaged record.

    Raises:
        StoreError: the file cannot be read, or its header, index or footer is damaged.
    """
    opened = ReadFile(file, past_cache=False)
    try:
        index_N = _read_index(opened, shape, num_bytes)
    except ValueError as error:
        raise StoreError(f"{file} is damaged: {error}") from error
    found_N = np.full(shape[0], -1, np.int64)
    stored_HW = np.empty(shape[1:], np.uint16)
    for row, (at, record_bytes, crc32c) in enumerate(index_N.tolist()):
        record_R = _record.bytes(record_bytes)
        opened.read(at, record_R)
        try:
            unpack_into(record_R, stored_HW)
        except StoreError:
            continue
        header, pixels_crc32c = read_header(record_R), google_crc32c.value(stored_HW)
        if (header.crc32c, header.pixels_crc32c) == (crc32c, pixels_crc32c):
            found_N[row] = pixels_crc32c
    return found_N


def _read_index(
    file: ReadFile, shape: tuple[int, int, int], num_bytes: int
) -> npt.NDArray[np.void]:
    """Read and check header, index and footer; give the index, shape (N,), `ENTRY`.

    Raises:
        ValueError: one of them is damaged; the message has its name.
    """
    count, *slice_shape = shape
    index_bytes = count * ENTRY.itemsize
    index_at = num_bytes - FOOTER_BYTES - _aligned(index_bytes)
    header = np.empty(HEADER.size, np.uint8)
    file.read(0, header)
    if header.tobytes() != _header(slice_shape):
        raise ValueError(f"its header is not that of slices of {slice_shape}")
    if index_at < HEADER.size:
        raise ValueError(f"{num_bytes:,} bytes are too few for {count:,} slices")
    end = np.empty(num_bytes - index_at, np.uint8)
    file.read(index_at, end)
    index = end[:index_bytes].tobytes()
    if end.tobytes() != _padded(index) + _footer(index_at, index, slice_shape):
        raise ValueError("its index does not match the checksum in its footer")
    index_N = np.frombuffer(index, ENTRY)
    ends_N = HEADER.size + np.cumsum(index_N["bytes"], dtype=np.int64)
    begins_N = np.concatenate([[HEADER.size], ends_N[:-1]])
    if (index_N["at"] != begins_N).any() or ends_N[-1] != index_at:
        raise ValueError("its records do not lie one behind the other")
    layout = find_layout(*slice_shape)
    raw_bytes = slice_shape[0] * layout.blocks * BLOCK * PIXEL_DTYPE.itemsize
    # A reader takes memory for a record before it can check it.
    if index_N["bytes"].max() > layout.payload_at + raw_bytes + 2 * ALIGNMENT:
        raise ValueError(
            f"its records are not as long as those of slices of {tuple(slice_shape)}"
        )
    return index_N


def _header(shape: Sequence[int]) -> bytes:
    return HEADER.pack(b"ICPSHARD", VERSION, *shape)


def _footer(index_at: int, index: bytes, shape: Sequence[int]) -> bytes:
    """The last 64 bytes of a file.

    Args:
        index_at: where its index begins.
        index: entries of all records.
        shape: rows and columns of its slices.
    """
    count, crc32c = len(index) // ENTRY.itemsize, google_crc32c.value(index)
    checked = FOOTER.pack(b"ICPINDEX", index_at, count, *shape, crc32c)
    return checked + struct.pack("<I", google_crc32c.value(checked))


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def _padded(content: bytes) -> bytes:
    return content.ljust(_aligned(len(content)), b"\0")
