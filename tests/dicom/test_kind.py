"""Only axial CT slices in HU are stored; every other image is rejected by a code."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from pydicom import uid

from ichfast.dicom.slices import read_slices
from ichfast.errors import KIND_CODES, RejectError
from tests.dicom.dicom_files import (
    ITEM,
    attempt,
    ct_file,
    encode,
    ramp,
    read_one,
    rejection,
    sequence,
)
from tests.dicom.real_files import HUNT, needs_hunt

IMAGE_TYPES = [
    # PS3.3 C.8.2.1.1.1
    ("ORIGINAL\\PRIMARY\\AXIAL", None),
    ("original\\primary\\axial", None),
    ("ORIGINAL\\PRIMARY\\LOCALIZER", "localizer"),
    # PS3.3 C.7.6.1.1.2: DERIVED is any change of pixels, a lossy compression too
    ("DERIVED \\PRIMARY\\AXIAL", None),
    ("DERIVED\\SECONDARY", "derived"),
    ("DERIVED\\SECONDARY\\", "derived"),
    ("ORIGINAL\\SECONDARY\\OTHER", "derived"),
    # ../shared/data: compressed by an archive, NEMA's WG04 images
    ("DERIVED\\SECONDARY\\AXIAL", None),
    ("ORIGINAL\\SECONDARY\\AXIAL", None),
    # PS3.3 C.8.16.1.3 and C.8.16.1.4: values 3 and 4 of a frame
    ("ORIGINAL\\PRIMARY\\VOLUME\\NONE", None),
    ("ORIGINAL\\PRIMARY\\PERFUSION\\NONE", None),
    ("ORIGINAL\\PRIMARY\\LOCALIZER\\NONE", "localizer"),
    ("DERIVED\\PRIMARY\\AXIAL\\ADDITION", None),
    ("DERIVED\\PRIMARY\\AXIAL\\MEAN", None),
    ("DERIVED\\PRIMARY\\VOLUME\\DIVISION", "derived"),
    ("DERIVED\\PRIMARY\\VOLUME\\MASKED", "derived"),
    ("DERIVED\\PRIMARY\\VOLUME\\MAXIMUM", "derived"),
    ("DERIVED\\PRIMARY\\VOLUME\\MINIMUM", "derived"),
    ("DERIVED\\PRIMARY\\VOLUME\\MULTIPLICATION", "derived"),
    ("DERIVED\\PRIMARY\\VOLUME\\QUANTITY", "derived"),
    ("DERIVED\\PRIMARY\\VOLUME\\RESAMPLED", "derived"),
    ("DERIVED\\PRIMARY\\VOLUME\\STD_DEVIATION", "derived"),
    ("DERIVED\\PRIMARY\\VOLUME\\SUBTRACTION", "derived"),
    # PS3.3 C.8.15.2.1.1.5: multi-energy
    ("DERIVED\\PRIMARY\\AXIAL\\VMI", None),
    ("DERIVED\\PRIMARY\\AXIAL\\EFF_ATOMIC_NUM", "derived"),
    ("DERIVED\\PRIMARY\\AXIAL\\ELECTRON_DENSITY", "derived"),
    ("DERIVED\\PRIMARY\\AXIAL\\MAT_FRACTIONAL", "derived"),
    ("DERIVED\\PRIMARY\\AXIAL\\MAT_MODIFIED", "derived"),
    ("DERIVED\\PRIMARY\\AXIAL\\MAT_REMOVED", "derived"),
    ("DERIVED\\PRIMARY\\AXIAL\\MAT_SPECIFIC", "derived"),
    ("DERIVED\\PRIMARY\\AXIAL\\MAT_VALUE_BASED", "derived"),
    # perfusion maps: pydicom's eCT_Supplemental.dcm, and their usual names
    ("DERIVED\\PRIMARY\\PERFUSION\\RCBF", "derived"),
    ("DERIVED\\PRIMARY\\PERFUSION\\RCBV", "derived"),
    ("DERIVED\\PRIMARY\\PERFUSION\\CBF", "derived"),
    ("DERIVED\\PRIMARY\\PERFUSION\\CBV", "derived"),
    ("DERIVED\\PRIMARY\\PERFUSION\\MTT", "derived"),
    ("DERIVED\\PRIMARY\\PERFUSION\\TMAX", "derived"),
    ("DERIVED\\PRIMARY\\PERFUSION\\TTD", "derived"),
    ("DERIVED\\PRIMARY\\PERFUSION\\TTP", "derived"),
    ("DERIVED\\PRIMARY\\PERFUSION\\PERMEABILITY", "derived"),
    # GE: ../shared/data has ADD; reformats and screen saves
    ("ORIGINAL\\PRIMARY\\AXIAL\\ADD", None),
    ("DERIVED\\SECONDARY\\REFORMATTED\\AVERAGE", "derived"),
    ("DERIVED\\PRIMARY\\REFORMATTED", "derived"),
    ("DERIVED\\SECONDARY\\SCREEN SAVE", "derived"),
    ("DERIVED\\PRIMARY\\SCREENSHOT", "derived"),
    # Siemens: SPI is a spiral, PROT the patient protocol
    ("ORIGINAL\\PRIMARY\\AXIAL\\CT_SOM5 SPI", None),
    ("ORIGINAL\\PRIMARY\\AXIAL\\CT_SOM5 SEQ", None),
    ("DERIVED\\SECONDARY\\AXIAL\\CT_SOM5 SPI", None),
    ("ORIGINAL\\PRIMARY\\LOCALIZER\\CT_SOM5 TOP", "localizer"),
    ("ORIGINAL\\PRIMARY\\OTHER\\TOPOGRAM", "localizer"),
    ("DERIVED\\SECONDARY\\OTHER\\CT_SOM5 PROT", "derived"),
    ("ORIGINAL\\PRIMARY\\OTHER\\PROTOCOL", "derived"),
    ("DERIVED\\PRIMARY\\AXIAL\\CT_SOM5 MPR", "derived"),
    ("DERIVED\\SECONDARY\\MPR\\CSA MPR", "derived"),
    ("DERIVED\\SECONDARY\\AXIAL\\MIP", "derived"),
    ("DERIVED\\PRIMARY\\AXIAL\\CSA MIP THIN", "derived"),
    ("DERIVED\\PRIMARY\\OTHER\\VRT", "derived"),
    ("DERIVED\\PRIMARY\\OTHER\\SSD", "derived"),
    # Philips: surview and page of dose; Hitachi, in ../shared/data: NORMAL
    ("ORIGINAL\\PRIMARY\\SURVIEW", "localizer"),
    ("ORIGINAL\\PRIMARY\\OTHER\\SCOUT", "localizer"),
    ("ORIGINAL\\PRIMARY\\OTHER\\SCANOGRAM", "localizer"),
    ("ORIGINAL\\PRIMARY\\OTHER\\DOSE_INFO", "derived"),
    ("ORIGINAL\\PRIMARY\\AXIAL\\HELIX", None),
    ("ORIGINAL\\PRIMARY\\AXIAL\\NORMAL", None),
    # PS3.3 C.8.16.2.1.4, VolumeBasedCalculationTechnique, written as a type
    ("DERIVED\\PRIMARY\\VOLUME\\MAX_IP", "derived"),
    ("DERIVED\\PRIMARY\\VOLUME\\MIN_IP", "derived"),
    ("DERIVED\\PRIMARY\\VOLUME\\MINIP", "derived"),
    ("DERIVED\\PRIMARY\\VOLUME\\CURVED_MPR", "derived"),
    ("DERIVED\\PRIMARY\\VOLUME\\CPR", "derived"),
    ("DERIVED\\PRIMARY\\VOLUME\\VOLUME_RENDER", "derived"),
    ("DERIVED\\PRIMARY\\VOLUME\\SURFACE_RENDER", "derived"),
    # words that only contain a term
    ("ORIGINAL\\PRIMARY\\AXIAL\\MIPS", None),
    ("ORIGINAL\\PRIMARY\\AXIAL\\NOLOCALIZER", None),
    ("", None),
]


def code_of(content: bytes) -> str | None:
    error = attempt(content)
    return error.code if error else None


@pytest.mark.parametrize(("image_type", "code"), IMAGE_TYPES)
def test_the_image_type_decides_what_an_image_is(
    image_type: str, code: str | None
) -> None:
    error = attempt(ct_file(ramp(), ImageType=image_type))
    assert (error.code if error else None) == code
    assert error is None or error.detail.startswith("ImageType (0008,0008) has ")


@pytest.mark.parametrize(("image_type", "code"), IMAGE_TYPES)
def test_the_type_of_a_frame_decides_what_the_frame_is(
    image_type: str, code: str | None
) -> None:
    groups = sequence({"CTImageFrameTypeSequence": sequence({"FrameType": image_type})})
    error = attempt(ct_file(ramp(), PerFrameFunctionalGroupsSequence=groups))
    assert (error.code if error else None) == code
    assert error is None or error.detail.startswith("FrameType (0008,9007) has ")


@pytest.mark.parametrize(
    ("sop_class", "is_ct"),
    [
        # PS3.4 B.5
        *((uid.CTImageStorage, True), (uid.EnhancedCTImageStorage, True)),
        (uid.LegacyConvertedEnhancedCTImageStorage, True),
        *((uid.SecondaryCaptureImageStorage, False), (uid.MRImageStorage, False)),
        (uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage, False),
        (uid.PositronEmissionTomographyImageStorage, False),
        (uid.EnhancedSRStorage, False),
        *(("1.3.46.670589.5.0.1", False), ("", True)),
    ],
)
def test_only_the_sop_classes_of_ct_images_are_stored(
    sop_class: str, *, is_ct: bool
) -> None:
    error = attempt(ct_file(ramp(), SOPClassUID=sop_class))
    if is_ct:
        assert error is None
    else:
        assert error is not None
        assert error.code == "not-ct"
        assert error.detail.startswith("SOPClassUID (0008,0016) is ")


def test_a_file_without_class_and_type_is_stored() -> None:
    """Those of RSNA have neither, nor a rescale type."""
    assert read_one(ct_file(ramp(), without=("SOPClassUID",))).quirks == ()


UNITS = [
    # PS3.3 C.11.1.1.2
    *(("HU", None), ("hu", None), ("US", None), ("", None)),
    *((unit, "not-hu") for unit in ("OD", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD")),
    *(("PCT", "not-hu"), ("100 ug/ml", "not-hu"), ("Smith", "not-hu")),
]


@pytest.mark.parametrize(("unit", "code"), UNITS)
@pytest.mark.parametrize("image_type", ["", "ORIGINAL\\PRIMARY\\AXIAL"])
def test_values_in_another_unit_are_rejected(
    image_type: str, unit: str, code: str | None
) -> None:
    content = ct_file(ramp(), ImageType=image_type, RescaleType=unit)
    error = attempt(content)
    assert (error.code if error else None) == code
    if error:
        assert error.detail.startswith("RescaleType (0028,1054) is ")
        assert "Smith" not in error.detail


@pytest.mark.parametrize(("unit", "code"), [("HU", None), ("US", "not-hu")])
def test_an_unspecified_unit_of_a_derived_image_is_rejected(
    unit: str, code: str | None
) -> None:
    derived = ct_file(ramp(), ImageType="DERIVED\\PRIMARY\\AXIAL", RescaleType=unit)
    assert code_of(derived) == code


@pytest.mark.parametrize(("unit", "code"), UNITS[:-1])
def test_a_modality_lut_to_another_unit_is_rejected(
    unit: str, code: str | None
) -> None:
    item = encode(
        {
            0x0028_3002: ("US", np.array([35, 0, 16], "<u2").tobytes()),
            0x0028_3004: ("LO", unit.encode() + b" " * (len(unit) % 2)),
            0x0028_3006: ("OW", bytes(70)),
        },
        is_implicit=False,
    )
    lut = ITEM + len(item).to_bytes(4, "little") + item
    error = attempt(ct_file(ramp("<u2", first=0), ModalityLUTSequence=lut))
    assert (error.code if error else None) == code
    assert error is None or "ModalityLUTType (0028,3004)" in error.detail


def turned(deg: float) -> str:
    """An orientation turned around the axis from ear to ear."""
    turn = math.radians(deg)
    return f"1\\0\\0\\0\\{math.cos(turn):.9f}\\{-math.sin(turn):.9f}"


@pytest.mark.parametrize(
    ("orientation", "code"),
    [
        *((turned(deg), None) for deg in (0, 30, -30, 44.9, -44.9, 180, 150)),
        *((turned(deg), "not-axial") for deg in (45.1, -45.1, 90, -90, 130)),
        ("0\\1\\0\\0\\0\\-1", "not-axial"),  # sagittal
        ("1\\0\\0\\0\\0\\-1", "not-axial"),  # coronal
        ("0\\1\\0\\-1\\0\\0", None),  # axial, turned in its plane
        ("-1\\0\\0\\0\\1\\0", None),  # axial, feet first
        *(("0\\0\\0\\0\\0\\0", None), ("1\\0\\0", None), ("x", None), ("", None)),
    ],
)
def test_a_slice_lies_within_45_degrees_of_axial(
    orientation: str, code: str | None
) -> None:
    error = attempt(ct_file(ramp(), ImageOrientationPatient=orientation))
    assert (error.code if error else None) == code
    assert error is None or "ImageOrientationPatient (0020,0037)" in error.detail


KINDS: dict[str, dict[str, Any]] = {
    "not-ct": {"SOPClassUID": uid.SecondaryCaptureImageStorage},
    "localizer": {"ImageType": "ORIGINAL\\PRIMARY\\LOCALIZER"},
    "derived": {"ImageType": "DERIVED\\SECONDARY\\AXIAL\\MIP"},
    "not-hu": {"RescaleType": "Z_EFF"},
    "not-axial": {"ImageOrientationPatient": "0\\1\\0\\0\\0\\-1"},
}


@pytest.mark.parametrize("code", sorted(KIND_CODES))
def test_an_accepted_image_is_read_and_named_in_the_quirks(code: str) -> None:
    content = ct_file(ramp(), **KINDS[code])
    assert rejection(content).code == code
    [one] = read_slices(content, frozenset((code,)))
    assert one.quirks == (code,)
    for other in KIND_CODES - {code}:
        with pytest.raises(RejectError):
            list(read_slices(content, frozenset((other,))))


def test_an_image_of_several_kinds_must_be_accepted_for_each() -> None:
    content = ct_file(ramp(), **KINDS["derived"], **KINDS["not-axial"])
    with pytest.raises(RejectError, match="not-axial"):
        list(read_slices(content, frozenset(("derived",))))
    [one] = read_slices(content, frozenset(("derived", "not-axial")))
    assert one.quirks == ("derived", "not-axial")


def enhanced(*frame_types: str) -> bytes:
    frames = [
        {"CTImageFrameTypeSequence": sequence({"FrameType": frame_type})}
        for frame_type in frame_types
    ]
    return ct_file(
        np.stack([ramp(first=10 * k) for k in range(len(frames))]),
        SOPClassUID=uid.EnhancedCTImageStorage,
        ImageType="ORIGINAL\\PRIMARY\\MIXED\\NONE",
        NumberOfFrames=str(len(frames)),
        PerFrameFunctionalGroupsSequence=sequence(*frames),
    )


def test_frames_that_are_no_slices_are_left_out_and_counted() -> None:
    axial, scout = (
        "ORIGINAL\\PRIMARY\\AXIAL\\NONE",
        "ORIGINAL\\PRIMARY\\LOCALIZER\\NONE",
    )
    second, fourth = read_slices(
        enhanced(scout, axial, "DERIVED\\PRIMARY\\AXIAL\\MAXIMUM", axial, scout)
    )
    assert (second.slice_id, fourth.slice_id) == ("ID_0123.2", "ID_0123.4")
    np.testing.assert_array_equal(fourth.stored_HW, np.clip(ramp(first=30), 0, None))
    assert second.rejected_frames == (
        ("localizer", "2 of 5 frames: FrameType (0008,9007) has LOCALIZER"),
        ("derived", "1 of 5 frames: FrameType (0008,9007) has MAXIMUM"),
    )
    assert rejection(enhanced(scout, scout)).code == "localizer"


def test_a_frame_that_is_damaged_rejects_its_file() -> None:
    frames = [
        {"PixelValueTransformationSequence": sequence({"RescaleSlope": slope})}
        for slope in ("1", "x")
    ]
    content = ct_file(
        np.stack([ramp(), ramp()]),
        NumberOfFrames="2",
        PerFrameFunctionalGroupsSequence=sequence(*frames),
    )
    assert rejection(content).code == "bad-header"


def outcome(content: bytes) -> str:
    try:
        slices = list(read_slices(content))
    except RejectError as error:
        return error.code
    return ",".join(
        [str(len(slices)), *(code for code, _ in slices[0].rejected_frames)]
    )


@needs_hunt
@pytest.mark.parametrize(
    ("file", "expected"),
    [
        *(("axial_mip.dcm", "derived"), ("coronal_mpr.dcm", "derived")),
        *(("ge_screen_save.dcm", "not-ct"), ("sc_grey12.dcm", "not-ct")),
        ("siemens_patient_protocol.dcm", "derived"),
        *(("rescaletype_MGML.dcm", "not-hu"), ("rescaletype_Z_EFF.dcm", "not-hu")),
        *(("modality_lut_OD.dcm", "not-hu"), ("enh_perfusion_RCBF.dcm", "derived")),
        *(("enh_frame_localizer.dcm", "1,localizer"), ("nonsquare_pixels.dcm", "1")),
    ],
)
def test_files_that_were_stored_by_mistake_are_rejected(
    file: str, expected: str
) -> None:
    assert outcome((HUNT / file).read_bytes()) == expected


@needs_hunt
def test_only_the_axial_slices_of_a_hospital_study_are_stored() -> None:
    files = sorted(p for p in (HUNT / "hospital_study").rglob("*") if p.is_file())
    counts = Counter(outcome(file.read_bytes()) for file in files)
    assert counts == {"1": 30, "derived": 26, "not-hu": 5, "not-ct": 1}
