"""Turns raw pixels into stored numbers: mends defects, rescales to HU, adds the offset.

Shape letters: H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ichfast.dicom import quirks
from ichfast.dicom.header import Layout
from ichfast.dicom.quirks import RawArray
from ichfast.dicom.series_header import SeriesHeader
from ichfast.windows import HU_OFFSET

MAX_STORED = 32_767
"""Upper limit of a stored number, so that the same bytes are valid int16."""


@dataclass(frozen=True, slots=True)
class StoredFrame:
    """A frame as it is stored, and what was applied to it."""

    stored_HW: npt.NDArray[np.uint16]
    slope: float
    """HU per raw step."""
    intercept: float
    """HU of raw 0."""
    quirks: set[str]
    """Names of the defects that were mended."""


def store_frame(
    raw_HW: RawArray,
    layout: Layout,
    series_header: SeriesHeader,
    modality_lut: Callable[[RawArray], RawArray] | None,
) -> StoredFrame:
    """Mend a frame, apply its modality transform, and turn padding into air.

    Args:
        raw_HW: pixels as decoded, in native byte order, shape (H, W), integer.
        layout: pixel layout of the file.
        series_header: header values of the frame.
        modality_lut: applies the table that replaces the rescale, where there is one.

    Raises:
        RejectError: ``decoder-error``, the table does not fit the pixels.

    Source:
        DICOM PS3.3 C.11.1, Modality LUT module.
    """
    mended: set[str] = set()
    raw_HW = _clean_bits(raw_HW, layout, mended)
    slope, intercept, is_complete = series_header.rescale
    values_HW = raw_HW
    if modality_lut is not None:
        values_HW, slope, intercept = modality_lut(raw_HW), 1.0, 0.0
        mended.add("modality_lut")
    elif not is_complete:
        mended.add("missing_rescale")
    if (
        modality_lut is None
        and quirks.may_be_wrapped_12bit(
            is_signed=layout.is_signed,
            bits_stored=layout.bits_stored,
            slope=slope,
            intercept=intercept,
        )
        and quirks.is_wrapped_12bit(raw_HW)
    ):
        values_HW, intercept = quirks.unwrap_12bit(raw_HW), 0.0
        mended.add("wrapped_12bit")
    stored_HW = to_stored(values_HW, slope, intercept)

    padding = series_header.padding
    if padding and max(p * slope + intercept for p in padding) > -HU_OFFSET:
        is_padding_HW = quirks.is_padding(raw_HW, padding)
        if is_padding_HW.any():
            stored_HW[is_padding_HW] = 0
            mended.add("padding")
    return StoredFrame(stored_HW, slope, intercept, mended)


def _clean_bits(raw_HW: RawArray, layout: Layout, mended: set[str]) -> RawArray:
    bits_stored, high_bit = layout.bits_stored, layout.high_bit
    if quirks.has_high_bit_offset(raw_HW, bits_stored, high_bit):
        raw_HW = quirks.drop_high_bit_offset(raw_HW, bits_stored, high_bit)
        mended.add("high_bit")
    if quirks.has_unused_bits(raw_HW, bits_stored):
        raw_HW = quirks.mask_unused_bits(raw_HW, bits_stored)
        mended.add("unused_bits")
    return raw_HW


def to_stored(
    raw_HW: RawArray, slope: float, intercept: float
) -> npt.NDArray[np.uint16]:
    """Rescale raw pixels to HU and add the offset of the store.

    Args:
        raw_HW: pixels before rescale, in native byte order, shape (H, W), integer.
        slope: HU per raw step.
        intercept: HU of raw 0.

    Returns:
        ``clip(round(HU) + 1024, 0, 32767)``, shape (H, W), uint16; ties round to even.
    """
    shift = intercept + HU_OFFSET
    is_small = raw_HW.dtype.itemsize == 2 and abs(shift) <= MAX_STORED
    if slope == 1 and shift.is_integer() and is_small:
        return _add_clipped(raw_HW, int(shift))
    hu_HW = raw_HW * np.float64(slope)
    hu_HW += intercept
    np.rint(hu_HW, out=hu_HW)
    hu_HW += HU_OFFSET
    return np.clip(hu_HW, 0, MAX_STORED, out=hu_HW).astype(np.uint16)


def _add_clipped(raw_HW: RawArray, shift: int) -> npt.NDArray[np.uint16]:
    """Compute `to_stored` in 16 bits: clip first, so that the sum cannot wrap."""
    stored_HW = np.clip(raw_HW, *_limits(raw_HW.dtype, shift)).view(np.uint16)
    if shift:
        stored_HW += np.uint16(shift % 2**16)
    return stored_HW


@lru_cache(maxsize=256)
def _limits(dtype: np.dtype[Any], shift: int) -> tuple[Any, Any]:
    """Smallest and largest number that stays in range when `shift` is added."""
    limits = np.iinfo(dtype)
    low, high = max(limits.min, -shift), min(limits.max, MAX_STORED - shift)
    # As NumPy scalars: a plain int at the dtype's edge is six times slower.
    return dtype.type(low), dtype.type(high)
