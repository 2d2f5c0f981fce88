"""What a header has in common with those of the same series, interpreted once.

A series is written by one program, so its slices repeat most values to the byte.
What was read from the same bytes before is remembered (what that saves: bench/LOG.md,
2026-11).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from ichfast.dicom.header import (
    TAGS,
    Header,
    Layout,
    check_kind,
    read_layout,
    read_padding,
    read_rescale,
)
from ichfast.dicom.walker import Elements

_OWN = ("TransferSyntaxUID", "SOPInstanceUID", "InstanceNumber", "ImagePositionPatient")
"""Elements that are each slice's own, or the file's."""

_COMMON_TAGS = tuple(tag for keyword, tag in TAGS.items() if keyword not in _OWN)

_MAX_REMEMBERED_BYTES = 4096
"""Of a header's values; of longer ones only the last are remembered, so that hostile
files cannot fill the memory, nor have the same read again for each frame."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Common:
    """What the slices of a series have in common, nearly always.

    Equal to itself only: a key that costs no comparison, while `read_common` gives the
    same one again.
    """

    layout: Layout

    rescale: tuple[float, float, bool]
    """As `dicom.header.read_rescale` gives it."""

    padding: tuple[int, int] | None
    """As `dicom.header.read_padding` gives it."""

    patient_id: str
    study_uid: str
    series_uid: str
    """(0010,0020), (0020,000D), (0020,000E). Empty where absent."""

    orientation: tuple[float, ...]
    """(0020,0037), six cosines: of the rows, of the columns. Empty where absent."""

    row_spacing_mm: float
    column_spacing_mm: float
    """(0028,0030), between rows and between columns. NaN where absent."""

    thickness_mm: float
    """(0018,0050). NaN where absent."""

    window_center: float
    window_width: float
    """(0028,1050) and (0028,1051), HU, the first value. NaN where absent."""

    quirks: frozenset[str]
    """Names of what had to be mended in these."""


def read_common(elements: Elements) -> Common:
    """Read what a slice has in common with its series, or remember it.

    Raises:
        RejectError: as `check_kind`, `read_layout`, `read_rescale` and
            `Header.identifier` of `headers`.
    """
    values = tuple(map(elements.get, _COMMON_TAGS))
    num_bytes = sum(len(value[0]) for value in values if value)
    read = _remember_common if num_bytes <= _MAX_REMEMBERED_BYTES else _remember_last
    return read(values)


def _read_common(values: tuple[tuple[bytes, bool] | None, ...]) -> Common:
    found = zip(_COMMON_TAGS, values, strict=True)
    header = Header({tag: value for tag, value in found if value})
    check_kind(header)
    layout = read_layout(header)
    rescale = read_rescale(header)
    row_spacing, column_spacing = header.vector("PixelSpacing", 2) or (math.nan,) * 2
    return Common(
        layout=layout,
        rescale=rescale,
        padding=read_padding(header, is_signed=layout.is_signed),
        patient_id=header.identifier("PatientID"),
        study_uid=header.identifier("StudyInstanceUID"),
        series_uid=header.identifier("SeriesInstanceUID"),
        orientation=header.vector("ImageOrientationPatient", 6),
        row_spacing_mm=row_spacing,
        column_spacing_mm=column_spacing,
        thickness_mm=header.number("SliceThickness"),
        window_center=header.number("WindowCenter"),
        window_width=header.number("WindowWidth"),
        quirks=frozenset(header.quirks),
    )


_remember_common = lru_cache(maxsize=64)(_read_common)
_remember_last = lru_cache(maxsize=1)(_read_common)
