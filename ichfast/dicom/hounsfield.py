"""Raw pixels to the numbers the store keeps: mend, rescale to HU, add the offset.

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
from ichfast.dicom.series_header import Common
from ichfast.windows import HU_OFFSET

MAX_STORED = 32_767
"""Largest number in the store: the same bytes are valid int16."""


@dataclass(frozen=True, slots=True)
class StoredFrame:
    """A frame as the store keeps it, and what was done to it."""

    stored_HW: npt.NDArray[np.uint16]
    slope: float
    intercept: float
    quirks: set[str]
    """Names of what was mended in it."""


def store_frame(
    raw_HW: RawArray,
    layout: Layout,
    common: Common,
    modality_lut: Callable[[RawArray], RawArray] | None,
) -> StoredFrame:
    """Mend a frame and apply its modality transform; padding becomes air.

    Args:
        raw_HW: pixels as decoded, in native byte order, shape (H, W).
        layout: of the file.
        common: of the frame.
        modality_lut: the table that replaces the rescale, where the file has one.

    Source:
        DICOM PS3.3 C.11.1, Modality LUT module.
    """
    mended: set[str] = set()
    raw_HW = _clean_bits(raw_HW, layout, mended)
    slope, intercept, is_complete = common.rescale
    values_HW = raw_HW
    if modality_lut is not None:
        values_HW, slope, intercept = modality_lut(raw_HW), 1.0, 0.0
        mended.add("modality_lut")
    elif not is_complete:
        mended.add("missing_rescale")
    if modality_lut is None and quirks.is_wrapped_12bit(
        is_signed=layout.is_signed,
        bits_stored=layout.bits_stored,
        slope=slope,
        intercept=intercept,
    ):
        values_HW, intercept = quirks.unwrap_12bit(raw_HW), 0.0
        mended.add("wrapped_12bit")
    stored_HW = to_stored(values_HW, slope, intercept)

    padding = common.padding
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
    """Turn raw pixels into what the store keeps.

    Args:
        raw_HW: pixels before rescale, in native byte order, shape (H, W).
        slope: HU a raw step.
        intercept: HU of raw 0.

    Returns:
        ``clip(round(HU) + 1024, 0, 32767)``, shape (H, W); ties round to even.
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
    """`to_stored` in 16 bits: clipped first, so that the sum cannot wrap."""
    stored_HW = np.clip(raw_HW, *_limits(raw_HW.dtype, shift)).view(np.uint16)
    if shift:
        stored_HW += np.uint16(shift % 2**16)
    return stored_HW


@lru_cache(maxsize=256)
def _limits(dtype: np.dtype[Any], shift: int) -> tuple[Any, Any]:
    """The smallest and largest number that stays in range when `shift` is added."""
    limits = np.iinfo(dtype)
    low, high = max(limits.min, -shift), min(limits.max, MAX_STORED - shift)
    # As NumPy scalars: a plain int at the dtype's edge is six times slower.
    return dtype.type(low), dtype.type(high)
