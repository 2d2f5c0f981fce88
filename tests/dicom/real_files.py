"""The real files of the test set, and what the reader must make of them."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from ichfast.sources.sources import list_entries, read_entries

DATA = Path(__file__).parents[3] / "shared" / "data"

needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="the real files of ../shared/data are not here"
)

HUNT = DATA / "hunt"

needs_hunt = pytest.mark.skipif(
    not HUNT.is_dir(), reason="the files of ../shared/data/hunt are not here"
)

EDGE = "derived/edge_GE_signed16"

ZOO = "zoo/pydicom"

REJECTED = {
    f"{EDGE}/empty_file.dcm": "empty",
    f"{EDGE}/empty_pixeldata.dcm": "no-pixels",
    f"{EDGE}/no_pixeldata.dcm": "no-pixels",
    f"{EDGE}/not_dicom_png.dcm": "not-dicom",
    f"{EDGE}/shortpixels_like_ID_6431af929.dcm": "truncated-pixels",
    f"{EDGE}/truncated_in_header.dcm": "bad-header",
    f"{EDGE}/truncated_like_ID_6431af929.dcm": "truncated-pixels",
    "zoo/cornerstone_CTImage_chest/CTImage_1.2.840.10008.1.2.4.50.dcm": "colour",
    "zoo/dicomdir/DICOMDIR": "no-pixels",
    "zoo/dicomsdl/test_be.dcm": "not-ct",
    "zoo/dicomsdl/test_le.dcm": "not-ct",
    "zoo/lfs_pointer/ID_000012eaf.dcm": "not-dicom",
    "zoo/philips_surview/surview_256x512.dcm": "localizer",
    f"{ZOO}/ExplVR_LitEndNoMeta.dcm": "no-pixels",
    f"{ZOO}/HTJ2KLossless_08_RGB.dcm": "not-ct",
    f"{ZOO}/JPEG2000.dcm": "not-ct",
    f"{ZOO}/JPEGLSNearLossless_16.dcm": "not-ct",
    f"{ZOO}/MR_small.dcm": "not-ct",
    f"{ZOO}/MR_small_RLE.dcm": "not-ct",
    f"{ZOO}/MR_small_bigendian.dcm": "not-ct",
    f"{ZOO}/MR_small_implicit.dcm": "not-ct",
    f"{ZOO}/MR_small_jp2klossless.dcm": "not-ct",
    f"{ZOO}/MR_small_jpeg_ls_lossless.dcm": "not-ct",
    f"{ZOO}/MR_small_padded.dcm": "not-ct",
    f"{ZOO}/MR_truncated.dcm": "not-ct",
    f"{ZOO}/SC_rgb_small_odd.dcm": "not-ct",
    f"{ZOO}/UN_sequence.dcm": "no-pixels",
    f"{ZOO}/eCT_Supplemental.dcm": "derived",
    f"{ZOO}/emri_small.dcm": "not-ct",
    f"{ZOO}/image_dfl.dcm": "not-ct",
    f"{ZOO}/mlut_19.dcm": "not-ct",
    f"{ZOO}/no_meta.dcm": "not-dicom",
    f"{ZOO}/rtplan.dcm": "no-pixels",
    f"{ZOO}/rtplan_truncated.dcm": "bad-header",
    f"{ZOO}/rtstruct.dcm": "no-pixels",
    f"{ZOO}/test-SR.dcm": "no-pixels",
}
"""Every file of the manifest that is rejected; the other 320 are stored."""

UNREADABLE_BY_PYDICOM = {
    f"{EDGE}/trailing_garbage_64.dcm": f"{EDGE}/duplicate_sop_a_64.dcm",
    f"{EDGE}/wrong_ts_rle_but_native_64.dcm": f"{EDGE}/duplicate_sop_a_64.dcm",
}
"""Files that are stored although pydicom fails, each with a file of the same pixels."""


def real_files() -> Iterator[tuple[dict[str, str], bytes]]:
    """Each row of the manifest with the bytes of its file."""
    with (DATA / "MANIFEST.csv").open(newline="") as stream:
        rows = {
            f"{row['container']}/{row['file']}".lstrip("/"): row
            for row in csv.DictReader(stream)
        }
    for entry, content in read_entries(list_entries([DATA])):
        if entry.key in rows:
            assert isinstance(content, bytes)
            yield rows.pop(entry.key), content
    assert rows == {}
