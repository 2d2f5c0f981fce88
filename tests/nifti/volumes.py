"""Small NIfTI volumes as bytes, and what reading them gives."""

from __future__ import annotations

import gzip
import struct
from typing import Any, Literal

import nibabel
import numpy as np
import numpy.typing as npt

from ichfast.errors import RejectError
from ichfast.nifti.volume import read_volume

RAS_AFFINE = np.diag([0.5, 0.4, 5.0, 1.0])
"""Voxels follow each other to the right, front and head, 0.5, 0.4 and 5 mm apart."""

OFFSETS = {"dim": 40, "datatype": 70, "bitpix": 72, "pixdim": 76, "vox_offset": 108}
"""Where some fields of a NIfTI-1 header are, bytes."""


def head_hu(shape: tuple[int, int, int], seed: int = 0) -> npt.NDArray[np.int16]:
    """HU of every kind, air and bone among them."""
    return np.random.default_rng(seed).integers(-1024, 3000, shape, np.int16)


def nifti(
    voxels: npt.NDArray[Any],
    affine: npt.NDArray[np.float64] = RAS_AFFINE,
    *,
    slope: float | None = None,
    intercept: float = 0.0,
    version: int = 1,
    big_endian: bool = False,
    **fields: Any,
) -> bytes:
    """The file of a volume; any field of the header can be changed.

    Args:
        voxels: numbers as they are in the file.
        affine: shape (4, 4), to the right, front and head, mm.
        slope: scl_slope, which rescales the numbers; None leaves it out.
        intercept: scl_inter.
        version: of NIfTI.
        big_endian: write the header and the voxels in this byte order.
        fields: other fields of the header.
    """
    header = nibabel.Nifti1Header() if version == 1 else nibabel.Nifti2Header()
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    header.set_sform(affine, 1)
    header.set_qform(affine, 1)
    header["vox_offset"] = 352 if version == 1 else 544
    header["scl_slope"], header["scl_inter"] = slope or 0.0, intercept
    for name, value in fields.items():
        header[name] = value
    order: Literal["<", ">"] = ">" if big_endian else "<"
    head = header.as_byteswapped(order).binaryblock
    numbers = voxels.astype(voxels.dtype.newbyteorder(order))
    return bytes(head) + bytes(4) + numbers.tobytes("F")


def packed(content: bytes) -> bytes:
    """The file as .nii.gz."""
    return gzip.compress(content, compresslevel=1, mtime=0)


def with_field(content: bytes, name: str, code: str, *values: float) -> bytes:
    """Overwrite a field of a NIfTI-1 header, also with values that nibabel refuses."""
    changed = bytearray(content)
    struct.pack_into(f"<{len(values)}{code}", changed, OFFSETS[name], *values)
    return bytes(changed)


def read_hu(content: bytes, name: str = "head.nii") -> npt.NDArray[np.int32]:
    """HU of all slices, shape (Z, H, W), in the order of their positions."""
    slices = sorted(read_volume(content, name), key=lambda each: each.position_mm)
    return np.stack([each.stored_HW.astype(np.int32) for each in slices]) - 1024


def rejection(content: bytes, name: str = "head.nii") -> RejectError:
    """Why a file is rejected; it must be."""
    try:
        slices = list(read_volume(content, name))
    except RejectError as error:
        return error
    raise AssertionError(f"{len(slices)} slices were read")
