"""Packs, unpacks and halves slices, by the C library or its reference.

A record's checksum is compared before it is unpacked. The interpreter's lock is
released while the C library works, so threads unpack side by side.

Shape letters: H rows, W columns, R bytes of a record.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ichfast.errors import StoreError, first_line
from ichfast.packed import reference
from ichfast.packed.library import Library, library_paths
from ichfast.packed.record import MAX_PIXELS, Buffer, check_record, write_checksums

logger = logging.getLogger(__name__)


class _Coder(Protocol):
    """The C library or its reference."""

    def pack(self, stored_HW: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint8]: ...

    def unpack(
        self, record_R: npt.NDArray[np.uint8], out_HW: npt.NDArray[np.uint16]
    ) -> None: ...

    def unpack_halved(
        self,
        record_R: npt.NDArray[np.uint8],
        shape: tuple[int, int],
        out_HW: npt.NDArray[np.uint16],
    ) -> None: ...

    def halve(
        self, stored_HW: npt.NDArray[np.uint16], out_HW: npt.NDArray[np.uint16]
    ) -> None: ...


@cache
def _coder() -> _Coder:
    """The C library; its reference, with a warning, where it is not there."""
    reason = "it was not built when ichfast was installed"
    for path in library_paths():
        if path.is_file():
            try:
                return Library(path)
            except (OSError, AttributeError) as error:  # or of another version
                reason = first_line(error)
    logger.warning(
        "the C library is missing (%s), so NumPy packs, unpacks and halves slices, "
        "many times slower; install a C compiler, then ichfast again",
        reason,
    )
    return reference


def packed_by() -> str:
    """What packs here: ``AVX2``, ``NEON``, ``plain C`` of the library, or ``NumPy``."""
    coder = _coder()
    if not isinstance(coder, Library):
        return "NumPy"
    return coder.vector_instructions or "plain C"


def pack(stored_HW: npt.NDArray[np.uint16]) -> bytes:
    """Pack a slice without loss.

    Args:
        stored_HW: shape (H, W), uint16, C order, 1 to 2**24 pixels. Not changed.

    Returns:
        The record of the slice, with its checksums.

    Raises:
        ValueError: another shape, type or order.
    """
    _check_pixels(stored_HW)
    if not 1 <= stored_HW.size <= MAX_PIXELS:
        rows, columns = stored_HW.shape
        raise ValueError(
            f"a slice of 1 to {MAX_PIXELS:,} pixels can be packed, got {rows}x{columns}"
        )
    record_R = _coder().pack(stored_HW)
    write_checksums(record_R, stored_HW)
    return record_R.tobytes()


def unpack_into(record: Buffer, out_HW: npt.NDArray[np.uint16]) -> None:
    """Unpack a record.

    Args:
        record: its bytes, whole.
        out_HW: shape (H, W) of the slice, uint16, C order; overwritten. Not valid after
            an error.

    Raises:
        StoreError: the record is damaged, or of another shape.
        ValueError: `out_HW` is of another type or order.
    """
    _check_pixels(out_HW)
    shape = check_record(record).shape
    if shape != out_HW.shape:
        raise StoreError(
            f"a packed slice is of {shape[0]}x{shape[1]} pixels, "
            f"expected {out_HW.shape[0]}x{out_HW.shape[1]}"
        )
    _coder().unpack(np.frombuffer(record, np.uint8), out_HW)


def unpack_halved_into(record: Buffer, out_HW: npt.NDArray[np.uint16]) -> None:
    """Unpack a record and halve rows and columns: means of 2x2, ties to even.

    This equals `unpack_into` and `ichfast.store.levels.halve_into`, in less time.

    Args:
        record: its bytes, whole.
        out_HW: shape (ceil(H / 2), ceil(W / 2)), uint16, C order; overwritten. An odd
            side of the slice is padded with air, 0. Not valid after an error.

    Raises:
        StoreError: the record is damaged, or of another shape.
        ValueError: `out_HW` is of another type or order.
    """
    _check_pixels(out_HW)
    shape = check_record(record).shape
    halved_shape = (shape[0] + 1) // 2, (shape[1] + 1) // 2
    if halved_shape != out_HW.shape:
        raise StoreError(
            f"a packed slice is of {shape[0]}x{shape[1]} pixels, expected one that is "
            f"halved to {out_HW.shape[0]}x{out_HW.shape[1]}"
        )
    _coder().unpack_halved(np.frombuffer(record, np.uint8), shape, out_HW)


def halve_into(
    stored_HW: npt.NDArray[np.uint16], out_HW: npt.NDArray[np.uint16]
) -> None:
    """Halve rows and columns: means of 2x2, ties to even.

    Args:
        stored_HW: shape (H, W), uint16, C order. Not changed. An odd side is padded
            with air, 0.
        out_HW: shape (ceil(H / 2), ceil(W / 2)), uint16, C order; overwritten.

    Raises:
        ValueError: another shape, type or order.
    """
    _check_pixels(stored_HW)
    _check_pixels(out_HW)
    rows, columns = stored_HW.shape
    if out_HW.shape != ((rows + 1) // 2, (columns + 1) // 2):
        raise ValueError(f"{rows}x{columns} pixels cannot be halved to {out_HW.shape}")
    _coder().halve(stored_HW, out_HW)


def _check_pixels(pixels_HW: npt.NDArray[np.uint16]) -> None:
    """Refuse arrays that must not be accessed by their address."""
    if (
        pixels_HW.dtype != np.uint16
        or pixels_HW.ndim != 2
        or not pixels_HW.flags.c_contiguous
    ):
        raise ValueError(
            f"pixels are a uint16 array of rows and columns in C order, got "
            f"{pixels_HW.dtype} of shape {pixels_HW.shape}"
        )
