"""The levels of a store: a mip map with two of them.

1. Level 512 is the source resolution: slices as they came, whatever their shape.
   At 512x512, the rule in head CT, it is what its name says.
2. Level 256 holds every slice as 256x256, made by `reduce_to_256`.
3. A store has both, or level 512 alone.

Shape letters: H rows, W columns.

Halving a slice in NumPy: each new pixel is the mean of 2x2, ties to the even number.

The fast form of `ichfast.augment.reference.halve`, equal to the bit. On a CPU it takes
a third of what DALI needs for the same means, or less (see bench/LOG.md, 2026-11).

Shape letters: H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

SOURCE_LEVEL = 512
"""The level that holds slices as they came, whatever their shape."""

SMALL_LEVEL = 256
"""The level that holds every slice as 256x256."""


def check_levels(levels: Sequence[int]) -> None:
    """Refuse levels that a store cannot have.

    Raises:
        ValueError: neither (512, 256) nor (512,).
    """
    if tuple(levels) not in ((SOURCE_LEVEL, SMALL_LEVEL), (SOURCE_LEVEL,)):
        raise ValueError(f"levels are 512,256 or 512 alone, got {list(levels)}")


def reduce_to_256(stored_HW: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """Make the level-256 form of a slice: area filter, aspect kept, air around.

    Each new pixel is the mean of the source area it covers, halves rounded up;
    at 512x512 that is the exact mean of 2x2 pixels. The same filter enlarges
    slices smaller than 256, which repeats their pixels and invents nothing. The
    longer side becomes 256; the rest, split evenly, is filled with 0.

    Args:
        stored_HW: shape (H, W), uint16 up to 32,767. Not changed.

    Returns:
        Shape (256, 256), uint16.
    """
    rows, columns = stored_HW.shape
    if rows == columns == SOURCE_LEVEL:
        return _mean_of_2x2(stored_HW)
    longer = max(rows, columns)
    new_rows = max(1, round(rows * SMALL_LEVEL / longer))
    new_columns = max(1, round(columns * SMALL_LEVEL / longer))
    mean_HW = _area_filter_rows(stored_HW.astype(np.float64), new_rows)
    mean_HW = _area_filter_rows(mean_HW.T, new_columns).T
    top, left = (SMALL_LEVEL - new_rows) // 2, (SMALL_LEVEL - new_columns) // 2
    out_HW = np.zeros((SMALL_LEVEL, SMALL_LEVEL), dtype=np.uint16)
    out_HW[top : top + new_rows, left : left + new_columns] = np.floor(mean_HW + 0.5)
    return out_HW


def _mean_of_2x2(stored_HW: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    sum_HW = sum_of_2x2(stored_HW)
    sum_HW += 2
    sum_HW >>= 2
    return sum_HW.astype(np.uint16)


def _area_filter_rows(
    values_HW: npt.NDArray[np.float64], num_rows: int
) -> npt.NDArray[np.float64]:
    """Means over `num_rows` equal bands of rows: differences of the running sum."""
    rows = len(values_HW)
    sums_HW = np.zeros((rows + 1, values_HW.shape[1]))
    np.cumsum(values_HW, axis=0, out=sums_HW[1:])
    edges = np.arange(num_rows + 1) * rows / num_rows
    whole = np.minimum(edges.astype(np.int64), rows - 1)
    part = (edges - whole)[:, np.newaxis]
    return np.diff(sums_HW[whole] + part * values_HW[whole], axis=0) * num_rows / rows


def halve_into(
    stored_HW: npt.NDArray[np.uint16], times: int, out_HW: npt.NDArray[np.uint16]
) -> None:
    """Halve rows and columns some times; ties go to the even number.

    Args:
        stored_HW: shape (H, W), uint16 up to 32,767, C order. Not changed. Beyond an
            odd edge lies air, 0.
        times: how often, once at least.
        out_HW: shape (ceil(H / 2**times), ceil(W / 2**times)), uint16; overwritten.
    """
    for _ in range(times - 1):
        stored_HW = _quarter(sum_of_2x2(_pad_to_even(stored_HW))).astype(np.uint16)
    out_HW[...] = _quarter(sum_of_2x2(_pad_to_even(stored_HW)))


def _quarter(sum_HW: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """A quarter of each sum in its low 16 bits; above them is rubbish. In place.

    Two additions instead of the six steps of whole numbers that round ties to the even
    number: with the bits of 2**23 a sum is a float32, 2**23 larger; and what is added
    to reach 2**25 is rounded to steps of 4, as a processor rounds, so that the low bits
    count the steps.

    Source:
        IEEE 754 binary32: 24 bits of precision, the highest not written.
    """
    sum_HW += np.float32(2**23).view(np.uint32)
    bits_HW = sum_HW.view(np.float32)
    bits_HW += np.float32(2**25 - 2**23)
    return sum_HW


def sum_of_2x2(stored_HW: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint32]:
    """Sums of four pixels.

    Args:
        stored_HW: shape (H, W), both even, uint16 up to 32,767, C order. Not changed.

    Returns:
        Shape (H / 2, W / 2), uint32; the caller's own.
    """
    # Two numbers up to 32,767 fit in a uint16; two neighbours are one uint32.
    sum_HW = (stored_HW[0::2] + stored_HW[1::2]).view(np.uint32)
    right_HW = sum_HW >> 16
    sum_HW &= 0xFFFF
    sum_HW += right_HW
    return sum_HW


def _pad_to_even(stored_HW: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    rows, columns = stored_HW.shape
    if rows % 2 or columns % 2:
        return np.pad(stored_HW, ((0, rows % 2), (0, columns % 2)))
    return stored_HW
