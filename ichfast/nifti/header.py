"""Headers of NIfTI-1 and NIfTI-2 files; only this module imports nibabel.

nibabel interprets the header block. Extensions, and texts such as descrip and aux_file,
are not read: they may name a person.
"""

from __future__ import annotations

import gzip
import io
import logging
import math
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ichfast.dicom.header import MAX_FRAMES
from ichfast.errors import RejectError

MAX_VOLUME_BYTES = 2**29
"""Upper limit of the voxels of a volume, unpacked, bytes: 512x512x1,024 of 16 bits."""

MAX_FIRST_BYTE = 2**24
"""Upper limit of the offset of the voxels, which is the size of all extensions."""

MAX_STEP_MM = 1e4
"""Upper limit of the distance between two voxels, mm."""

MIN_DETERMINANT = 1e-3
"""Lower limit of the volume that the directions of the array axes span. It is 1 where
they are perpendicular, and 0 where they lie in a plane."""

GZIP_MAGIC = b"\x1f\x8b"

_HEADER_BYTES = {348: 1, 540: 2}
"""The version of NIfTI for each size of its header, which is the first number of a
file."""

_MAGIC = {
    1: (slice(344, 348), (b"n+1\0", b"ni1\0")),
    2: (slice(4, 8), (b"n+2\0", b"ni2\0")),
}
"""Where the magic of a version is, and what it is in a file with and without voxels.

Source:
    nifti1.h and nifti2.h of the NIfTI standard, field magic.
"""

_FIRST_VOXEL = {1: 352, 2: 544}
"""The least offset of the voxels, bytes, by version."""

_MM_PER_UNIT = {1: 1000.0, 3: 0.001}
"""Millimetres per unit of the affine: metres, micrometres. Else it is in millimetres.

Source:
    nifti1.h, field xyzt_units, the lowest three bits.
"""

_CHUNK_BYTES = 2**20
"""Unpacked bytes that are read at a time."""

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])
"""From NIfTI's axes of the body, to the right, front and head, to those of DICOM."""

# nibabel reports each flaw of a header that it mends.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class VolumeHeader:
    """What a header tells about its voxels. Array axes are in the order of the file."""

    shape: tuple[int, int, int]
    """Voxels along each array axis."""

    dtype: np.dtype[Any]
    """Integer or floating point, of up to 8 bytes."""

    slope: float
    intercept: float
    """HU per step of a voxel's number, and HU of number 0."""

    steps: npt.NDArray[np.float64]
    """Shape (3, 3), mm. Column k is the way from a voxel to the next one along array
    axis k, to the patient's left, back and head."""

    origin: npt.NDArray[np.float64]
    """Shape (3,), mm: center of the first voxel, on the same axes."""

    first_byte: int
    """Offset of the voxels in the unpacked file, bytes."""

    has_orientation: bool
    """Whether the file has an affine. If not, axes are as in Analyze files: to the
    left, front and head."""


def is_nifti(content: bytes) -> bool:
    """Whether a file is NIfTI, perhaps packed by gzip; its first bytes decide."""
    return _version(_head(content)) != 0


def read_header(content: bytes) -> VolumeHeader:
    """Read the header of a volume, and check that its voxels can be read.

    Args:
        content: a file for which `is_nifti` is true.

    Raises:
        RejectError: ``no-decoder``, nibabel is not installed; ``bad-header``, a value
            is impossible; ``not-ct``, it has not three axes; ``colour`` or ``not-hu``,
            a voxel is a colour or a complex number; ``too-large``, it has too many
            voxels.
    """
    head = _head(content)
    version = _version(head)
    where, magics = _MAGIC[version]
    if head[where] == magics[1]:
        raise RejectError(
            "bad-header", "its voxels are in an .img file; convert both to one .nii"
        )
    header = _parse(head, version)
    shape = _three_axes(header.get_data_shape())
    dtype = _number_type(header.get_data_dtype())
    _check_size(shape, dtype)
    slope, intercept = header.get_slope_inter()
    steps, origin = _affine(header)
    first_byte = int(header["vox_offset"]) or _FIRST_VOXEL[version]
    if not 0 < first_byte <= MAX_FIRST_BYTE:
        raise RejectError(
            "bad-header",
            f"its voxels begin at byte {first_byte:,}, the limit is {MAX_FIRST_BYTE:,}",
        )
    return VolumeHeader(
        shape=shape,
        dtype=dtype,
        slope=1.0 if slope is None else slope,
        intercept=0.0 if intercept is None else intercept,
        steps=steps,
        origin=origin,
        first_byte=first_byte,
        has_orientation=bool(header["sform_code"] or header["qform_code"]),
    )


def read_voxels(content: bytes, header: VolumeHeader) -> npt.NDArray[Any]:
    """Read the numbers of a volume as they are in the file.

    Args:
        content: the file.
        header: its header.

    Returns:
        Shape `header.shape`, in Fortran order, in the file's byte order; a view of
        `content` unless that is packed.

    Raises:
        RejectError: ``truncated-pixels``, there are fewer bytes than the header states.
    """
    num_bytes = math.prod(header.shape) * header.dtype.itemsize
    first, end = header.first_byte, header.first_byte + num_bytes
    is_packed = content.startswith(GZIP_MAGIC)
    whole = _unpack(content, end) if is_packed else content
    if len(whole) < end:
        found = max(0, len(whole) - first)
        raise RejectError(
            "truncated-pixels", f"{found:,} bytes, expected {num_bytes:,}"
        )
    return np.ndarray(header.shape, header.dtype, whole, first, order="F")


def _head(content: bytes) -> bytes:
    """The first bytes of a file, unpacked."""
    num_bytes = max(_HEADER_BYTES)
    if not content.startswith(GZIP_MAGIC):
        return content[:num_bytes]
    try:
        return zlib.decompressobj(wbits=31).decompress(
            content[:_CHUNK_BYTES], num_bytes
        )
    except zlib.error:
        return b""


def _version(head: bytes) -> int:
    """The version of a file's header; 0 if it is no NIfTI."""
    for order in ("<i", ">i"):
        (size,) = struct.unpack(order, head[:4].ljust(4, b"\0"))
        version = _HEADER_BYTES.get(size, 0)
        if version and len(head) >= size:
            where, magics = _MAGIC[version]
            return version if head[where] in magics else 0
    return 0


def _parse(head: bytes, version: int) -> Any:
    try:
        from nibabel import nifti1, nifti2
    except ImportError as error:
        raise RejectError(
            "no-decoder", "NIfTI needs nibabel; pip install 'ichfast[nifti]'"
        ) from error
    if version == 1:
        return nifti1.Nifti1Header(head[:348])
    return nifti2.Nifti2Header(head[:540])


def _affine(
    header: Any,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The steps and the origin of a `VolumeHeader`."""
    affine = header.get_best_affine()
    mm = _MM_PER_UNIT.get(int(header["xyzt_units"]) % 8, 1.0)
    steps, origin = _RAS_TO_LPS @ affine[:3, :3] * mm, _RAS_TO_LPS @ affine[:3, 3] * mm
    lengths_mm = np.linalg.norm(steps, axis=0)
    if not (
        np.isfinite(affine).all()
        and 0 < lengths_mm.min() <= lengths_mm.max() <= MAX_STEP_MM
        and abs(np.linalg.det(steps / lengths_mm)) > MIN_DETERMINANT
    ):
        raise RejectError(
            "bad-header", "its affine places no voxels in space; write the volume again"
        )
    return steps, origin


def _three_axes(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape without axes of one voxel behind the third."""
    axes = list(map(int, shape))
    while len(axes) > 3 and axes[-1] == 1:
        axes.pop()
    shown = " x ".join(map(str, axes))
    if len(axes) != 3:
        raise RejectError(
            "not-ct",
            f"{len(axes)} axes ({shown}), expected the 3 of a CT; write each volume to "
            "a file of its own",
        )
    if min(axes) < 1:
        raise RejectError("bad-header", f"{shown} voxels")
    return axes[0], axes[1], axes[2]


def _number_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind == "V":
        raise RejectError("colour", "voxels are colours; expected numbers in HU")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise RejectError("not-hu", f"voxels are {dtype.name}; expected numbers in HU")
    return dtype


def _check_size(shape: tuple[int, int, int], dtype: np.dtype[Any]) -> None:
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes > MAX_VOLUME_BYTES or max(shape) > MAX_FRAMES:
        raise RejectError(
            "too-large",
            f"{' x '.join(map(str, shape))} voxels of {dtype.itemsize} bytes; the "
            f"limits are {MAX_FRAMES:,} along an axis and {MAX_VOLUME_BYTES:,} bytes",
        )


def _unpack(content: bytes, num_bytes: int) -> bytearray:
    """The first bytes of a packed file; fewer if it has not so many."""
    unpacked = bytearray(num_bytes)
    with (
        gzip.GzipFile(fileobj=io.BytesIO(content)) as stream,
        memoryview(unpacked) as left,
    ):
        num_read = 0
        while num_read < num_bytes:
            piece = stream.read(min(_CHUNK_BYTES, num_bytes - num_read))
            if not piece:
                break
            left[num_read : num_read + len(piece)] = piece
            num_read += len(piece)
        if num_read == num_bytes:
            stream.read(1)  # the end of the file, where its checksum is
    del unpacked[num_read:]
    return unpacked
