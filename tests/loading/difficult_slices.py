"""Slices that are difficult for a resample, for windows and for halving, as a store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.store.slice_store import simple_rows, write_slices


def in_hu(hu_HW: npt.ArrayLike) -> npt.NDArray[np.uint16]:
    return (np.asarray(hu_HW) + 1024).astype(np.uint16)


def noise(rows: int, columns: int) -> npt.NDArray[np.uint16]:
    """Random numbers of brain and bone, up to the largest that a store can hold."""
    rng = np.random.default_rng(rows)
    hu_HW = np.where(
        rng.random((rows, columns)) < 0.01,
        rng.integers(-1024, 31_744, (rows, columns)),
        rng.integers(-20, 120, (rows, columns)),
    )
    return in_hu(hu_HW)


def impulses() -> npt.NDArray[np.uint16]:
    """Air with a single bright pixel in each corner and in the middle."""
    stored_HW = np.zeros((512, 512), np.uint16)
    stored_HW[[0, 0, -1, -1, 256], [0, -1, 0, -1, 256]] = 32_767
    return stored_HW


EVEN_HW = np.indices((512, 512)).sum(axis=0) % 2
EDGES_HU = [-1024, -1, 0, 1, 27, 28, 29, 36, 37, 39, 40, 41, 79, 80, 81, 180, 2000]

SLICES: dict[str, npt.NDArray[np.uint16]] = {
    "ramp to the right": in_hu(np.tile(np.arange(512) // 2 - 60, (512, 1))),
    "ramp to the left": in_hu(np.tile(200 - np.arange(512), (512, 1))),
    "ramp down": np.tile(np.arange(512)[:, None] * 64, (1, 512)).astype(np.uint16),
    "ramp up": in_hu(np.tile(100 - np.arange(512)[:, None] // 3, (1, 512))),
    "checkerboard of everything": (EVEN_HW * 32_767).astype(np.uint16),
    "checkerboard of a window": in_hu(EVEN_HW * 80),
    "impulses": impulses(),
    "air": np.zeros((512, 512), np.uint16),
    "the brightest": np.full((512, 512), 32_767, np.uint16),
    "brain": in_hu(np.full((512, 512), 37)),
    "edges of windows": in_hu(np.resize(np.repeat(EDGES_HU, 16), (512, 512))),
    **{
        f"{rows}x{columns}": noise(rows, columns)
        for rows, columns in (
            *((638, 490), (513, 511), (768, 768), (436, 436), (71, 73)),
            *((1, 300), (300, 1), (1, 1), (2, 700), (3, 5)),
        )
    },
}
"""Difficult slices for a resample, for windows and for halving."""

OWN = [(40.0, 80.0), (80.0, 200.0), (36.0, 80.0), (np.nan, np.nan), (50.0, 100.0)]


def write_adversaries(
    path: Path, slices: list[npt.NDArray[np.uint16]], *, slices_a_series: int = 1
) -> None:
    count = len(slices)
    centers, widths = zip(*(OWN[k % len(OWN)] for k in range(count)), strict=True)
    rows = simple_rows(
        count,
        slices_a_series=slices_a_series,
        window_center=centers,
        window_width=widths,
    )
    write_slices(path, slices, rows, np.zeros((count, 6), int))
