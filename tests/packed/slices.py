"""Slices whose blocks have every width."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

COLUMNS = (
    *(1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65),
    *(100, 511, 513),
)
ROWS = (1, 2, 15, 16, 17, 33)
SHAPES = [(rows, columns) for rows in ROWS for columns in COLUMNS]
"""Around the sides of blocks and of groups of rows."""


def draw_slice(
    shape: tuple[int, int], bits: int, rng: np.random.Generator
) -> npt.NDArray[np.uint16]:
    """Noise, of another size in each row, alone or added up along both axes.

    Args:
        shape: rows and columns.
        bits: of the largest noise, 1 to 16.
        rng: decides all.

    Returns:
        Shape (H, W), uint16.
    """
    noise_HW = rng.integers(0, 2**bits, shape, np.uint16)
    noise_HW >>= rng.integers(0, bits + 1, (shape[0], 1)).astype(np.uint16)
    if rng.random() < 0.3:
        return noise_HW
    along_HW = np.cumsum(noise_HW, axis=1, dtype=np.uint16)
    return np.cumsum(along_HW, axis=0, dtype=np.uint16)
