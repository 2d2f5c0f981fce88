"""Packs, unpacks and halves in NumPy: slow and readable, equal to the C library.

Shape letters: H rows, W columns, R bytes of a record, P bytes of its payload, K blocks
of all rows, B pixels of a block, M blocks of one width, b bits of a value.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ichfast.errors import StoreError
from ichfast.packed.record import (
    ALIGNMENT,
    BLOCK,
    HEADER,
    MAGIC,
    PADDING,
    ROWS_PER_START,
    Layout,
    find_layout,
    round_up,
)

WIDTHS = (*range(11), 12, 16)
"""The widths of a block's values that an encoder writes, bits."""

NIBBLE_OF_BITS = np.array([*range(11), 12, 12, 15, 15, 15, 15], np.uint8)
"""The nibble of the narrowest sufficient width, by the bits of the largest value."""

WIDTH_OF_NIBBLE = np.array([*range(11), 99, 12, 99, 99, 16], np.int64)
"""The width of a nibble; 99 for nibbles that no encoder writes."""


def pack(stored_HW: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint8]:
    """Pack a slice.

    Returns:
        A record, shape (R,), uint8. Its checksums are 0.
    """
    rows, columns = stored_HW.shape
    layout = find_layout(rows, columns)
    values_KB = _to_blocks(_to_values(stored_HW), layout)
    bits_K = np.frexp(np.bitwise_or.reduce(values_KB, axis=1).astype(np.float64))[1]
    nibbles_K = NIBBLE_OF_BITS[bits_K]
    width_K = WIDTH_OF_NIBBLE[nibbles_K]
    at_K, payload_bytes = _block_places(width_K)

    record_bytes = round_up(layout.payload_at + payload_bytes + PADDING, ALIGNMENT)
    record_R = np.zeros(record_bytes, np.uint8)
    HEADER.pack_into(
        record_R.data, 0, MAGIC, 0, record_bytes, payload_bytes, rows, columns, 0, 0
    )
    starts = at_K[:: layout.blocks][::ROWS_PER_START].astype("<u4").view(np.uint8)
    record_R[HEADER.size :][: len(starts)] = starts
    nibbles = nibbles_K.reshape(rows, layout.blocks)
    nibbles = np.pad(nibbles, ((0, 0), (0, layout.blocks % 2)))
    widths = (nibbles[:, 0::2] | nibbles[:, 1::2] << 4).ravel()
    record_R[layout.widths_at :][: len(widths)] = widths
    _pack_blocks(values_KB, width_K, at_K, record_R[layout.payload_at :])
    return record_R


def unpack(record_R: npt.NDArray[np.uint8], out_HW: npt.NDArray[np.uint16]) -> None:
    """Unpack a record, whose checksum the caller has compared.

    Args:
        record_R: shape (R,), uint8.
        out_HW: shape (H, W) of the slice, uint16; overwritten.

    Raises:
        StoreError: it is no record of that shape.
    """
    rows, columns = out_HW.shape
    layout = find_layout(rows, columns)
    payload_bytes = _check_header(record_R, rows, columns, layout)
    width_K = _read_widths(record_R, rows, layout)
    at_K, num_bytes = _block_places(width_K)
    starts = record_R[HEADER.size :][: 4 * layout.starts].view("<u4")
    if (starts != at_K[:: layout.blocks][::ROWS_PER_START]).any():
        raise StoreError("a start is not where the rows before it end")
    if num_bytes != payload_bytes:
        raise StoreError("the widths do not add up to the payload")
    payload_P = record_R[layout.payload_at :][:payload_bytes]
    values_KB = _unpack_blocks(payload_P, width_K, at_K)
    out_HW[...] = _from_values(values_KB.reshape(rows, -1)[:, :columns])


def unpack_halved(
    record_R: npt.NDArray[np.uint8],
    shape: tuple[int, int],
    out_HW: npt.NDArray[np.uint16],
) -> None:
    """Unpack a record and halve rows and columns: means of 2x2, ties to even.

    Args:
        record_R: shape (R,), uint8.
        shape: rows and columns of the slice. An odd side is padded with 0.
        out_HW: shape (ceil(H / 2), ceil(W / 2)), uint16; overwritten.

    Raises:
        StoreError: it is no record of that shape.
    """
    stored_HW = np.empty(shape, np.uint16)
    unpack(record_R, stored_HW)
    halve(stored_HW, out_HW)


def halve(stored_HW: npt.NDArray[np.uint16], out_HW: npt.NDArray[np.uint16]) -> None:
    """Halve rows and columns: means of 2x2, ties to even.

    Args:
        stored_HW: shape (H, W), uint16. An odd side is padded with 0.
        out_HW: shape (ceil(H / 2), ceil(W / 2)), uint16; overwritten.
    """
    rows, columns = stored_HW.shape
    padded_HW = np.pad(stored_HW, ((0, rows % 2), (0, columns % 2)))
    blocks = padded_HW.reshape(out_HW.shape[0], 2, out_HW.shape[1], 2)
    out_HW[...] = np.rint(blocks.mean(axis=(1, 3)))


def _to_values(stored_HW: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """Zigzag values of the residuals v - N - W + NW, modulo 2**16."""
    down_HW = np.diff(stored_HW, axis=0, prepend=np.uint16(0))
    residual_HW = np.diff(down_HW, axis=1, prepend=np.uint16(0)).view(np.int16)
    return ((residual_HW << 1) ^ (residual_HW >> 15)).view(np.uint16)


def _from_values(values_HW: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    residual_HW = (values_HW >> 1) ^ -(values_HW & 1)
    along_HW = np.cumsum(residual_HW, axis=1, dtype=np.uint16)
    return np.cumsum(along_HW, axis=0, dtype=np.uint16)


def _to_blocks(
    values_HW: npt.NDArray[np.uint16], layout: Layout
) -> npt.NDArray[np.uint16]:
    missing = layout.blocks * BLOCK - values_HW.shape[1]
    return np.pad(values_HW, ((0, 0), (0, missing))).reshape(-1, BLOCK)


def _block_places(width_K: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], int]:
    """Where each block begins in the payload, and the bytes of the payload."""
    end_K = np.cumsum(BLOCK // 8 * width_K)
    return end_K - BLOCK // 8 * width_K, int(end_K[-1])


def _pack_blocks(
    values_KB: npt.NDArray[np.uint16],
    width_K: npt.NDArray[np.int64],
    at_K: npt.NDArray[np.int64],
    payload_P: npt.NDArray[np.uint8],
) -> None:
    for width in WIDTHS[1:]:
        (chosen_M,) = np.nonzero(width_K == width)
        bytes_MB = values_KB[chosen_M].astype("<u2").view(np.uint8)
        bits_MBb = np.unpackbits(bytes_MB, axis=1, bitorder="little")
        bits_MBb = bits_MBb.reshape(-1, BLOCK, 16)[:, :, :width]
        bits_M = bits_MBb.reshape(-1, BLOCK * width)
        places = at_K[chosen_M, None] + np.arange(BLOCK // 8 * width)
        payload_P[places] = np.packbits(bits_M, axis=1, bitorder="little")


def _unpack_blocks(
    payload_P: npt.NDArray[np.uint8],
    width_K: npt.NDArray[np.int64],
    at_K: npt.NDArray[np.int64],
) -> npt.NDArray[np.uint16]:
    values_KB = np.zeros((len(width_K), BLOCK), np.uint16)
    for width in WIDTHS[1:]:
        (chosen_M,) = np.nonzero(width_K == width)
        places = at_K[chosen_M, None] + np.arange(BLOCK // 8 * width)
        bits_M = np.unpackbits(payload_P[places], axis=1, bitorder="little")
        bits_MBb = np.zeros((len(chosen_M), BLOCK, 16), np.uint8)
        bits_MBb[:, :, :width] = bits_M.reshape(-1, BLOCK, width)
        bits_M = bits_MBb.reshape(-1, BLOCK * 16)
        values_KB[chosen_M] = np.packbits(bits_M, axis=1, bitorder="little").view("<u2")
    return values_KB


def _check_header(
    record_R: npt.NDArray[np.uint8], rows: int, columns: int, layout: Layout
) -> int:
    """The bytes of the payload, if it is a record of that shape."""
    max_payload_bytes = len(record_R) - layout.payload_at - PADDING
    if max_payload_bytes >= 0:
        magic, _, record_bytes, payload_bytes, *shape, _, _ = HEADER.unpack_from(
            record_R.data
        )
        found = (magic, record_bytes, shape)
        if found == (MAGIC, len(record_R), [rows, columns]) and (
            payload_bytes <= max_payload_bytes
        ):
            return int(payload_bytes)
    raise StoreError("no record of this shape and size")


def _read_widths(
    record_R: npt.NDArray[np.uint8], rows: int, layout: Layout
) -> npt.NDArray[np.int64]:
    widths = record_R[layout.widths_at :][: rows * layout.width_bytes]
    nibbles = np.stack([widths & 15, widths >> 4], axis=1).reshape(rows, -1)
    width_K = WIDTH_OF_NIBBLE[nibbles[:, : layout.blocks]].ravel()
    if nibbles[:, layout.blocks :].any() or width_K.max() > BLOCK:
        raise StoreError("a width that no encoder writes")
    return width_K
