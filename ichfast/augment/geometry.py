"""The geometry of augmentation: matrices, one for each thing that may happen.

Each function gives 3x3 matrices that take a place in the output to the place in the
source it is read from, homogeneous, in centred coordinates: x to the right and y
down, -1 to 1 from edge to edge. `to_pixels` composes them and changes to pixels,
corner-based: the first pixel reaches from 0 to 1.

Shape letters: B slices of the batch, S output size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
"""Shape (B,), or (B, 2) and so on as the name says."""


def count_halvings(
    rows: npt.NDArray[np.integer], columns: npt.NDArray[np.integer], size: int
) -> npt.NDArray[np.int64]:
    """How often slices are halved before the resample: never below `size`.

    Args:
        rows: of the sources, shape (B,).
        columns: likewise.
        size: side of the output, pixels.

    Returns:
        Shape (B,), int64.
    """
    longer_B = np.maximum(rows, columns)
    return np.maximum(np.floor(np.log2(longer_B / size)), 0).astype(np.int64)


def halved_shape(
    shape_B2: npt.NDArray[np.int64], halvings_B: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Rows and columns of slices after some halvings; odd sides are rounded up.

    Args:
        shape_B2: rows and columns before.
        halvings_B: how often each is halved.
    """
    return -(-shape_B2 >> halvings_B[:, np.newaxis])


def mirror(flipped_B: npt.NDArray[np.bool_]) -> Numbers:
    """Left to right, where flipped."""
    matrix_B33 = identity(len(flipped_B))
    matrix_B33[:, 0, 0] = np.where(flipped_B, -1.0, 1.0)
    return matrix_B33


def symmetry(number_B: npt.NDArray[np.int64]) -> Numbers:
    """One of the square's eight symmetries: 0 is the identity.

    Args:
        number_B: 0 to 7: plus 1 mirrors x, plus 2 mirrors y, plus 4 swaps the two.

    Source:
        fastai v1 `dihedral_affine`.
    """
    sign_x_B = np.where(number_B & 1, -1.0, 1.0)
    sign_y_B = np.where(number_B & 2, -1.0, 1.0)
    swaps_B = (number_B & 4) > 0
    matrix_B33 = identity(len(number_B))
    matrix_B33[:, 0, 0] = np.where(swaps_B, 0.0, sign_x_B)
    matrix_B33[:, 0, 1] = np.where(swaps_B, sign_x_B, 0.0)
    matrix_B33[:, 1, 0] = np.where(swaps_B, sign_y_B, 0.0)
    matrix_B33[:, 1, 1] = np.where(swaps_B, 0.0, sign_y_B)
    return matrix_B33


def zoom(factor_B: Numbers, focus_B2: Numbers) -> Numbers:
    """Enlarge by a factor; `focus_B2`, shares of width and height, stays in place.

    Source:
        fastai v1 `zoom`.
    """
    scale_B = 1.0 / factor_B
    matrix_B33 = identity(len(scale_B))
    matrix_B33[:, 0, 0] = matrix_B33[:, 1, 1] = scale_B
    matrix_B33[:, :2, 2] = (1.0 - scale_B)[:, None] * (2.0 * focus_B2 - 1.0)
    return matrix_B33


def rotation(angle_B: Numbers) -> Numbers:
    """Turn about the centre, clockwise, rad."""
    matrix_B33 = identity(len(angle_B))
    matrix_B33[:, 0, 0] = matrix_B33[:, 1, 1] = np.cos(angle_B)
    matrix_B33[:, 0, 1] = np.sin(angle_B)
    matrix_B33[:, 1, 0] = -np.sin(angle_B)
    return matrix_B33


def warp(moved_B4: Numbers) -> Numbers:
    """The perspective that brings four moved corners back to the square's.

    Args:
        moved_B4: how far outwards, in half sides: of the right corners up and down,
            of the left ones, of the lower ones to the sides, of the upper ones.

    Source:
        fastai v1 `symmetric_warp`: four magnitudes, each moving one pair of
        corners along one axis; the eight coefficients solve a linear system.
    """
    system_B88 = np.zeros((len(moved_B4), 8, 8))
    known_B8 = np.zeros((len(moved_B4), 8))
    for corner, (x, y) in enumerate(((-1, -1), (-1, 1), (1, -1), (1, 1))):
        moved_x_B = x * (1.0 + moved_B4[:, 3 if y < 0 else 2])
        moved_y_B = y * (1.0 + moved_B4[:, 1 if x < 0 else 0])
        for axis, wanted in ((0, x), (1, y)):
            row_B8 = system_B88[:, 2 * corner + axis]
            row_B8[:, 3 * axis] = moved_x_B
            row_B8[:, 3 * axis + 1] = moved_y_B
            row_B8[:, 3 * axis + 2] = 1.0
            row_B8[:, 6] = -wanted * moved_x_B
            row_B8[:, 7] = -wanted * moved_y_B
            known_B8[:, 2 * corner + axis] = wanted
    solved_B8 = np.linalg.solve(system_B88, known_B8[..., None])[..., 0]
    ones_B1 = np.ones((len(moved_B4), 1))
    return np.concatenate([solved_B8, ones_B1], axis=1).reshape(-1, 3, 3)


def shift(moved_B2: Numbers) -> Numbers:
    """Move to the right and down, in sides of the output."""
    matrix_B33 = identity(len(moved_B2))
    matrix_B33[:, :2, 2] = -2.0 * moved_B2
    return matrix_B33


def to_pixels(
    steps: Sequence[Numbers],
    source_shape_B2: npt.NDArray[np.floating],
    size: int,
) -> npt.NDArray[np.float32]:
    """Compose matrices and change from centred coordinates to pixels.

    Args:
        steps: what happens to the slice, first to last.
        source_shape_B2: rows and columns of the sources; the longer side of each
            fills the output.
        size: side of the output, pixels.

    Returns:
        Output pixel to source pixel, shape (B, 3, 3), float32.
    """
    matrix_B33 = identity(len(source_shape_B2))
    for step_B33 in steps:
        matrix_B33 = matrix_B33 @ step_B33
    from_pixels_33 = np.array([[2 / size, 0, -1], [0, 2 / size, -1], [0, 0, 1]])
    to_source_B33 = identity(len(source_shape_B2))
    half_B2 = source_shape_B2[:, ::-1] / 2
    to_source_B33[:, 0, 0] = to_source_B33[:, 1, 1] = half_B2.max(axis=1)
    to_source_B33[:, :2, 2] = half_B2
    return (to_source_B33 @ matrix_B33 @ from_pixels_33).astype(np.float32)


def identity(count: int) -> Numbers:
    """Nothing moves, shape (`count`, 3, 3)."""
    return np.tile(np.eye(3), (count, 1, 1))
