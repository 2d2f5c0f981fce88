"""Header values that the slices of a series share, interpreted once.

One program writes a series, so its slices repeat most values byte for byte. Values read
from the same bytes before come from a cache (for what that saves see bench/LOG.md,
2026-11).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

from ichfast.dicom.acquisition import Acquisition, read_acquisition
from ichfast.dicom.header import (
    TAGS,
    Header,
    Layout,
    check_grey,
    read_layout,
    read_padding,
    read_patient_id,
    read_rescale,
)
from ichfast.dicom.kind import check_kind
from ichfast.dicom.walker import Elements

_SLICE_KEYWORDS = (
    *("MediaStorageSOPInstanceUID", "TransferSyntaxUID", "SOPInstanceUID"),
    *("InstanceNumber", "ImagePositionPatient"),
    *("Exposure", "ExposureInuAs", "ExposureInmAs"),
)
"""Elements that belong to a slice or to its file, not to the series."""

_SERIES_TAGS = tuple(
    tag for keyword, tag in TAGS.items() if keyword not in _SLICE_KEYWORDS
)

_MAX_CACHED_HEADERS = 64
"""A header has at most 1.6 MB of values, so the cache takes at most 100 MB."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SeriesHeader:
    """Header values that the slices of a series nearly always share.

    An object equals only itself, which makes it a fast key, for `read_series_header`
    returns the same object for the same values.
    """

    layout: Layout

    rescale: tuple[float, float, bool]
    """Result of `ichfast.dicom.header.read_rescale`."""

    padding: tuple[int, int] | None
    """Result of `ichfast.dicom.header.read_padding`."""

    patient_id: str
    study_uid: str
    series_uid: str
    """(0010,0020), (0020,000D), (0020,000E). Empty where absent, and the first where it
    is a placeholder."""

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
    """Names of the defects that were mended in these values."""

    acquisition: Acquisition = field(default_factory=Acquisition)


def read_series_header(
    elements: Elements, accept: frozenset[str] = frozenset()
) -> SeriesHeader:
    """Read the values that a slice shares with its series, or take them from the cache.

    Args:
        elements: raw values of the file, or of a frame.
        accept: some of `KIND_CODES`, whose images are let through.

    Raises:
        RejectError: one of `KIND_CODES`, by `ichfast.dicom.kind.check_kind`; or
            ``colour``, ``bad-header`` or ``too-large``, by `check_grey`, `read_layout`,
            `read_rescale` and `Header.identifier` in `ichfast.dicom.header`.
    """
    return _read(tuple(map(elements.get, _SERIES_TAGS)), accept)


@lru_cache(_MAX_CACHED_HEADERS)
def _read(
    values: tuple[tuple[bytes, bool] | None, ...], accept: frozenset[str]
) -> SeriesHeader:
    found = zip(_SERIES_TAGS, values, strict=True)
    header = Header({tag: value for tag, value in found if value})
    check_kind(header, accept)
    check_grey(header)
    layout = read_layout(header)
    rescale = read_rescale(header)
    row_spacing, column_spacing = header.vector("PixelSpacing", 2) or (math.nan,) * 2
    return SeriesHeader(
        layout=layout,
        rescale=rescale,
        padding=read_padding(header, is_signed=layout.is_signed),
        patient_id=read_patient_id(header),
        study_uid=header.identifier("StudyInstanceUID"),
        series_uid=header.identifier("SeriesInstanceUID"),
        orientation=header.vector("ImageOrientationPatient", 6),
        row_spacing_mm=row_spacing,
        column_spacing_mm=column_spacing,
        thickness_mm=header.number("SliceThickness"),
        window_center=header.number("WindowCenter"),
        window_width=header.number("WindowWidth"),
        quirks=frozenset(header.quirks),
        acquisition=read_acquisition(header),
    )
