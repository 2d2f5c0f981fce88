"""The levels of a store, a mip map, and how slices are reduced.

1. Level 512 is the source resolution: slices as they came, of any shape. In head CT
   nearly all are 512x512, hence the name.
2. A smaller level holds every slice as a square of that many pixels, made by
   `reduce_to_level`.
3. A store has level 512, alone or with smaller ones.

`halve_into` is the fast form of `ichfast.augment.reference.halve`, equal to the bit.

Shape letters: H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ichfast import packed

SOURCE_LEVEL = 512
"""The level that holds slices as they came, of any shape."""

SMALL_LEVEL = 256
"""The level that holds every slice as 256x256."""

LEVELS = (SOURCE_LEVEL, SMALL_LEVEL)
"""The levels that a store can have, largest first. Another one is added here."""


def check_levels(levels: Sequence[int]) -> None:
    """Refuse levels that a store cannot have.

    Raises:
        ValueError: not the source level, followed by any others in falling order.
    """
    allowed = [level for level in LEVELS if level == SOURCE_LEVEL or level in levels]
    if list(levels) != allowed:
        names = ",".join(map(str, LEVELS))
        raise ValueError(
            f"levels are {names} or {SOURCE_LEVEL} alone, got {list(levels)}"
        )


def level_folder(level: int) -> str:
    """The name of the folder in a store that holds the shards of a level."""
    return f"level-{level}"


def checksum_column(level: int) -> str:
    """The column of `slices.parquet` with the checksums of slices at a level."""
    return "crc32c" if level == SOURCE_LEVEL else f"crc32c_{level}"


def reduce_to_level(
    stored_HW: npt.NDArray[np.uint16], level: int
) -> npt.NDArray[np.uint16]:
    """Reduce a slice to a smaller level: area filter, aspect kept, air around.

    Each new pixel is the mean of the source area that it covers, halves rounded up;
    from 512x512 to 256x256 that is the exact mean of 2x2 pixels. A slice smaller than
    the level is enlarged by repeating its pixels. The longer side fills the level; the
    rest of the shorter one, split evenly, is 0.

    Args:
        stored_HW: shape (H, W), uint16 up to 32,767. Not changed.
        level: side of the new slice, pixels.

    Returns:
        Shape (level, level), uint16.
    """
    rows, columns = stored_HW.shape
    if rows == columns == 2 * level:
        return _mean_of_2x2(stored_HW)
    longer = max(rows, columns)
    new_rows = max(1, round(rows * level / longer))
    new_columns = max(1, round(columns * level / longer))
    mean_HW = _area_filter_rows(stored_HW.astype(np.float64), new_rows)
    mean_HW = _area_filter_rows(mean_HW.T, new_columns).T
    top, left = (level - new_rows) // 2, (level - new_columns) // 2
    out_HW = np.zeros((level, level), dtype=np.uint16)
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
    """Halve rows and columns repeatedly: means of 2x2, ties to the even number.

    Args:
        stored_HW: shape (H, W), uint16, C order. Not changed. An odd side is padded
            with air, 0.
        times: number of halvings, 1 or more.
        out_HW: shape (ceil(H / 2**times), ceil(W / 2**times)), uint16, C order;
            overwritten.
    """
    for _ in range(times - 1):
        rows, columns = stored_HW.shape
        halved_HW = np.empty(((rows + 1) // 2, (columns + 1) // 2), np.uint16)
        packed.halve_into(stored_HW, halved_HW)
        stored_HW = halved_HW
    packed.halve_into(stored_HW, out_HW)


def sum_of_2x2(stored_HW: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint32]:
    """Sum each block of 2x2 pixels.

    Args:
        stored_HW: shape (H, W), both even, uint16 up to 32,767, C order. Not changed.

    Returns:
        Shape (H / 2, W / 2), uint32; a new array.
    """
    # Two numbers up to 32,767 fit in a uint16; two neighbours are one uint32.
    sum_HW = (stored_HW[0::2] + stored_HW[1::2]).view(np.uint32)
    right_HW = sum_HW >> 16
    sum_HW &= 0xFFFF
    sum_HW += right_HW
    return sum_HW
