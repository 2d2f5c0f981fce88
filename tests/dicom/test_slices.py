"""Every DICOM file becomes the right slices or is rejected for the right reason."""

from __future__ import annotations

import csv
import hashlib
import logging
import math
import random
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydicom import config, dcmread, uid
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.pixels.decoders.base import Decoder
from pydicom.pixels.processing import apply_rescale

from ichfast.dicom import guard, header, hounsfield, series_header
from ichfast.dicom import slices as dicom
from ichfast.dicom.hounsfield import to_stored
from ichfast.dicom.slices import Slice, read_slices
from ichfast.dicom.walker import Walker
from ichfast.errors import REJECT_CODES, RejectError
from ichfast.sources.sources import list_entries, read_entries

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="the real files of ../shared/data are not here"
)
ROWS, COLUMNS = 7, 5
LONG_VRS = ("OB", "OW", "SQ", "UN")
ITEM, DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0\0\0\0\0"
EXPLICIT, IMPLICIT = uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian

Raw = npt.NDArray[np.integer[Any]]


def encode(elements: dict[int, tuple[str, bytes]], *, is_implicit: bool) -> bytes:
    """Write elements, little-endian, in the order of their tags."""
    encoded = bytearray()
    for tag, (vr, value) in sorted(elements.items()):
        length = len(value)
        if vr == "OB" and value.startswith(ITEM):
            length, value = 0xFFFFFFFF, value + DELIMITER
        encoded += struct.pack("<HH", tag >> 16, tag & 0xFFFF)
        if is_implicit:
            encoded += struct.pack("<I", length)
        elif vr in LONG_VRS:
            encoded += vr.encode() + struct.pack("<HI", 0, length)
        else:
            encoded += vr.encode() + struct.pack("<H", length)
        encoded += value
    return bytes(encoded)


def element(keyword: str, value: str | int | bytes) -> tuple[int, tuple[str, bytes]]:
    vr = dictionary_VR(keyword).split(" or ")[0]
    if isinstance(value, int):
        value = struct.pack("<H", value & 0xFFFF)
    elif isinstance(value, str):
        value = value.encode("latin-1")
        value += b" " * (len(value) % 2)
    return int(tag_for_keyword(keyword) or 0), (vr, value)


def ct_file(
    raw: Raw,
    *,
    syntax: str = EXPLICIT,
    pixels: bytes | None = None,
    without: tuple[str, ...] = (),
    **changed: str | int | bytes,
) -> bytes:
    """A small CT file around `raw`; any element can be changed or left out."""
    values: dict[str, str | int | bytes] = {
        "SOPClassUID": uid.CTImageStorage,
        "SOPInstanceUID": "ID_0123",
        "Modality": "CT",
        "PatientID": "ID_patient",
        "StudyInstanceUID": "ID_study",
        "SeriesInstanceUID": "ID_series",
        "InstanceNumber": "12",
        "ImagePositionPatient": "-125\\-117.5\\86.25",
        "ImageOrientationPatient": "1\\0\\0\\0\\1\\0",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": raw.shape[-2],
        "Columns": raw.shape[-1],
        "PixelSpacing": "0.5\\0.25",
        "SliceThickness": "5",
        "BitsAllocated": raw.itemsize * 8,
        "BitsStored": raw.itemsize * 8,
        "HighBit": raw.itemsize * 8 - 1,
        "PixelRepresentation": int(raw.dtype.kind == "i"),
        "WindowCenter": "40",
        "WindowWidth": "80",
        "RescaleIntercept": "-1024",
        "RescaleSlope": "1",
        "PixelData": raw.tobytes() if pixels is None else pixels,
    }
    values |= changed
    kept = {k: v for k, v in values.items() if k not in without}
    dataset = encode(
        dict(element(k, v) for k, v in kept.items()), is_implicit=syntax == IMPLICIT
    )
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        packer = zlib.compressobj(wbits=-15)
        dataset = packer.compress(dataset) + packer.flush()
    meta = encode(dict([element("TransferSyntaxUID", syntax)]), is_implicit=False)
    return bytes(128) + b"DICM" + meta + dataset


def big_endian_file(raw: Raw) -> bytes:
    """`ct_file`, with the bytes of each number the other way round."""
    content = ct_file(raw, syntax=uid.ExplicitVRBigEndian)
    at = content.index(b"\x08\x00\x16\x00")
    swapped = content[:at]
    while at < len(content):
        group, number, vr, length = struct.unpack_from("<HH2sH", content, at)
        swapped += struct.pack(">HH2s", group, number, vr)
        at += 8
        if vr == b"OB":
            (length,) = struct.unpack_from("<I", content, at)
            swapped += struct.pack(">HI", 0, length)
            at += 4
        else:
            swapped += struct.pack(">H", length)
        value = content[at : at + length]
        if vr in (b"US", b"OB"):
            value = np.frombuffer(value, "<u2").astype(">u2").tobytes()
        swapped += value
        at += length
    return swapped


def ramp(dtype: str = "<i2", first: int = -3, step: int = 1) -> Raw:
    raw: Raw = (first + step * np.arange(ROWS * COLUMNS)).astype(dtype)
    return raw.reshape(ROWS, COLUMNS)


def read_one(content: bytes) -> Slice:
    [one] = read_slices(content)
    return one


def read_hu(content: bytes) -> npt.NDArray[np.int32]:
    return read_one(content).stored_HW.astype(np.int32) - 1024


def rejection(content: bytes) -> RejectError:
    with pytest.raises(RejectError) as caught:
        list(read_slices(content))
    assert caught.value.code in REJECT_CODES
    return caught.value


def attempt(content: bytes) -> RejectError | None:
    """The rejection of bytes that may be anything, or None where they are stored."""
    try:
        assert list(read_slices(content))
    except RejectError as error:
        return error
    return None


# ---- what a slice is -------------------------------------------------------------


@pytest.mark.parametrize(
    "syntax", [EXPLICIT, IMPLICIT, uid.DeflatedExplicitVRLittleEndian]
)
def test_a_slice_says_what_its_header_says(syntax: str) -> None:
    one = read_one(ct_file(ramp(), syntax=syntax))
    np.testing.assert_array_equal(one.stored_HW, np.clip(ramp(), 0, None))
    assert one.stored_HW.dtype == np.uint16
    assert one.stored_HW.flags.writeable
    assert (one.slice_id, one.common.patient_id) == ("ID_0123", "ID_patient")
    assert (one.common.study_uid, one.common.series_uid) == ("ID_study", "ID_series")
    assert one.position_mm == 86.25
    assert list(one.common.orientation) == [1, 0, 0, 0, 1, 0]
    assert (one.instance_number, one.common.thickness_mm) == (12, 5)
    assert (one.common.row_spacing_mm, one.common.column_spacing_mm) == (0.5, 0.25)
    assert (one.rescale_slope, one.rescale_intercept) == (1, -1024)
    assert (one.common.layout.bits_stored, one.common.layout.is_signed) == (16, True)
    assert (one.common.window_center, one.common.window_width) == (40, 80)
    assert one.transfer_syntax_uid == syntax
    assert one.quirks == ()


def test_a_big_endian_file_holds_the_same_in_the_order_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Raw] = []
    store_frame = hounsfield.store_frame

    def look(raw_HW: Raw, *args: Any) -> Any:
        seen.append(raw_HW)
        return store_frame(raw_HW, *args)

    monkeypatch.setattr(hounsfield, "store_frame", look)
    one = read_one(big_endian_file(ramp()))
    np.testing.assert_array_equal(one.stored_HW, np.clip(ramp(), 0, None))
    assert one.common.layout == read_one(ct_file(ramp())).common.layout
    for raw_HW in seen:
        assert raw_HW.dtype.isnative
        np.testing.assert_array_equal(raw_HW, ramp())


def test_what_is_absent_is_nan_empty_or_minus_one() -> None:
    absent = (
        *("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "InstanceNumber"),
        *("ImagePositionPatient", "PixelSpacing", "SliceThickness", "WindowCenter"),
    )
    one = read_one(ct_file(ramp(), without=(*absent, "WindowWidth")))
    assert math.isnan(one.position_mm)
    assert math.isnan(one.common.row_spacing_mm)
    assert math.isnan(one.common.column_spacing_mm)
    assert math.isnan(one.common.thickness_mm)
    assert math.isnan(one.common.window_center)
    assert math.isnan(one.common.window_width)
    assert (one.common.patient_id, one.common.study_uid, one.common.series_uid) == (
        "",
        "",
        "",
    )
    assert one.instance_number == -1
    assert one.quirks == ()


def test_the_position_lies_on_the_normal_of_a_tilted_slice() -> None:
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


@pytest.mark.parametrize("dtype", ["<i2", "<u2", "<i4"])
@pytest.mark.parametrize("slope", [1.0, 0.5, -2.0])
@pytest.mark.parametrize("intercept", [-40000.0, -1024.0, -1000.5, 0.0, 1.0, 40000.0])
def test_stored_is_the_rounded_and_clipped_hu(
    dtype: str, slope: float, intercept: float
) -> None:
    limits = np.iinfo(np.dtype(dtype))
    raw = np.random.default_rng(0).integers(limits.min, limits.max, (31, 37), dtype)
    raw.flat[:3] = limits.min, limits.max, 0
    hu = [float(value) * slope + intercept for value in raw.flat]
    expected = [min(max(round(value) + 1024, 0), 32767) for value in hu]
    np.testing.assert_array_equal(to_stored(raw, slope, intercept).ravel(), expected)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("dtype", ["<i2", "<u2"])
def test_as_many_bits_as_are_stored_are_read(dtype: str, bits: int) -> None:
    low = -(1 << (bits - 1)) if dtype == "<i2" else 0
    high = low + (1 << bits) - 1
    raw = np.array([[low, low + 1, 7], [100, high - 1, high]], dtype)
    one = read_one(ct_file(raw, BitsStored=bits, HighBit=bits - 1))
    np.testing.assert_array_equal(one.stored_HW, np.clip(raw, 0, 32767))
    assert one.quirks == ()


# ---- quirks ----------------------------------------------------------------------


def test_missing_rescale_is_slope_1_and_intercept_0_and_flagged() -> None:
    one = read_one(ct_file(ramp(), without=("RescaleSlope", "RescaleIntercept")))
    np.testing.assert_array_equal(one.stored_HW, ramp() + 1024)
    assert (one.rescale_slope, one.rescale_intercept) == (1, 0)
    assert one.quirks == ("missing_rescale",)


def test_a_missing_slope_does_not_cost_the_intercept() -> None:
    one = read_one(ct_file(ramp(first=0), without=("RescaleSlope",)))
    np.testing.assert_array_equal(one.stored_HW, ramp(first=0))
    assert one.quirks == ("missing_rescale",)


@pytest.mark.parametrize("intercept", ["-99", "0", "1"])
def test_wrapped_12bit_values_are_unwrapped(intercept: str) -> None:
    raw = np.array([[0, 1, 3095], [3096, 3072 + 1000, 4095]], "<u2")
    one = read_one(ct_file(raw, BitsStored=12, HighBit=11, RescaleIntercept=intercept))
    hu = one.stored_HW.astype(int) - 1024
    np.testing.assert_array_equal(hu, [[0, 1, 3095], [-1000, -24, -1]])
    assert (one.rescale_slope, one.rescale_intercept) == (1, 0)
    assert one.quirks == ("wrapped_12bit",)


@pytest.mark.parametrize(
    "changed",
    [{"RescaleIntercept": "-100"}, {"BitsStored": 16}, {"RescaleSlope": "2"}],
)
def test_other_files_are_not_unwrapped(changed: dict[str, Any]) -> None:
    raw = np.array([[0, 4000]], "<u2")
    values: dict[str, Any] = {"BitsStored": 12, "HighBit": 11}
    values["RescaleIntercept"] = "0"
    one = read_one(ct_file(raw, **(values | changed)))
    assert one.stored_HW[0, 1] > 4000
    assert one.quirks == ()


def test_monochrome1_keeps_its_hu() -> None:
    one = read_one(ct_file(ramp(), PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(one.stored_HW, np.clip(ramp(), 0, None))
    assert one.quirks == ("monochrome1",)


def test_the_first_of_two_windows_counts() -> None:
    one = read_one(
        ct_file(ramp(), WindowCenter="00036\\00040", WindowWidth="00080\\00100")
    )
    assert (one.common.window_center, one.common.window_width) == (36, 80)
    assert one.quirks == ("two_windows",)


@pytest.mark.parametrize(
    ("text", "center", "is_mended"),
    [
        *(("1.000000", 1, False), (" +4.0e1\0", 40, False), ("36,5", 36.5, True)),
        *(("wide", math.nan, True), ("inf", math.nan, True), ("", math.nan, False)),
        *(("1_0", math.nan, True), ("\xb2", math.nan, True)),
    ],
)
def test_numbers_are_read_as_they_are_meant(
    text: str, center: float, is_mended: bool
) -> None:
    one = read_one(ct_file(ramp(), WindowCenter=text))
    assert one.common.window_center == pytest.approx(center, nan_ok=True)
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


def test_padding_becomes_air() -> None:
    raw = ramp(first=900)
    one = read_one(ct_file(raw, PixelPaddingValue=903, PixelPaddingRangeLimit=901))
    expected = raw.copy()
    expected.flat[1:4] = 0
    np.testing.assert_array_equal(one.stored_HW, expected)
    assert one.quirks == ("padding",)


def test_padding_written_unsigned_is_read_in_the_sign_of_the_pixels() -> None:
    raw = ramp(first=-2000)
    content = ct_file(raw, PixelPaddingValue=63536, RescaleIntercept="2000")
    one = read_one(content)
    assert one.stored_HW[0, 0] == 0
    assert one.stored_HW[0, 1] == 1025
    assert one.quirks == ("padding",)


@pytest.mark.parametrize(("dtype", "garbage"), [("<u2", 0x5000), ("<i2", 0x3000)])
def test_bits_above_bits_stored_are_masked(dtype: str, garbage: int) -> None:
    raw = ramp(dtype, first=0, step=50)
    one = read_one(ct_file(raw | garbage, BitsStored=12, HighBit=11))
    np.testing.assert_array_equal(one.stored_HW, raw)
    assert one.quirks == ("unused_bits",)


def test_negative_values_without_their_upper_bits_are_sign_extended() -> None:
    raw = ramp(first=-20)
    content = ct_file(raw & 0x0FFF, BitsStored=12, HighBit=11, RescaleIntercept="0")
    np.testing.assert_array_equal(read_hu(content), raw)


def test_values_at_the_top_of_their_word_are_moved_down() -> None:
    raw = ramp("<u2", first=0, step=99)
    one = read_one(ct_file(raw << 4, BitsStored=12, HighBit=15))
    np.testing.assert_array_equal(one.stored_HW, raw)
    assert one.quirks == ("high_bit",)


def test_a_high_bit_that_the_pixels_contradict_is_ignored() -> None:
    raw = ramp("<u2", first=0)
    one = read_one(ct_file(raw, BitsStored=12, HighBit=15))
    np.testing.assert_array_equal(one.stored_HW, raw)
    assert one.quirks == ()


def test_a_modality_lut_replaces_the_rescale() -> None:
    values = struct.pack("<35h", *range(0, 70, 2))
    item = encode(
        {
            0x0028_3002: ("US", struct.pack("<HHH", 35, 0, 16)),
            0x0028_3004: ("LO", b"HU"),
            0x0028_3006: ("OW", values),
        },
        is_implicit=False,
    )
    sequence = ITEM + struct.pack("<I", len(item)) + item
    one = read_one(
        ct_file(
            ramp("<u2", first=0),
            ModalityLUTSequence=sequence,
            without=("RescaleSlope", "RescaleIntercept"),
        )
    )
    np.testing.assert_array_equal(one.stored_HW, ramp("<u2", first=0) * 2 + 1024)
    assert one.quirks == ("modality_lut",)


@pytest.mark.parametrize(("vr", "first"), [("SS", -30_000), ("US", 35_536)])
def test_a_modality_lut_that_begins_far_below_the_pixels_does_not_wrap(
    vr: str, first: int
) -> None:
    descriptor = struct.pack("<HHH", 3, first & 0xFFFF, 16)
    item = encode(
        {
            0x0028_3002: (vr, descriptor),
            0x0028_3006: ("US", struct.pack("<3H", 5, 6, 7)),
        },
        is_implicit=False,
    )
    raw = np.array([[30_000, -30_000, -29_999]], "<i2")
    content = ct_file(
        raw, ModalityLUTSequence=ITEM + struct.pack("<I", len(item)) + item
    )
    if vr == "US":  # of unsigned pixels, which these are not
        assert rejection(content).code == "decoder-error"
    else:
        np.testing.assert_array_equal(read_hu(content), [[7, 5, 6]])


def test_a_file_without_preamble_or_without_meta_is_read() -> None:
    content = ct_file(ramp())
    meta_bytes = 8 + len(EXPLICIT) + len(EXPLICIT) % 2
    for start in (132, 132 + meta_bytes):
        one = read_one(content[start:])
        np.testing.assert_array_equal(one.stored_HW, read_one(content).stored_HW)
        assert one.quirks == ("no_preamble",)
    implicit = ct_file(ramp(), syntax=IMPLICIT)
    headless = read_one(implicit[132 + 8 + len(IMPLICIT) + len(IMPLICIT) % 2 :])
    assert headless.transfer_syntax_uid == ""
    np.testing.assert_array_equal(headless.stored_HW, read_one(content).stored_HW)


@pytest.mark.parametrize("garbage", [b"\xff" * 33, b"\xe0\x7f\x10\x00OW", b"x"])
def test_garbage_after_the_pixels_is_ignored(garbage: bytes) -> None:
    content = ct_file(ramp())
    one = read_one(content + garbage)
    np.testing.assert_array_equal(one.stored_HW, read_one(content).stored_HW)


def test_surplus_pixels_are_left_out() -> None:
    one = read_one(ct_file(ramp(), pixels=ramp().tobytes() + bytes(6)))
    np.testing.assert_array_equal(one.stored_HW, np.clip(ramp(), 0, None))
    assert one.quirks == ("long_pixels",)


def test_native_pixels_in_a_compressed_syntax_are_read_if_they_fit_exactly() -> None:
    one = read_one(ct_file(ramp(), syntax=uid.RLELossless))
    np.testing.assert_array_equal(one.stored_HW, np.clip(ramp(), 0, None))
    assert one.quirks == ("wrong_syntax",)
    unfit = ct_file(ramp(), syntax=uid.RLELossless, pixels=ramp().tobytes()[2:])
    assert rejection(unfit).code == "decoder-error"


# ---- multi-frame -----------------------------------------------------------------


def test_frames_without_positions_of_their_own_have_none() -> None:
    raw = np.stack([ramp(), ramp() + 1, ramp() + 2])
    found = list(read_slices(ct_file(raw, NumberOfFrames="3")))
    assert [one.slice_id for one in found] == ["ID_0123.1", "ID_0123.2", "ID_0123.3"]
    assert [one.instance_number for one in found] == [1, 2, 3]
    assert all(math.isnan(one.position_mm) for one in found)
    for one, expected_HW in zip(found, raw, strict=True):
        np.testing.assert_array_equal(one.stored_HW, np.clip(expected_HW, 0, None))


def test_as_many_frames_as_may_be_are_read() -> None:
    raw = np.arange(header.MAX_FRAMES * 2, dtype="<i2").reshape(-1, 1, 2)
    found = list(read_slices(ct_file(raw, NumberOfFrames=str(header.MAX_FRAMES))))
    np.testing.assert_array_equal([one.stored_HW for one in found], raw)


def sequence(*items: dict[str, Any]) -> bytes:
    """Encode items, whose values may be sequences in turn."""
    encoded = b""
    for item in items:
        body = encode(dict(element(k, v) for k, v in item.items()), is_implicit=False)
        encoded += ITEM + struct.pack("<I", len(body)) + body
    return encoded


def test_each_frame_has_its_own_position_and_rescale() -> None:
    frames = [
        {
            "PlanePositionSequence": sequence({"ImagePositionPatient": f"0\\0\\{z}"}),
            "PixelValueTransformationSequence": sequence(
                {"RescaleIntercept": str(z), "RescaleSlope": str(slope)}
            ),
        }
        for z, slope in ((10, 1), (15, 2))
    ]
    shared = {
        "PlaneOrientationSequence": sequence(
            {"ImageOrientationPatient": "1\\0\\0\\0\\1\\0"}
        ),
        "PixelMeasuresSequence": sequence(
            {"PixelSpacing": "0.4\\0.3", "SliceThickness": "2.5"}
        ),
        "PixelValueTransformationSequence": sequence({"RescaleIntercept": "99"}),
        "FrameVOILUTSequence": sequence({"WindowCenter": "30", "WindowWidth": "90"}),
    }
    first, second = read_slices(
        ct_file(
            np.stack([ramp(), ramp()]),
            NumberOfFrames="2",
            SharedFunctionalGroupsSequence=sequence(shared),
            PerFrameFunctionalGroupsSequence=sequence(*frames),
            without=("ImageOrientationPatient", "RescaleSlope", "RescaleIntercept"),
        )
    )
    assert (first.position_mm, second.position_mm) == (10, 15)
    np.testing.assert_array_equal(first.stored_HW, ramp() + 10 + 1024)
    np.testing.assert_array_equal(second.stored_HW, 2 * ramp() + 15 + 1024)
    assert (second.rescale_slope, second.rescale_intercept) == (2, 15)
    assert (first.common.row_spacing_mm, first.common.column_spacing_mm) == (0.4, 0.3)
    assert (
        first.common.thickness_mm,
        first.common.window_center,
        first.common.window_width,
    ) == (
        2.5,
        30,
        90,
    )
    assert first.quirks == second.quirks == ()


# ---- rejections ------------------------------------------------------------------


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
def test_what_cannot_be_stored_is_rejected_by_its_header(
    code: str, changed: dict[str, Any]
) -> None:
    assert rejection(ct_file(ramp(), **changed)).code == code


def test_a_ct_class_stands_in_for_a_missing_modality() -> None:
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
def test_what_is_no_dicom_is_rejected_by_its_bytes(content: bytes, code: str) -> None:
    assert rejection(content).code == code


def test_truncated_pixels_say_how_many_bytes_there_are() -> None:
    error = rejection(ct_file(ramp())[:-20])
    assert (error.code, error.detail) == ("truncated-pixels", "50 bytes, expected 70")


def test_a_file_that_ends_inside_its_header_says_so() -> None:
    content = ct_file(ramp())
    at = content.index(b"ID_series")
    assert rejection(content[: at + 3]).code == "bad-header"


def test_a_deflated_bomb_is_not_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ichfast.dicom.guard._MAX_INFLATED_BYTES", 1000)
    content = ct_file(
        ramp(),
        syntax=uid.DeflatedExplicitVRLittleEndian,
        pixels=bytes(2000),
    )
    assert rejection(content).code == "too-large"


UNDEFINED = b"\xff\xff\xff\xff"


def implicit(tag: int, value: bytes, *, measured: bool = True) -> bytes:
    """An element of implicit VR; a sequence that is not `measured` has an end."""
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if measured:
        return head + struct.pack("<I", len(value)) + value
    return head + UNDEFINED + value + DELIMITER


def with_implicit(added: bytes) -> bytes:
    """A CT file of implicit VR with elements inserted before its pixels."""
    whole = ct_file(ramp(), syntax=IMPLICIT)
    at = whole.rindex(b"\xe0\x7f\x10\x00")
    return whole[:at] + added + whole[at:]


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize(
    ("tag", "nested"),
    [
        *((0x5200_9229, nested) for nested in (True, False)),
        *((0x5200_9230, nested) for nested in (True, False)),
        (0x0028_3000, False),
    ],
)
def test_a_sequence_of_a_million_items_is_not_parsed(
    tag: int, monkeypatch: pytest.MonkeyPatch, *, nested: bool, measured: bool
) -> None:
    """Each has 8 bytes in the file and takes 700 of memory."""

    def file_with(num_items: int) -> bytes:
        items = (ITEM + bytes(4)) * num_items
        if nested:
            inner = implicit(0x0028_9110, items)
            items = ITEM + struct.pack("<I", len(inner)) + inner
        added = implicit(tag, items, measured=measured)
        if tag == 0x5200_9229:  # which is read where frames have groups
            added += implicit(0x5200_9230, b"")
        return with_implicit(added)

    monkeypatch.setattr("ichfast.dicom.guard._MAX_PIECES", 1000)
    assert rejection(file_with(250)).code == "bad-header"
    assert "more than 1,000 elements" in rejection(file_with(250)).detail
    if tag != 0x0028_3000:  # a LUT of no elements is none
        assert read_one(file_with(200)).stored_HW.shape == (ROWS, COLUMNS)


@pytest.mark.parametrize("syntax", [IMPLICIT, "1.2.840.10008.1.2.2"])
def test_a_header_of_a_million_items_is_not_parsed(
    syntax: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = "<" if syntax == IMPLICIT else ">"
    item = struct.pack(f"{order}HHI", 0xFFFE, 0xE000, 0)
    end = struct.pack(f"{order}HHI", 0xFFFE, 0xE0DD, 0)
    head = struct.pack(f"{order}HH", 0x0008, 0x1140)
    head += b"" if syntax == IMPLICIT else b"SQ\0\0"
    is_implicit = syntax == IMPLICIT
    whole = ct_file(ramp(), syntax=syntax) if is_implicit else big_endian_file(ramp())
    at = whole.index(struct.pack(f"{order}HH", 0x0028, 0x0002))

    def file_with(num_items: int) -> bytes:
        return whole[:at] + head + UNDEFINED + item * num_items + end + whole[at:]

    monkeypatch.setattr("ichfast.dicom.guard._MAX_PIECES", 1000)
    assert read_one(file_with(100)).stored_HW.shape == (ROWS, COLUMNS)
    assert rejection(file_with(250)).code == "bad-header"


def test_headers_of_many_frames_that_all_say_everything_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Enhanced CT as scanners write it: 20 macros, 5 elements in each, no lengths."""
    num_frames = 16
    limit = guard._MAX_PIECES * num_frames // header.MAX_FRAMES
    monkeypatch.setattr("ichfast.dicom.guard._MAX_PIECES", limit)
    body = encode({0x0018_9300 + k: ("LO", b"ab") for k in range(5)}, is_implicit=False)
    macro = ITEM + UNDEFINED + body + b"\xfe\xff\x0d\xe0" + bytes(4)
    macros = b"".join(
        struct.pack("<HH", 0x0018, 0x9400 + k)
        + b"SQ\0\0"
        + UNDEFINED
        + macro
        + DELIMITER
        for k in range(20)
    )
    frame = ITEM + UNDEFINED + macros + b"\xfe\xff\x0d\xe0" + bytes(4)
    groups = b"\x00\x52\x30\x92SQ\0\0" + UNDEFINED + frame * num_frames + DELIMITER
    whole = ct_file(np.stack([ramp()] * num_frames), NumberOfFrames=str(num_frames))
    at = whole.rindex(b"\xe0\x7f\x10\x00")
    assert len(list(read_slices(whole[:at] + groups + whole[at:]))) == num_frames


def test_a_frame_has_no_patient_and_no_rows_of_its_own() -> None:
    measures = {"Rows": 1, "PatientID": "other", "PixelSpacing": "2\\3"}
    groups = sequence({"PixelMeasuresSequence": sequence(measures)})
    one = read_one(ct_file(ramp(), PerFrameFunctionalGroupsSequence=groups))
    assert (one.common.row_spacing_mm, one.common.column_spacing_mm) == (2, 3)
    assert (one.common.layout.rows, one.common.patient_id) == (ROWS, "ID_patient")


def test_long_values_that_nobody_reads_are_no_obstacle() -> None:
    private = implicit(0x0009_1010, bytes(70_000))
    item = ITEM + struct.pack("<I", len(private)) + private
    macro = implicit(0x0028_9110, item)
    groups = implicit(0x5200_9230, ITEM + struct.pack("<I", len(macro)) + macro)
    assert read_one(with_implicit(groups)).stored_HW.shape == (ROWS, COLUMNS)
    whole = with_implicit(groups)
    meta = b"\2\0\2\1OB\0\0" + struct.pack("<I", 70_000) + bytes(70_000)
    with_meta = whole[:132] + meta + whole[132:]
    assert read_one(with_meta).stored_HW.shape == (ROWS, COLUMNS)


@pytest.mark.parametrize("tag", [0x0028_3002, 0x0028_3006])
@pytest.mark.parametrize("measured", [True, False])
def test_a_lut_of_megabytes_is_not_parsed(tag: int, *, measured: bool) -> None:
    """As a number for each two bytes it would take twenty times the file's memory."""

    def file_with(num_bytes: int) -> bytes:
        values = {
            0x0028_3002: struct.pack("<HHH", 2**16 - 1, 0, 16),
            0x0028_3006: bytes(2**17 - 2),
        }
        values[tag] += bytes(num_bytes - len(values[tag]))
        body = b"".join(implicit(*each) for each in values.items())
        item = ITEM + struct.pack("<I", len(body)) + body
        return with_implicit(implicit(0x0028_3000, item, measured=measured))

    assert "value of" not in getattr(attempt(file_with(2**17)), "detail", "")
    assert rejection(file_with(2**17 + 2)).detail == "a value of 131,074 bytes"


def test_a_frame_of_a_million_fragments_is_not_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ichfast.dicom.guard._MAX_FRAGMENTS", 9)
    codes = [
        rejection(
            ct_file(
                ramp(), syntax=uid.RLELossless, pixels=encapsulate([b"ab"] * number)
            )
        ).code
        for number in (9, 10)
    ]
    assert codes == ["decoder-error", "too-large"]


J2K_HUGE = b"\xff\x4f\xff\x51\x00\x29\x00\x00" + struct.pack(
    ">8IH3B", *(60000, 60000, 0, 0), *(60000, 60000, 0, 0), *(1, 15, 1, 1)
)
JPEG_HUGE = b"\xff\xd8\xff\xe0\0\2\xff\xc3\0\x0b\x10" + struct.pack(
    ">HHB", 60000, 60000, 1
)
JP2_HEAD = b"\0\0\0\x0cjP  \r\n\x87\n"


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


@pytest.mark.parametrize(
    ("syntax", "codestream"),
    [
        (uid.JPEG2000Lossless, J2K_HUGE),
        (uid.JPEG2000Lossless, JP2_HEAD + box(b"jp2c", J2K_HUGE + bytes(40))),
        # What pydicom looks for may lie far back, and in another box.
        (
            uid.JPEG2000Lossless,
            JP2_HEAD
            + box(b"free", J2K_HUGE.replace(b"\0\0\xea\x60", b"\0\0\0\1") + bytes(400))
            + box(b"jp2c", J2K_HUGE + bytes(40)),
        ),
        # Fill bytes.
        (uid.JPEGLosslessSV1, JPEG_HUGE.replace(b"\xff\xc3", b"\xff\xff\xff\xc3")),
        (uid.JPEGLosslessSV1, JPEG_HUGE + bytes(40)),
        (uid.JPEGLSLossless, JPEG_HUGE.replace(b"\xc3", b"\xf7") + bytes(40)),
    ],
)
def test_a_frame_that_promises_more_than_the_slice_is_not_decoded(
    syntax: str, codestream: bytes
) -> None:
    content = ct_file(ramp(), syntax=syntax, pixels=encapsulate([codestream]))
    error = rejection(content)
    assert error.code == "too-large"
    assert "60000 rows" in error.detail


JPEG_SMALL = JPEG_HUGE[:-5] + struct.pack(">HHB", ROWS, COLUMNS, 1)


@pytest.mark.parametrize(
    "codestream",
    [
        # Rows that stand behind the pixels; a decoder takes 11 GB for them.
        JPEG_HUGE[:-5] + struct.pack(">HHB", 0, 60000, 1),
        JPEG_SMALL.replace(b"\xff\xc3", b"junk\xff\xc3"),
        JPEG_SMALL.replace(b"\xff\xc3", b"\xff\x01\xff\xc3"),
        JPEG_SMALL.replace(b"\xff\xc3", b"\xff\xc2"),  # progressive
        JPEG_SMALL[1:],
        b"\xff\xd8\xff\xe0\0\0" + bytes(40),
        b"",
    ],
)
def test_a_frame_that_decoders_may_read_in_another_way_is_not_decoded(
    codestream: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoder, "iter_array", lambda *_, **__: pytest.fail("decoded"))
    pixels = encapsulate([codestream + bytes(40) + b"\xff\xd9"])
    content = ct_file(ramp(), syntax=uid.JPEGLosslessSV1, pixels=pixels)
    error = rejection(content)
    assert error.code == "decoder-error"
    assert "Failed" not in error.detail


@pytest.mark.parametrize("marker", [b"\xff\xc3", b"\xff\xf7"])
def test_a_jpeg_frame_that_breaks_off_is_truncated(marker: bytes) -> None:
    """A decoder would make up the rest."""
    codestream = JPEG_SMALL.replace(b"\xff\xc3", marker) + bytes(40)
    content = ct_file(
        ramp(), syntax=uid.JPEGLosslessSV1, pixels=encapsulate([codestream])
    )
    assert rejection(content).code == "truncated-pixels"


def j2k(
    rows: int,
    columns: int,
    tile: int,
    *coding: bytes,
    samples: int = 1,
    step: int = 1,
) -> bytes:
    """A codestream of empty packets."""
    size = struct.pack(">H8IH", 0, columns, rows, 0, 0, tile, tile, 0, 0, samples)
    size += bytes([15, step, step]) * samples
    main = b"\xff\x51" + struct.pack(">H", 2 + len(size)) + size + b"".join(coding)
    quantization = b"\xff\x5c\0\x04\x40\x90"
    start = struct.pack(">HHHIBB", 0xFF90, 10, 0, 0, 0, 1)
    return b"\xff\x4f" + main + quantization + start + b"\xff\x93" + bytes(99)


def cod(sizes: bytes = b"", layers: int = 1) -> bytes:
    """Coding parameters: of no decomposition, with or without sizes of precincts."""
    content = struct.pack(">BBHB5B", len(sizes), 0, layers, 0, *(0, 4, 4, 0, 1)) + sizes
    return b"\xff\x52" + struct.pack(">H", 2 + len(content)) + content


COC = b"\xff\x53\0\x0a\0\1\0\4\4\0\1\0"
"""Precincts of one pixel."""


@pytest.mark.parametrize(
    ("codestream", "code"),
    [
        (j2k(512, 2048, 2048, cod()), "decoder-error"),
        (j2k(1024, 1024, 1024, cod(), step=2), "decoder-error"),
        (j2k(255, 255, 1, cod(), samples=16), "decoder-error"),
        (j2k(255, 255, 1, cod(), samples=17), "too-large"),
        (j2k(1024, 1024, 7, cod()), "too-large"),
        (j2k(1024, 1024, 1024, cod(b"\0")), "too-large"),
        (j2k(1024, 1024, 1024, cod(), COC), "too-large"),
        (j2k(1024, 1024, 1024, cod(), b"\xff\x64\0\x0f" + cod(b"\0")), "too-large"),
        (j2k(1024, 1024, 1024, cod(b"\x44", layers=500)), "too-large"),
    ],
)
def test_jpeg_2000_of_another_shape_or_of_too_many_parts_is_not_decoded(
    codestream: bytes, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = np.zeros((1024, 1024), "<u2")
    whole = j2k(1024, 1024, 1024, cod(b"\x44", layers=100))

    def file_of(codestream: bytes) -> bytes:
        pixels = encapsulate([codestream + b"\xff\xd9"])
        return ct_file(raw, syntax=uid.JPEG2000Lossless, pixels=pixels)

    assert read_one(file_of(whole)).stored_HW.shape == raw.shape
    monkeypatch.setattr(Decoder, "iter_array", lambda *_, **__: pytest.fail("decoded"))
    assert rejection(file_of(codestream)).code == code


def test_more_frames_than_fragments_are_not_decoded() -> None:
    content = ct_file(
        ramp(),
        syntax=uid.RLELossless,
        pixels=encapsulate([bytes(64)]),
        NumberOfFrames="9",
    )
    assert rejection(content).code == "too-large"


@pytest.mark.parametrize("num_bytes", [6, 12, 30])
def test_truncated_compressed_pixels_are_told_from_broken_ones(num_bytes: int) -> None:
    pixels = encapsulate([bytes(64)])
    content = ct_file(ramp(), syntax=uid.RLELossless, pixels=pixels)
    assert rejection(content[:-num_bytes]).code == "truncated-pixels"


@pytest.mark.parametrize("installed", [(), ("gdcm",)])
def test_a_missing_decoder_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...]
) -> None:
    decoder = Decoder(uid.JPEG2000Lossless)
    for name in ("gdcm", "pylibjpeg"):
        module = f"pydicom.pixels.decoders.{name}"
        is_installed = name in installed
        monkeypatch.setattr(f"{module}.is_available", lambda _, so=is_installed: so)
        decoder.add_plugin(name, (module, "_decode_frame"))
    assert decoder.available_plugins == installed
    monkeypatch.setattr(dicom, "get_decoder", lambda _: decoder)
    pixels = encapsulate([bytes(64)])
    error = rejection(ct_file(ramp(), syntax=uid.JPEG2000Lossless, pixels=pixels))
    assert error.code == "no-decoder"
    assert "pip install 'ichfast[decoders]'" in error.detail
    assert "pylibjpeg-openjpeg" in error.detail


def test_a_header_written_in_another_way_than_it_says_is_read_without_warning() -> None:
    implicit = ct_file(ramp(), syntax=IMPLICIT)
    meta = encode(dict([element("TransferSyntaxUID", EXPLICIT)]), is_implicit=False)
    start = 132 + 8 + len(IMPLICIT) + len(IMPLICIT) % 2
    said = bytes(128) + b"DICM" + meta + implicit[start:]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        one = read_one(said)
    np.testing.assert_array_equal(one.stored_HW, read_one(implicit).stored_HW)
    assert caught == []


def test_what_is_remembered_of_a_series_is_not_taken_for_another() -> None:
    first = read_one(ct_file(ramp(), SOPInstanceUID="1.1", InstanceNumber="7"))
    second = read_one(ct_file(ramp(), SOPInstanceUID="1.2", InstanceNumber="8"))
    assert (first.slice_id, first.instance_number) == ("1.1", 7)
    assert (second.slice_id, second.instance_number) == ("1.2", 8)
    steeper = read_one(ct_file(ramp(), RescaleSlope="2"))
    assert (first.rescale_slope, steeper.rescale_slope) == (1.0, 2.0)
    assert read_one(ct_file(ramp(), PatientID="other")).common.patient_id == "other"
    assert rejection(ct_file(ramp(), Modality="MR")).code == "not-ct"


@pytest.mark.parametrize(
    "keyword", ["WindowCenter", "ImageType", "ImagePositionPatient"]
)
@pytest.mark.parametrize("is_walked", [True, False])
def test_a_value_of_megabytes_is_not_read(
    keyword: str, monkeypatch: pytest.MonkeyPatch, *, is_walked: bool
) -> None:
    """As a number for each byte it would take a hundred times the file's memory."""
    if not is_walked:
        monkeypatch.setattr(Walker, "walk", lambda *_: None)

    def file_with(num_bytes: int) -> bytes:
        changed: dict[str, Any] = {keyword: b"\\" * num_bytes}
        return ct_file(ramp(), syntax=IMPLICIT, **changed)

    assert read_one(file_with(65_534)).stored_HW.shape == (ROWS, COLUMNS)
    assert rejection(file_with(65_536)).code == "bad-header"


def test_a_long_value_that_is_not_read_does_no_harm() -> None:
    """A VOI LUT of a frame has up to 128 KB."""
    windows = sequence(
        {"WindowCenter": "30", "VOILUTSequence": sequence({"LUTData": bytes(65_530)})}
    )
    groups = sequence({"FrameVOILUTSequence": windows})
    one = read_one(ct_file(ramp(), PerFrameFunctionalGroupsSequence=groups))
    assert one.common.window_center == 30


def test_of_long_headers_the_last_is_remembered() -> None:
    series_header._remember_common.cache_clear()
    series_header._remember_last.cache_clear()
    for kind in "AB":
        read_one(ct_file(ramp(), ImageType=kind * 5000))
    assert series_header._remember_common.cache_info().currsize == 0
    assert series_header._remember_last.cache_info().currsize == 1
    read_one(ct_file(ramp()))
    assert series_header._remember_common.cache_info().currsize == 1


def test_frames_that_share_a_long_header_have_it_read_once() -> None:
    series_header._remember_last.cache_clear()
    frames = np.zeros((9, 1, 1), "<u2")
    content = ct_file(frames, NumberOfFrames="9", WindowCenter="40\\" * 2000)
    slices = list(read_slices(content))
    assert len({id(one.common) for one in slices}) == 1


@pytest.mark.parametrize(
    "keyword", ["PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"]
)
def test_an_id_of_many_characters_is_refused(keyword: str) -> None:
    """A file has one for each of 4,096 frames, and they are kept."""
    most = header.MAX_ID_LENGTH
    longest: dict[str, Any] = {keyword: "x" * most}
    assert read_one(ct_file(ramp(), **longest)).stored_HW.shape == (ROWS, COLUMNS)
    longest[keyword] += "x"
    error = rejection(ct_file(ramp(), **longest))
    assert error.code == "bad-header"
    assert "xx" not in error.detail


def test_an_unforeseen_error_is_told_by_its_kind_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise LookupError("SECRET^NAME")

    monkeypatch.setattr(dicom, "read_common", fail)
    error = rejection(ct_file(ramp()))
    assert (error.code, error.detail) == (
        "bad-header",
        "LookupError while reading the header",
    )
    assert error.__cause__ is None
    assert error.__suppress_context__


def test_a_panic_in_a_decoder_is_a_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As pyo3 raises it."""

    def fail(*_: object) -> None:
        raise PanicException("SECRET^NAME")

    monkeypatch.setattr(hounsfield, "store_frame", fail)
    error = rejection(ct_file(ramp()))
    assert (error.code, error.detail) == (
        "decoder-error",
        "PanicException while reading the pixels",
    )


@pytest.mark.parametrize(
    "content",
    [
        ct_file(ramp(), Modality="SECRET^NAME"),
        ct_file(ramp(), PhotometricInterpretation="SECRET^NAME"),
        ct_file(ramp(), syntax="SECRET^NAME"),
    ],
)
def test_no_rejection_quotes_a_name_in_the_wrong_element(content: bytes) -> None:
    assert "SECRET" not in str(rejection(content))


def test_no_rejection_quotes_the_patient(caplog: pytest.LogCaptureFixture) -> None:
    name = "SECRET^NAME"
    whole = ct_file(ramp(), PatientID=name, StudyInstanceUID=name, WindowCenter=name)
    draw = random.Random(3)
    with caplog.at_level(logging.DEBUG):
        for _ in range(300):
            content = bytearray(whole)
            for _ in range(4):
                content[draw.randrange(132, len(content))] ^= 1 << draw.randrange(8)
            error = attempt(bytes(content))
            assert "SECRET" not in str(error)
            assert error is None or error.__cause__ is None
    assert caplog.text == ""


# ---- real files ------------------------------------------------------------------

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
    f"{ZOO}/emri_small.dcm": "not-ct",
    f"{ZOO}/image_dfl.dcm": "not-ct",
    f"{ZOO}/mlut_19.dcm": "not-ct",
    f"{ZOO}/no_meta.dcm": "not-dicom",
    f"{ZOO}/rtplan.dcm": "no-pixels",
    f"{ZOO}/rtplan_truncated.dcm": "bad-header",
    f"{ZOO}/rtstruct.dcm": "no-pixels",
    f"{ZOO}/test-SR.dcm": "no-pixels",
}
"""Every file of the manifest that is no slice; the other 323 are stored."""

UNREADABLE_BY_PYDICOM = {
    f"{EDGE}/trailing_garbage_64.dcm": f"{EDGE}/duplicate_sop_a_64.dcm",
    f"{EDGE}/wrong_ts_rle_but_native_64.dcm": f"{EDGE}/duplicate_sop_a_64.dcm",
}
"""Stored although pydicom gives up; each has the pixels of the other file."""


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


def decode_with_pydicom(content: bytes, row: dict[str, str]) -> npt.NDArray[Any]:
    """HU by the slow and readable way, after the manifest's word on the pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = dcmread(DicomBytesIO(content), force=True)
        if "TransferSyntaxUID" not in dataset.file_meta:
            dataset.file_meta.TransferSyntaxUID = EXPLICIT
        raw = np.ascontiguousarray(dataset.pixel_array)
        digest = hashlib.sha256(raw.astype(row["pixel_dtype"]).tobytes()).hexdigest()
        assert digest == row["pixel_sha256"], row["file"]
        shared = dataset.get("SharedFunctionalGroupsSequence", [])
        if shared:
            dataset = shared[0].PixelValueTransformationSequence[0]
        hu: npt.NDArray[Any] = apply_rescale(raw, dataset)
    return hu


@needs_data
@pytest.mark.slow
def test_every_real_file_is_stored_as_pydicom_decodes_it_or_rightly_rejected() -> None:
    num_slices = 0
    for row, content in real_files():
        name = row["file"]
        if not row["container"] and name in REJECTED:
            assert rejection(content).code == REJECTED[name], name
            continue
        if name in UNREADABLE_BY_PYDICOM:
            twin = (DATA / UNREADABLE_BY_PYDICOM[name]).read_bytes()
            np.testing.assert_array_equal(
                read_one(content).stored_HW, read_one(twin).stored_HW
            )
            continue
        hu = decode_with_pydicom(content, row)
        if name.endswith("highbits_12of16_64.dcm"):  # unsigned 12 bits, intercept 0
            hu = np.where(hu >= 3096, hu - 4096, hu)
        found = list(read_slices(content))
        expected = np.clip(np.rint(hu) + 1024, 0, 32767).reshape(
            len(found), *hu.shape[-2:]
        )
        for one, expected_HW in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.stored_HW, expected_HW, err_msg=name)
            assert one.slice_id.startswith(row["sop_instance_uid"])
            assert one.common.patient_id == row["patient_id"]
            num_slices += 1
    assert num_slices == 324


@needs_data
def test_the_manifest_has_a_checksum_for_the_pixels_of_every_stored_file() -> None:
    with (DATA / "MANIFEST.csv").open(newline="") as stream:
        without = {
            row["file"] for row in csv.DictReader(stream) if not row["pixel_sha256"]
        }
    assert without - set(REJECTED) == set(UNREADABLE_BY_PYDICOM)


@needs_data
def test_the_real_enhanced_ct_gives_each_frame_its_position() -> None:
    first, second = read_slices((DATA / ZOO / "eCT_Supplemental.dcm").read_bytes())
    assert (first.position_mm, first.slice_id[-2:]) == (159, ".1")
    assert second.position_mm not in (159, math.nan)
    assert (first.common.thickness_mm, first.rescale_intercept) == (10, -1024)


@needs_data
def test_the_sign_of_jpeg_2000_is_mended() -> None:
    one = read_one((DATA / ZOO / "J2K_pixelrep_mismatch.dcm").read_bytes())
    assert "j2k_sign" in one.quirks


@needs_data
@pytest.mark.slow
def test_damaged_real_files_only_ever_raise_rejections() -> None:
    draw = random.Random(20)
    paths = sorted(p for p in DATA.glob("[zdr]*/**/*") if p.is_file())
    paths = [p for p in paths if p.suffix != ".xz" and 0 < p.stat().st_size < 200_000]
    num_rejected = 0
    for _ in range(600):
        content = bytearray(draw.choice(paths).read_bytes())
        if draw.random() < 0.4:
            del content[draw.randrange(len(content)) :]
        else:
            span = draw.choice([len(content), min(len(content), 2000)])
            for _ in range(draw.choice([1, 3, 30])):
                content[draw.randrange(span)] ^= 1 << draw.randrange(8)
        error = attempt(bytes(content))
        assert error is None or error.code in REJECT_CODES
        num_rejected += error is not None
    assert 300 < num_rejected < 600


def test_pydicoms_own_settings_are_left_alone() -> None:
    before = vars(config.settings).copy()
    filters = warnings.filters[:]
    read_one(ct_file(ramp(), StudyInstanceUID="not a uid"))
    assert vars(config.settings) == before
    assert warnings.filters == filters


def test_the_limit_on_pixels_is_inclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "MAX_PIXELS", ROWS * COLUMNS)
    assert len(list(read_slices(ct_file(ramp())))) == 1
    monkeypatch.setattr(header, "MAX_PIXELS", ROWS * COLUMNS - 1)
    series_header._remember_common.cache_clear()
    assert rejection(ct_file(ramp())).code == "too-large"
