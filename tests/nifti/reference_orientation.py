"""Slices of a volume by the position of each voxel, slow and readable."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt


def slices_by_position(
    voxels: npt.NDArray[Any], affine: npt.NDArray[np.float64]
) -> npt.NDArray[Any]:
    """Cut a volume into axial slices, one voxel at a time.

    The position of each voxel is computed by the affine. Voxels are then numbered from
    foot to head, from front to back, and from right to left. This needs array axes
    along those of the body, in any order and direction.

    Args:
        voxels: with the array axes of the file.
        affine: shape (4, 4), from array indices to mm to the right, front and head.

    Returns:
        Shape (Z, H, W).
    """
    value_at = {}
    for index in itertools.product(*map(range, voxels.shape)):
        right, front, head, _ = affine @ (*index, 1)
        place = (round(head, 3), round(-front, 3), round(-right, 3))
        value_at[place] = voxels[index]
    axes = [sorted({place[axis] for place in value_at}) for axis in range(3)]
    slices_ZHW = np.zeros([len(axis) for axis in axes], voxels.dtype)
    for place, value in value_at.items():
        z, row, column = (axis.index(at) for axis, at in zip(axes, place, strict=True))
        slices_ZHW[z, row, column] = value
    return slices_ZHW
