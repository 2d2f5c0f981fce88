"""The geometry of augmentation: a 3x3 matrix for each kind of transform.

A matrix maps a point of the output to the point of the source that it is read from, in
homogeneous, centred coordinates: x to the right and y down, -1 to 1 from edge to edge.
`to_pixels` composes matrices and converts them to pixels, corner-based: the first pixel
reaches from 0 to 1.

Shape letters: B slices of the batch, S output size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
"""Array of float64; the suffix of a name gives the shape."""


def count_halvings(
    rows: npt.NDArray[np.integer], columns: npt.NDArray[np.integer], size: int
) -> npt.NDArray[np.int64]:
    """How often slices are halved before the resample.

    The longer side never falls below `size`.

    Args:
        rows: rows of the sources, shape (B,).
        columns: columns of the sources, shape (B,).
        size: side of the output, pixels.

    Returns:
        Shape (B,), int64.
    """
    longer_B = np.maximum(rows, columns)
    return np.maximum(np.floor(np.log2(longer_B / size)), 0).astype(np.int64)


def halved_shape(
    shape_B2: npt.NDArray[np.int64], halvings_B: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Rows and columns of slices after halving; odd sides are rounded up.

    Args:
        shape_B2: rows and columns before, shape (B, 2).
        halvings_B: how often each slice is halved, shape (B,).

    Returns:
        Shape (B, 2), int64.
    """
    return -(-shape_B2 >> halvings_B[:, np.newaxis])


def square(shape_B2: npt.NDArray[np.int64], aspect_B: Numbers) -> Numbers:
    """Matrices that show a slice as long and as wide as it is in mm.

    The longer side, in mm, fills the output, so the whole slice stays visible. Where
    pixels are square this is the identity.

    Args:
        shape_B2: rows and columns of the slices at their own resolution, shape (B, 2).
        aspect_B: height of a pixel over its width, shape (B,).
    """
    side_B2 = shape_B2 / shape_B2.max(axis=1, keepdims=True)
    extent_B = np.maximum(side_B2[:, 0] * aspect_B, side_B2[:, 1])
    matrix_B33 = identity(len(aspect_B))
    matrix_B33[:, 0, 0] = extent_B
    matrix_B33[:, 1, 1] = extent_B / aspect_B
    return matrix_B33


def mirror(flipped_B: npt.NDArray[np.bool_]) -> Numbers:
    """Matrices that flip a slice left to right where `flipped_B` is True."""
    matrix_B33 = identity(len(flipped_B))
    matrix_B33[:, 0, 0] = np.where(flipped_B, -1.0, 1.0)
    return matrix_B33


def symmetry(number_B: npt.NDArray[np.int64]) -> Numbers:
    """Matrices of the square's eight symmetries.

    Args:
        number_B: 0 to 7. Bit 1 mirrors x, bit 2 mirrors y, bit 4 swaps x and y; 0 is
            the identity.

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
    """Matrices that enlarge a slice around a fixed point.

    Args:
        factor_B: zoom factor, above 0; 1 changes nothing.
        focus_B2: the point that stays in place, as fractions of width and height.

    Source:
        fastai v1 `zoom`.
    """
    scale_B = 1.0 / factor_B
    matrix_B33 = identity(len(scale_B))
    matrix_B33[:, 0, 0] = matrix_B33[:, 1, 1] = scale_B
    matrix_B33[:, :2, 2] = (1.0 - scale_B)[:, None] * (2.0 * focus_B2 - 1.0)
    return matrix_B33


def rotation(angle_B: Numbers) -> Numbers:
    """Matrices that turn a slice anticlockwise about its centre by `angle_B`, rad.

    Source:
        fastai v1 `rotate`.
    """
    matrix_B33 = identity(len(angle_B))
    matrix_B33[:, 0, 0] = matrix_B33[:, 1, 1] = np.cos(angle_B)
    matrix_B33[:, 0, 1] = -np.sin(angle_B)
    matrix_B33[:, 1, 0] = np.sin(angle_B)
    return matrix_B33


def warp(moved_B4: Numbers) -> Numbers:
    """Matrices of the perspective that maps four moved corners back to the square's.

    Args:
        moved_B4: how far corners move outwards, in half sides: the right corners up and
            down, the left corners up and down, the lower corners to the sides, the
            upper corners to the sides.

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
    """Matrices that move a slice right and down by `moved_B2`, in output sides."""
    matrix_B33 = identity(len(moved_B2))
    matrix_B33[:, :2, 2] = -2.0 * moved_B2
    return matrix_B33


def to_pixels(
    steps: Sequence[Numbers],
    source_shape_B2: npt.NDArray[np.floating],
    size: int,
) -> npt.NDArray[np.float32]:
    """Compose matrices and convert them from centred coordinates to pixels.

    Args:
        steps: matrices of shape (B, 3, 3), in the order they apply to the slice.
        source_shape_B2: rows and columns of the sources; the longer side of each
            fills the output.
        size: side of the output, pixels.

    Returns:
        Matrices from output pixel to source pixel, shape (B, 3, 3), float32.
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
    """Identity matrices, shape (count, 3, 3)."""
    return np.tile(np.eye(3), (count, 1, 1))
