"""Reads one NIfTI volume into slices of uint16, as `ichfast.dicom` reads DICOM files.

Promises:

1. `read_volume` yields slices or raises `RejectError`, for any bytes. Like DICOM files,
   volumes are read in workers that have a memory limit and a timer.
2. ``HU = number * scl_slope + scl_inter``, stored as those of DICOM files are. The same
   HU give the same bytes.
3. Slices lie as those of DICOM files do (`ichfast.nifti.orientation`), by flips and
   transposes alone.
4. Ids come from the name of the file. Nothing else that could name a person is read.

Shape letters: Z slices, H rows, W columns.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ichfast.dicom import guard
from ichfast.dicom.header import MAX_ID_LENGTH, Layout
from ichfast.dicom.hounsfield import to_stored
from ichfast.dicom.kind import MAX_TILT_DEG
from ichfast.dicom.series_header import SeriesHeader
from ichfast.dicom.slices import Slice
from ichfast.errors import RejectError
from ichfast.nifti.header import VolumeHeader, read_header, read_voxels
from ichfast.nifti.orientation import Orientation, as_slices, orient

SUFFIXES = (".nii.gz", ".nii")
"""Suffixes of volumes, which their ids do not have."""

AIR_HU, BONE_HU = -500.0, 255.0
"""A CT of a head has voxels below the first, air, and above the second, bone. A copy
that was windowed to 8 bits, normalized or masked has neither."""

MAX_HU = 2.0**16
"""Upper limit of the size of an HU. The largest in RSNA's files is 26,452."""

_RSNA_NAME = re.compile(r"(ID_[0-9a-f]+)_(ID_[0-9a-f]+)(?![0-9a-zA-Z])")
"""Names of volumes made of RSNA's slices: PatientID, then StudyInstanceUID."""


def read_volume(
    content: bytes, name: str, accept: frozenset[str] = frozenset()
) -> Iterator[Slice]:
    """Read the slices of a volume, one after another.

    Args:
        content: the whole file, which `is_nifti`.
        name: its path below the source, with ``/`` between parts.
        accept: some of `KIND_CODES`; ``not-hu`` and ``not-axial`` are let through.

    Yields:
        One slice for each index along the axis of slices, in the order of the file.

    Raises:
        RejectError: a code of `read_header` or `read_voxels`; ``not-axial``, it lies
            obliquely; ``not-hu``, its numbers are no HU; ``bad-header``, its name is
            too long.
    """
    with guard.reject_failures("bad-header", "header"):
        header = read_header(content)
        orientation = orient(header.steps, header.origin, header.shape)
        problems = {"not-axial": _why_not_axial(orientation)}
    with guard.reject_failures("decoder-error", "voxels"):
        volume = read_voxels(content, header)
        problems["not-hu"] = _why_not_hu(volume, header)
        slices_ZHW = as_slices(volume, orientation)
    quirks = {code for code, reason in problems.items() if reason}
    for code in sorted(quirks - accept):
        raise RejectError(code, problems[code])
    if not header.has_orientation:
        quirks.add("missing_affine")
    stem = volume_stem(name)
    series_header = _series_header(stem, header, orientation, slices_ZHW.shape)
    for index in range(len(slices_ZHW)):
        with guard.reject_failures("decoder-error", "voxels"):
            native = header.dtype.newbyteorder("=")
            raw_HW = np.ascontiguousarray(slices_ZHW[index], dtype=native)
            stored_HW = to_stored(raw_HW, header.slope, header.intercept)
        yield Slice(
            stored_HW=stored_HW,
            slice_id=f"{stem}/{index}",
            series_header=series_header,
            position_mm=float(orientation.positions_mm[index]),
            instance_number=index + 1,
            rescale_slope=header.slope,
            rescale_intercept=header.intercept,
            transfer_syntax_uid="",
            exposure_mas=None,
            rejected_frames=(),
            quirks=tuple(sorted(quirks)),
        )


def volume_stem(name: str) -> str:
    """The name of a volume without its suffix."""
    suffix = next((each for each in SUFFIXES if name.lower().endswith(each)), "")
    return name[: len(name) - len(suffix)]


def _why_not_axial(orientation: Orientation) -> str:
    """Why no array axis is near that of the body; empty if one is."""
    if orientation.tilt_deg <= MAX_TILT_DEG:
        return ""
    return (
        f"its affine is {orientation.tilt_deg:.0f} degrees from axial, expected at "
        f"most {MAX_TILT_DEG:.0f}; use the volume as it was scanned"
    )


def _why_not_hu(volume: npt.NDArray[Any], header: VolumeHeader) -> str:
    """Why the numbers of a volume are not HU; empty if they can be.

    Raises:
        RejectError: ``not-hu``, some are not finite.
    """
    ends = (volume.min(), volume.max())  # NaN if any number is
    low_hu, high_hu = sorted(
        float(end) * header.slope + header.intercept for end in ends
    )
    if not (math.isfinite(low_hu) and math.isfinite(high_hu)):
        raise RejectError(
            "not-hu",
            "voxels are NaN or infinite; write HU, with -1000 outside of the scan",
        )
    shown = f"values from {low_hu:.6g} to {high_hu:.6g}"
    if low_hu >= AIR_HU and high_hu <= BONE_HU:
        return (
            f"{shown}, as of a windowed or masked copy; expected HU with air below "
            f"{AIR_HU:.0f}; use the volume before windowing"
        )
    if max(-low_hu, high_hu) > MAX_HU:
        return f"{shown}, expected HU of at most {MAX_HU:,.0f}; use the volume in HU"
    return ""


def _series_header(
    stem: str, header: VolumeHeader, orientation: Orientation, shape_ZHW: Any
) -> SeriesHeader:
    if len(stem) > MAX_ID_LENGTH:
        raise RejectError(
            "bad-header",
            f"its path has {len(stem):,} characters, the limit is {MAX_ID_LENGTH}; "
            "move it, or name a folder nearer to it as source",
        )
    patient, study = patient_and_study(stem)
    bits = 8 * header.dtype.itemsize
    thickness_mm, row_spacing_mm, column_spacing_mm = orientation.spacing_mm
    return SeriesHeader(
        layout=Layout(
            rows=shape_ZHW[1],
            columns=shape_ZHW[2],
            num_frames=shape_ZHW[0],
            bits_allocated=bits,
            bits_stored=bits,
            high_bit=bits - 1,
            is_signed=header.dtype.kind != "u",
        ),
        rescale=(header.slope, header.intercept, True),
        padding=None,
        patient_id=patient,
        study_uid=study,
        series_uid=stem,
        orientation=orientation.cosines,
        row_spacing_mm=row_spacing_mm,
        column_spacing_mm=column_spacing_mm,
        thickness_mm=thickness_mm,
        window_center=math.nan,
        window_width=math.nan,
        quirks=frozenset(),
    )


def patient_and_study(stem: str) -> tuple[str, str]:
    """The ids of a volume: those of RSNA if its name has them, or else name and path.

    Volumes of several patients may have one name, each in a folder of its own. Then
    their studies still differ.
    """
    file = stem.rpartition("/")[2]
    found = _RSNA_NAME.match(file)
    return (found[1], found[2]) if found else (file, stem)
