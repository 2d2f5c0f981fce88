"""A slice has the values of its header, or is rejected because of them."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from pydicom import uid
from pydicom.encaps import encapsulate

from ichfast.dicom import header, series_header
from ichfast.dicom.slices import read_slices
from ichfast.errors import RejectError
from tests.dicom.dicom_files import (
    COLUMNS,
    EXPLICIT,
    IMPLICIT,
    ROWS,
    ct_file,
    element,
    encode,
    ramp,
    read_one,
    rejection,
)


@pytest.mark.parametrize(
    "syntax", [EXPLICIT, IMPLICIT, uid.DeflatedExplicitVRLittleEndian]
)
def test_a_slice_has_the_values_of_its_header(syntax: str) -> None:
    one = read_one(ct_file(ramp(), syntax=syntax))
    np.testing.assert_array_equal(one.stored_HW, np.clip(ramp(), 0, None))
    assert one.stored_HW.dtype == np.uint16
    assert one.stored_HW.flags.writeable
    assert (one.slice_id, one.series_header.patient_id) == ("ID_0123", "ID_patient")
    assert (one.series_header.study_uid, one.series_header.series_uid) == (
        "ID_study",
        "ID_series",
    )
    assert one.position_mm == 86.25
    assert list(one.series_header.orientation) == [1, 0, 0, 0, 1, 0]
    assert (one.instance_number, one.series_header.thickness_mm) == (12, 5)
    assert (one.series_header.row_spacing_mm, one.series_header.column_spacing_mm) == (
        0.5,
        0.25,
    )
    assert (one.rescale_slope, one.rescale_intercept) == (1, -1024)
    assert (
        one.series_header.layout.bits_stored,
        one.series_header.layout.is_signed,
    ) == (16, True)
    assert (one.series_header.window_center, one.series_header.window_width) == (40, 80)
    assert one.transfer_syntax_uid == syntax
    assert one.quirks == ()


def test_what_is_absent_is_nan_empty_or_minus_one() -> None:
    absent = (
        *("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "InstanceNumber"),
        *("ImagePositionPatient", "PixelSpacing", "SliceThickness", "WindowCenter"),
    )
    one = read_one(ct_file(ramp(), without=(*absent, "WindowWidth")))
    assert math.isnan(one.position_mm)
    assert math.isnan(one.series_header.row_spacing_mm)
    assert math.isnan(one.series_header.column_spacing_mm)
    assert math.isnan(one.series_header.thickness_mm)
    assert math.isnan(one.series_header.window_center)
    assert math.isnan(one.series_header.window_width)
    assert (
        one.series_header.patient_id,
        one.series_header.study_uid,
        one.series_header.series_uid,
    ) == (
        "",
        "",
        "",
    )
    assert one.instance_number == -1
    assert one.quirks == ()


def test_the_position_of_a_tilted_slice_is_along_its_normal() -> None:
    tilt = math.radians(20)
    orientation = f"1\\0\\0\\0\\{math.cos(tilt):.6f}\\{-math.sin(tilt):.6f}"
    one = read_one(ct_file(ramp(), ImageOrientationPatient=orientation))
    expected = -117.5 * math.sin(tilt) + 86.25 * math.cos(tilt)
    assert one.position_mm == pytest.approx(expected, abs=1e-3)


def test_the_position_is_the_distance_along_any_normal() -> None:
    axes, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    corner = np.array([3.0, -50.0, 70.0])
    one = read_one(
        ct_file(
            ramp(),
            ImageOrientationPatient="\\".join(f"{c:.9f}" for c in axes[:2].ravel()),
            ImagePositionPatient="\\".join(map(str, corner)),
        )
    )
    assert one.position_mm == pytest.approx(np.cross(*axes[:2]) @ corner, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "center", "is_mended"),
    [
        *(("1.000000", 1, False), (" +4.0e1\0", 40, False), ("36,5", 36.5, True)),
        *(("wide", math.nan, True), ("inf", math.nan, True), ("", math.nan, False)),
        *(("1_0", math.nan, True), ("\xb2", math.nan, True)),
    ],
)
def test_numbers_are_parsed_leniently(
    text: str, center: float, is_mended: bool
) -> None:
    one = read_one(ct_file(ramp(), WindowCenter=text))
    assert one.series_header.window_center == pytest.approx(center, nan_ok=True)
    assert ("malformed_number" in one.quirks) is is_mended


@pytest.mark.parametrize(
    "changed",
    [
        *({"RescaleSlope": "x"}, {"RescaleSlope": "0"}, {"RescaleIntercept": "x"}),
        *({"RescaleSlope": "1_0"}, {"RescaleIntercept": "\u0663".encode()}),
    ],
)
def test_an_unusable_rescale_is_rejected(changed: dict[str, Any]) -> None:
    assert rejection(ct_file(ramp(), **changed)).code == "bad-header"


@pytest.mark.parametrize(
    ("code", "changed"),
    [
        ("not-ct", {"Modality": "MR"}),
        ("not-ct", {"Modality": "", "SOPClassUID": uid.SecondaryCaptureImageStorage}),
        ("localizer", {"ImageType": "ORIGINAL\\PRIMARY\\LOCALIZER"}),
        ("colour", {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}),
        ("colour", {"PhotometricInterpretation": "PALETTE COLOR"}),
        ("colour", {"BitsAllocated": 8, "BitsStored": 8}),
        ("too-large", {"Rows": 4097, "Columns": 4096}),
        ("too-large", {"Rows": 4096, "Columns": 4096, "NumberOfFrames": "65"}),
        ("too-large", {"NumberOfFrames": "4097", "pixels": bytes(4097 * 70)}),
        ("truncated-pixels", {"NumberOfFrames": "2"}),
        ("truncated-pixels", {"Rows": 8}),
        ("bad-header", {"Rows": 0}),
        ("bad-header", {"NumberOfFrames": "many"}),
        ("bad-header", {"BitsStored": 17}),
        ("bad-header", {"BitsAllocated": 12, "BitsStored": 12}),
        ("no-pixels", {"pixels": b""}),
        *(("bad-header", {"without": (name,)}) for name in ("Rows", "BitsAllocated")),
        *(
            ("bad-header", {"without": (name,)})
            for name in ("SOPInstanceUID", "PixelRepresentation")
        ),
        ("no-pixels", {"without": ("PixelData",)}),
        ("no-decoder", {"syntax": "1.2.3.4"}),
        ("no-decoder", {"syntax": uid.MPEG2MPML, "pixels": encapsulate([b"xx"])}),
        ("decoder-error", {"pixels": encapsulate([b"xx"])}),
    ],
)
def test_a_file_that_cannot_be_stored_is_rejected_by_its_header(
    code: str, changed: dict[str, Any]
) -> None:
    assert rejection(ct_file(ramp(), **changed)).code == code


def test_a_ct_class_replaces_a_missing_modality() -> None:
    assert len(list(read_slices(ct_file(ramp(), without=("Modality",))))) == 1


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty"),
        (b"x", "not-dicom"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not-dicom"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "not-dicom"),
        (bytes(128) + b"DICM", "no-pixels"),
        (bytes(1000), "not-dicom"),
        (b"\x08\0\x05\x20" + bytes(1000), "not-dicom"),
    ],
)
def test_bytes_that_are_no_dicom_are_rejected(content: bytes, code: str) -> None:
    assert rejection(content).code == code


def test_a_file_that_ends_inside_its_header_is_rejected() -> None:
    content = ct_file(ramp())
    at = content.index(b"ID_series")
    assert rejection(content[: at + 3]).code == "bad-header"


def test_a_header_with_a_wrong_syntax_is_read_without_warning() -> None:
    implicit = ct_file(ramp(), syntax=IMPLICIT)
    meta = encode(dict([element("TransferSyntaxUID", EXPLICIT)]), is_implicit=False)
    start = 132 + 8 + len(IMPLICIT) + len(IMPLICIT) % 2
    said = bytes(128) + b"DICM" + meta + implicit[start:]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        one = read_one(said)
    np.testing.assert_array_equal(one.stored_HW, read_one(implicit).stored_HW)
    assert caught == []


def test_cached_values_of_a_series_are_not_used_for_another() -> None:
    first = read_one(ct_file(ramp(), SOPInstanceUID="1.1", InstanceNumber="7"))
    second = read_one(ct_file(ramp(), SOPInstanceUID="1.2", InstanceNumber="8"))
    assert (first.slice_id, first.instance_number) == ("1.1", 7)
    assert (second.slice_id, second.instance_number) == ("1.2", 8)
    steeper = read_one(ct_file(ramp(), RescaleSlope="2"))
    assert (first.rescale_slope, steeper.rescale_slope) == (1.0, 2.0)
    assert (
        read_one(ct_file(ramp(), PatientID="other")).series_header.patient_id == "other"
    )
    assert rejection(ct_file(ramp(), Modality="MR")).code == "not-ct"


def test_a_long_header_that_frames_share_is_read_once() -> None:
    series_header._read.cache_clear()
    frames = np.zeros((9, 1, 1), "<u2")
    content = ct_file(frames, NumberOfFrames="9", WindowCenter="40\\" * 2000)
    slices = list(read_slices(content))
    assert len({id(one.series_header) for one in slices}) == 1


@pytest.mark.parametrize(
    "keyword", ["PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"]
)
def test_a_very_long_id_is_rejected(keyword: str) -> None:
    """Ids are kept for each of up to 4,096 frames."""
    most = header.MAX_ID_LENGTH
    longest: dict[str, Any] = {keyword: "x" * most}
    assert read_one(ct_file(ramp(), **longest)).stored_HW.shape == (ROWS, COLUMNS)
    longest[keyword] += "x"
    error = rejection(ct_file(ramp(), **longest))
    assert error.code == "bad-header"
    assert "xx" not in error.detail


def test_the_limit_on_pixels_is_inclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "MAX_PIXELS", ROWS * COLUMNS)
    assert len(list(read_slices(ct_file(ramp())))) == 1
    monkeypatch.setattr(header, "MAX_PIXELS", ROWS * COLUMNS - 1)
    series_header._read.cache_clear()
    assert rejection(ct_file(ramp())).code == "too-large"


def test_a_reject_code_outside_the_closed_set_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean not-dicom"):
        RejectError("not-dicm", "a typing error")


# ---- the patient ----


@pytest.mark.parametrize(
    "text",
    [
        *("ANONYMOUS", "Anonymous", "ANONYMIZED", "anon^", "UNKNOWN", "None", "N/A"),
        *("NO NAME", "xxxx", "X", "0", "0000", "00000000", "de-identified", "No_ID"),
        *("Anonymous^Patient", "---"),
    ],
)
def test_a_placeholder_is_no_patient(text: str) -> None:
    one = read_one(ct_file(ramp(), PatientID=text))
    assert one.series_header.patient_id == ""
    assert one.quirks == ("placeholder_patient",)


@pytest.mark.parametrize(
    "text", ["ID_patient", "1", "ANON0042", "X17", "10", "CQ500-CT-0", "Nonesuch"]
)
def test_other_texts_name_a_patient(text: str) -> None:
    one = read_one(ct_file(ramp(), PatientID=text))
    assert (one.series_header.patient_id, one.quirks) == (text, ())


def test_a_patient_that_is_absent_is_no_placeholder() -> None:
    one = read_one(ct_file(ramp(), without=("PatientID",)))
    assert (one.series_header.patient_id, one.quirks) == ("", ())
