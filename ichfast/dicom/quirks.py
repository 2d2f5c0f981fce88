"""Known defects of CT pixels: one function finds a defect, another mends it.

`ichfast.dicom.hounsfield` calls them, and names the mended defects in `Slice.quirks`.
Defects of header values are mended in `ichfast.dicom.header`.

Shape letters: H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_FRAME_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")
"""First bytes of a frame: JPEG and JPEG-LS, JPEG 2000, and JPEG 2000 in JP2 boxes.

Source:
    ISO/IEC 10918-1 B.2.1, 14495-1 C.2.2, 15444-1 A.4.1 and I.5.1.
"""

_AIR_12BIT = 4096 - 1024
"""Raw value of the least HU that wrapped around."""
_AIR_HU = 124
"""Width of the range of air from -1024 HU, with its noise."""
_WATER_HU = 32
"""Width of the range of water below 0 HU, with its noise."""
_MIN_WRAPPED_SHARE = 0.001
"""Lower limit of the share of wrapped pixels; a few may be metal."""

RawArray = npt.NDArray[np.integer[Any]]
"""Pixels as decoded, before rescale: any integer dtype, shape (H, W)."""


def count_native_frames(num_bytes: int, frame_bytes: int) -> int:
    """Count the frames of uncompressed pixels; 1 if they are no whole frames.

    Args:
        num_bytes: length of the pixels.
        frame_bytes: length of a frame.
    """
    num_frames, left = divmod(num_bytes, frame_bytes)
    return num_frames if num_frames > 0 and left == 0 else 1


def count_compressed_frames(
    content: bytes, fragments: Sequence[int], *, is_rle: bool
) -> int:
    """Count the frames of compressed pixels by the fragments that begin one.

    Args:
        content: the file.
        fragments: offset of the item of each fragment.
        is_rle: whether the pixels are RLE, where each fragment is a frame.

    Source:
        DICOM PS3.5 A.4, and G.5 for RLE.
    """
    if is_rle:
        return len(fragments)
    return max(1, sum(content.startswith(_FRAME_STARTS, at + 8) for at in fragments))


def has_damaged_offsets(
    content: bytes, start: int, fragments: Sequence[int], num_frames: int
) -> bool:
    """Whether a basic offset table points to something else than fragments.

    It is damaged too if it has fewer offsets than the file has frames. One with more is
    sound: the number of frames may be wrong.

    Args:
        content: the file.
        start: offset of the item of the table.
        fragments: offset of the item of each fragment.
        num_frames: number of frames.

    Source:
        DICOM PS3.5 A.4. An empty table is allowed.
    """
    table = content[start + 8 : fragments[0]]
    if not table:
        return False
    if len(table) % 4 or len(table) < 4 * num_frames:
        return True
    offsets = np.frombuffer(table, "<u4").tolist()
    known = {at - fragments[0] for at in fragments}
    return offsets[0] != 0 or offsets != sorted(known.intersection(offsets))


def has_high_bit_offset(raw_HW: RawArray, bits_stored: int, high_bit: int) -> bool:
    """Whether the lowest bits of all pixels are unused.

    Many headers state a high bit that the pixels contradict, so the pixels decide: the
    bits below the meaningful ones must all be zero.

    Args:
        raw_HW: pixels before rescale, shape (H, W), integer.
        bits_stored: number of meaningful bits.
        high_bit: highest meaningful bit, from 0.

    Source:
        DICOM PS3.5 8.1.1: HighBit shall be BitsStored - 1.
    """
    num_below = high_bit - (bits_stored - 1)
    if num_below <= 0 or high_bit >= raw_HW.dtype.itemsize * 8:
        return False
    return not np.bitwise_and(raw_HW, (1 << num_below) - 1).any()


def drop_high_bit_offset(raw_HW: RawArray, bits_stored: int, high_bit: int) -> RawArray:
    """Shift the meaningful bits down to bit 0.

    Args:
        raw_HW: pixels before rescale, shape (H, W), integer.
        bits_stored: number of meaningful bits.
        high_bit: highest meaningful bit, from 0.
    """
    moved_HW: RawArray = raw_HW >> (high_bit - (bits_stored - 1))
    return moved_HW


def has_unused_bits(raw_HW: RawArray, bits_stored: int) -> bool:
    """Whether pixels exceed the range of `bits_stored` bits because of other bits.

    A signed pixel below that range is a whole word already: its upper bits are those of
    its sign, as in a padding of -2000 beside 12 bits.

    Args:
        raw_HW: pixels before rescale, shape (H, W), integer.
        bits_stored: number of meaningful bits.

    Source:
        DICOM PS3.5 8.1.1: the bits beyond BitsStored are not part of the value
        (old files keep overlays there; some leave signed values unextended).
    """
    if bits_stored >= raw_HW.dtype.itemsize * 8:
        return False
    if raw_HW.dtype.kind == "u":
        return bool(raw_HW.max() >> bits_stored)
    limit = 1 << (bits_stored - 1)
    return bool(raw_HW.max() >= limit and raw_HW.min() >= -limit)


def mask_unused_bits(raw_HW: RawArray, bits_stored: int) -> RawArray:
    """Clear the bits above the meaningful ones, or fill them with the sign.

    Args:
        raw_HW: pixels before rescale, shape (H, W), integer.
        bits_stored: number of meaningful bits.
    """
    shift = raw_HW.dtype.itemsize * 8 - bits_stored
    masked_HW: RawArray = (raw_HW << shift) >> shift
    return masked_HW


def may_be_wrapped_12bit(
    *, is_signed: bool, bits_stored: int, slope: float, intercept: float
) -> bool:
    """Whether a header has no place for air, so that negative HU may have wrapped.

    An unsigned 12-bit file with an intercept near zero cannot represent air. Of the
    674,258 RSNA training slices, 5,326 have an intercept above -100, of any sign and
    number of bits; how many of them wrapped is not known.

    Args:
        is_signed: whether pixels are signed.
        bits_stored: number of meaningful bits.
        slope: HU per raw step.
        intercept: HU of raw 0.

    Source:
        J. Howard, "Some DICOM gotchas to be aware of" (fastai, 2019), which also
        requires 12 bits and intercept > -100. No such file has a slope other than 1.
    """
    return not is_signed and bits_stored == 12 and slope == 1 and intercept > -100


def is_wrapped_12bit(raw_HW: RawArray) -> bool:
    """Whether negative HU of an image wrapped around at 4096.

    Most of its pixels from 3072 on, which is -1024 HU, are then air, or else just below
    0 HU, as in a part of a head without air. Metal has any value up to 4095, where it
    is cut off; 4095 itself decides nothing.

    Args:
        raw_HW: pixels of 12 bits before rescale, shape (H, W), integer.
    """
    high_N = raw_HW[(raw_HW >= _AIR_12BIT) & (raw_HW < 4095)]
    is_air_N = high_N < _AIR_12BIT + _AIR_HU
    is_water_N = high_N >= 4096 - _WATER_HU
    num_wrapped = int(np.count_nonzero(is_air_N | is_water_N))
    return num_wrapped >= max(raw_HW.size * _MIN_WRAPPED_SHARE, high_N.size / 2)


def unwrap_12bit(raw_HW: RawArray) -> npt.NDArray[np.int16]:
    """Undo the wrap: subtract 4096 from values of 3096 and above. The result is HU.

    Howard adds 1000, takes 4096 off what reaches 4096, and sets the intercept to
    -1000: the same numbers, with the file's own intercept replaced.
    """
    hu_HW = raw_HW.astype(np.int16)
    hu_HW += 1000
    hu_HW &= 4095
    hu_HW -= 1000
    return hu_HW


def is_padding(raw_HW: RawArray, padding: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Find the pixels that are not part of the image.

    Args:
        raw_HW: pixels before rescale, shape (H, W), integer.
        padding: first and last value of the padding range, both included.

    Returns:
        Shape (H, W), True where a pixel is padding.

    Source:
        DICOM PS3.3 C.7.5.1.1.2, PixelPaddingValue and PixelPaddingRangeLimit.
    """
    first, last = padding
    return (raw_HW >= first) & (raw_HW <= last)
