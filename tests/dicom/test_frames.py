"""Each frame of a multi-frame file becomes a slice with its own values."""

from __future__ import annotations

import math
import struct

import numpy as np

from ichfast.dicom import header
from ichfast.dicom.slices import read_slices
from tests.dicom.dicom_files import (
    COLUMNS,
    ITEM,
    ROWS,
    ct_file,
    implicit,
    ramp,
    read_one,
    sequence,
    with_implicit,
)


def test_frames_do_not_inherit_the_position_of_the_file() -> None:
    raw = np.stack([ramp(), ramp() + 1, ramp() + 2])
    found = list(read_slices(ct_file(raw, NumberOfFrames="3")))
    assert [one.slice_id for one in found] == ["ID_0123.1", "ID_0123.2", "ID_0123.3"]
    assert [one.instance_number for one in found] == [1, 2, 3]
    assert all(math.isnan(one.position_mm) for one in found)
    for one, expected_HW in zip(found, raw, strict=True):
        np.testing.assert_array_equal(one.stored_HW, np.clip(expected_HW, 0, None))


def test_the_largest_number_of_frames_is_read() -> None:
    raw = np.arange(header.MAX_FRAMES * 2, dtype="<i2").reshape(-1, 1, 2)
    found = list(read_slices(ct_file(raw, NumberOfFrames=str(header.MAX_FRAMES))))
    np.testing.assert_array_equal([one.stored_HW for one in found], raw)


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
    assert (
        first.series_header.row_spacing_mm,
        first.series_header.column_spacing_mm,
    ) == (0.4, 0.3)
    assert (
        first.series_header.thickness_mm,
        first.series_header.window_center,
        first.series_header.window_width,
    ) == (
        2.5,
        30,
        90,
    )
    assert first.quirks == second.quirks == ()


def test_patient_and_rows_in_a_frame_are_ignored() -> None:
    measures = {"Rows": 1, "PatientID": "other", "PixelSpacing": "2\\3"}
    groups = sequence({"PixelMeasuresSequence": sequence(measures)})
    one = read_one(ct_file(ramp(), PerFrameFunctionalGroupsSequence=groups))
    assert (one.series_header.row_spacing_mm, one.series_header.column_spacing_mm) == (
        2,
        3,
    )
    assert (one.series_header.layout.rows, one.series_header.patient_id) == (
        ROWS,
        "ID_patient",
    )


def test_long_values_that_are_not_read_are_allowed() -> None:
    private = implicit(0x0009_1010, bytes(70_000))
    item = ITEM + struct.pack("<I", len(private)) + private
    macro = implicit(0x0028_9110, item)
    groups = implicit(0x5200_9230, ITEM + struct.pack("<I", len(macro)) + macro)
    assert read_one(with_implicit(groups)).stored_HW.shape == (ROWS, COLUMNS)
    whole = with_implicit(groups)
    meta = b"\2\0\2\1OB\0\0" + struct.pack("<I", 70_000) + bytes(70_000)
    with_meta = whole[:132] + meta + whole[132:]
    assert read_one(with_meta).stored_HW.shape == (ROWS, COLUMNS)


def test_a_voi_lut_in_a_frame_is_allowed() -> None:
    """A VOI LUT has up to 128 KB."""
    windows = sequence(
        {"WindowCenter": "30", "VOILUTSequence": sequence({"LUTData": bytes(65_530)})}
    )
    groups = sequence({"FrameVOILUTSequence": windows})
    one = read_one(ct_file(ramp(), PerFrameFunctionalGroupsSequence=groups))
    assert one.series_header.window_center == 30
