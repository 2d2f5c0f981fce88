"""The levels of a store: a mip map with two of them.

1. Level 512 is the source resolution: slices as they came, whatever their shape.
   At 512x512, the rule in head CT, it is what its name says.
2. Level 256 holds every slice as 256x256, made by `reduce_to_256`.
3. A store has both, or level 512 alone.

Shape letters: H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ichfast.halving import sum_of_2x2

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
