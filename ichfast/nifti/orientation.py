"""How the array of a volume is cut into axial slices that lie as those of DICOM do.

A volume is transposed and flipped, never resampled. Its slices follow each other along
the array axis that is nearest to the body's. Of the other two axes, the one nearest to
left and right becomes the columns, the other one the rows. They are flipped where that
is needed, so that columns follow each other to the patient's left, and rows to the
back. Slices stay in the order of the file; their positions tell where they lie.

Shape letters: Z slices, H rows, W columns. Directions are (left, back, head).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Orientation:
    """The array axes of a volume in the order of slices, rows and columns."""

    axes: tuple[int, int, int]
    """Array axes along which slices, the rows of a slice, and columns follow."""

    signs: tuple[int, int]
    """-1 where the axis of rows runs to the front, or that of columns to the right."""

    cosines: tuple[float, ...]
    """Six direction cosines: of a row, of a column, as in (0020,0037)."""

    positions_mm: npt.NDArray[np.float64]
    """Shape (Z,): distance of each slice from the origin along the normal, mm."""

    spacing_mm: tuple[float, float, float]
    """Distance between slices, along their normal, between rows and columns, mm."""

    @property
    def tilt_deg(self) -> float:
        """Angle between a slice and the axial plane, degrees."""
        (ax, ay, _), (bx, by, _) = self.cosines[:3], self.cosines[3:]
        length = np.linalg.norm(np.cross(self.cosines[:3], self.cosines[3:]))
        return math.degrees(math.acos(min(1.0, abs(ax * by - ay * bx) / length)))


def orient(
    steps: npt.NDArray[np.float64],
    origin: npt.NDArray[np.float64],
    shape: tuple[int, int, int],
) -> Orientation:
    """Find how a volume lies in the body.

    Args:
        steps: shape (3, 3), mm; column k is the way along array axis k; invertible.
        origin: shape (3,), mm: center of the first voxel.
        shape: voxels along each array axis.
    """
    lengths = np.linalg.norm(steps, axis=0)
    units = steps / lengths
    slice_axis = max(range(3), key=lambda axis: abs(_plane_normal(units, axis)[2]))
    a, b = (axis for axis in range(3) if axis != slice_axis)
    if abs(units[0, a]) + abs(units[1, b]) >= abs(units[0, b]) + abs(units[1, a]):
        column_axis, row_axis = a, b
    else:
        column_axis, row_axis = b, a
    row_sign = -1 if units[1, row_axis] < 0 else 1
    column_sign = -1 if units[0, column_axis] < 0 else 1
    cosines = *(column_sign * units[:, column_axis]), *(row_sign * units[:, row_axis])
    normal = np.cross(cosines[:3], cosines[3:])
    step_mm = float(normal @ steps[:, slice_axis])
    index_Z = np.arange(shape[slice_axis], dtype=np.float64)
    return Orientation(
        axes=(slice_axis, row_axis, column_axis),
        signs=(row_sign, column_sign),
        cosines=tuple(map(float, cosines)),
        positions_mm=float(normal @ origin) + step_mm * index_Z,
        spacing_mm=(
            abs(step_mm),
            float(lengths[row_axis]),
            float(lengths[column_axis]),
        ),
    )


def as_slices(volume: npt.NDArray[Any], orientation: Orientation) -> npt.NDArray[Any]:
    """View a volume as slices.

    Args:
        volume: with the array axes of the file.
        orientation: of the volume.

    Returns:
        Shape (Z, H, W), a view; Z in the order of the file.
    """
    row_sign, column_sign = orientation.signs
    return volume.transpose(orientation.axes)[:, ::row_sign, ::column_sign]


def _plane_normal(units: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
    """The normal of the planes along an axis, of length 1."""
    a, b = (units[:, other] for other in range(3) if other != axis)
    normal = np.cross(a, b)
    return normal / np.linalg.norm(normal)
