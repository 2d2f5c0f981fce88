"""The header and the layout of a record. `record.h` describes its bytes.

Shape letters: H rows, W columns, R bytes of a record.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, TypeAlias

import google_crc32c
import numpy as np
import numpy.typing as npt

from ichfast.errors import StoreError

Buffer: TypeAlias = bytes | bytearray | memoryview | npt.NDArray[np.uint8]
"""A buffer with the bytes of a record."""

MAGIC = b"ICP1"
"""The first bytes of a record."""

HEADER = struct.Struct("<4s7I")
"""The magic bytes, the fields of `RecordHeader` in order, and 0."""

CHECKED_FROM = 8
"""The CRC-32C of a record is that of its bytes from here on."""

ROWS_PER_START = 16
BLOCK = 16
PADDING = 16
ALIGNMENT = 64

MAX_PIXELS = 2**24
"""Upper limit of the pixels of a slice: 4096x4096."""


class RecordHeader(NamedTuple):
    """The first 32 bytes of a record."""

    crc32c: int
    """CRC-32C of all bytes behind this field."""

    record_bytes: int
    payload_bytes: int
    rows: int
    columns: int

    pixels_crc32c: int
    """CRC-32C of the pixels, row by row, little-endian."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the slice."""
        return self.rows, self.columns


def read_header(record: Buffer) -> RecordHeader:
    """Read the header of a record, whose checksum is not compared.

    Raises:
        StoreError: it is no record, or has another length than its header says.
    """
    content_R = np.frombuffer(record, np.uint8)
    if len(content_R) < HEADER.size or content_R[:4].tobytes() != MAGIC:
        raise StoreError(
            f"{len(content_R)} bytes are no packed slice: "
            f"a record of at least {HEADER.size} bytes begins with {MAGIC.decode()}"
        )
    _, *fields, _ = HEADER.unpack_from(content_R.data)
    header = RecordHeader(*fields)
    if header.record_bytes != len(content_R):
        raise StoreError(
            f"a packed slice has {len(content_R)} bytes, "
            f"but {header.record_bytes} in its header: it is damaged or cut off"
        )
    return header


def check_record(record: Buffer) -> RecordHeader:
    """Read the header of a record, and compare the record's checksum.

    Raises:
        StoreError: it is no record, or damaged.
    """
    header = read_header(record)
    found = record_crc32c(np.frombuffer(record, np.uint8))
    if found != header.crc32c:
        raise StoreError(
            f"a packed slice is damaged: its CRC-32C is {found:08x}, "
            f"but {header.crc32c:08x} in its header"
        )
    return header


def write_checksums(
    record_R: npt.NDArray[np.uint8], stored_HW: npt.NDArray[np.uint16]
) -> None:
    """Write both checksums into the header of a record.

    Args:
        record_R: shape (R,), uint8; its checksums are overwritten.
        stored_HW: shape (H, W), uint16, C order; the slice that it holds.
    """
    pixels_crc32c = google_crc32c.value(stored_HW.astype("<u2", copy=False))
    struct.pack_into("<I", record_R.data, 24, pixels_crc32c)
    struct.pack_into("<I", record_R.data, 4, record_crc32c(record_R))


def record_crc32c(record_R: npt.NDArray[np.uint8]) -> int:
    """The CRC-32C that belongs into the header of a record."""
    return int(google_crc32c.value(record_R[CHECKED_FROM:]))


class Layout(NamedTuple):
    """Places of the parts of a record, which follow from the shape of its slice."""

    blocks: int
    """Number of blocks in a row."""

    width_bytes: int
    """Number of bytes that hold the widths of a row."""

    starts: int
    """Number of rows whose payload's start is stored."""

    widths_at: int
    payload_at: int


def find_layout(rows: int, columns: int) -> Layout:
    """The layout of the record of a slice.

    Args:
        rows: of the slice.
        columns: of the slice.
    """
    blocks = round_up(columns, BLOCK) // BLOCK
    width_bytes = round_up(blocks, 2) // 2
    starts = round_up(rows, ROWS_PER_START) // ROWS_PER_START
    widths_at = round_up(HEADER.size + 4 * starts, 16)
    payload_at = round_up(widths_at + rows * width_bytes, 16)
    return Layout(blocks, width_bytes, starts, widths_at, payload_at)


def round_up(size: int, step: int) -> int:
    """Round up to a multiple of a step.

    Args:
        size: 0 or more.
        step: 1 or more.
    """
    return -(-size // step) * step
