"""Labels of slices from a mask: a volume whose numbers name the class of each voxel.

Shape letters: Z slices, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ichfast.dicom import guard
from ichfast.errors import RejectError
from ichfast.labels import CLASSES, with_any
from ichfast.nifti.header import VolumeHeader, is_nifti, read_header, read_voxels
from ichfast.nifti.orientation import as_slices, orient

MAX_SHIFT = 0.5
"""Upper limit of the distance between a voxel and that of its mask, in voxels of the
smallest side. Programs round an affine differently."""

_MAX_ROUNDING = 1e-3
"""Upper limit of the distance between the value of a voxel and a whole number."""


def read_mask(
    mask: bytes, volume: bytes, classes: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Read the labels of the slices of a volume from its mask.

    Args:
        mask: the file of the mask.
        volume: the file of the volume.
        classes: the class of value 1, of value 2 and so on, of `CLASSES`. 0 is none.

    Returns:
        Shape (Z, 6), in the order of the file, classes in `CLASSES` order: 1 where a
        voxel of the slice has the value of the class, 0 where none has, NaN for a class
        that is not in `classes`. `any` is the OR of all five subtypes.

    Raises:
        RejectError: the volume or the mask cannot be read, the mask has another shape
            or affine than the volume, or values beyond `classes`.
    """
    with guard.reject_failures("bad-header", "header"):
        header, like = _read_header(mask, "it"), _read_header(volume, "its volume")
        _check_same(header, like)
        orientation = orient(header.steps, header.origin, header.shape)
    with guard.reject_failures("decoder-error", "voxels"):
        numbers_ZHW = as_slices(read_voxels(mask, header), orientation)
        labels_ZK = np.full((len(numbers_ZHW), len(CLASSES)), np.nan, np.float32)
        columns = [CLASSES.index(name) for name in classes]
        labels_ZK[:, columns] = 0
        for labels_K, numbers_HW in zip(labels_ZK, numbers_ZHW, strict=True):
            for value in _values(numbers_HW, header, len(classes)) - {0}:
                labels_K[columns[value - 1]] = 1
    return with_any(labels_ZK)


def _read_header(content: bytes, what: str) -> VolumeHeader:
    if not is_nifti(content):
        raise RejectError("bad-header", f"{what} is no NIfTI file")
    return read_header(content)


def _check_same(mask: VolumeHeader, volume: VolumeHeader) -> None:
    """Check that a mask has the voxels of its volume.

    Raises:
        RejectError: ``bad-header``, it has another shape or affine.
    """
    if mask.shape != volume.shape:
        shapes = (" x ".join(map(str, each.shape)) for each in (mask, volume))
        raise RejectError(
            "bad-header", "it has {} voxels, its volume {}".format(*shapes)
        )
    corners = np.array(list(itertools.product(*((0, n - 1) for n in mask.shape))))
    shifts = corners @ (mask.steps - volume.steps).T + (mask.origin - volume.origin)
    shift_mm = float(np.linalg.norm(shifts, axis=1).max())
    side_mm = float(np.linalg.norm(volume.steps, axis=0).min())
    if not shift_mm <= MAX_SHIFT * side_mm:
        raise RejectError(
            "bad-header",
            f"its affine is not that of its volume: voxels lie {shift_mm:.3g} mm apart",
        )


def _values(
    numbers_HW: npt.NDArray[Any], header: VolumeHeader, num_classes: int
) -> set[int]:
    """The values in a slice of a mask.

    Raises:
        RejectError: ``decoder-error``, one is neither 0 nor that of a class.
    """
    values = np.unique(numbers_HW) * np.float64(header.slope) + header.intercept
    whole = np.rint(values)
    is_good = (whole >= 0) & (whole <= num_classes)
    is_good &= abs(values - whole) <= _MAX_ROUNDING
    if not is_good.all():
        raise RejectError(
            "decoder-error",
            f"it has the value {values[~is_good][0]:.6g}, and there are {num_classes} "
            "classes",
        )
    return set(whole.astype(int).tolist())
