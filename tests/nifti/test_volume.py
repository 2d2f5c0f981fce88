"""Voxels become the HU that they stand for, and volumes that are no CT are rejected."""

from __future__ import annotations

import builtins
import gzip
import struct
from typing import Any

import numpy as np
import pytest

from ichfast.dicom.slices import read_slices
from ichfast.nifti import header as nifti_header
from ichfast.nifti.header import is_nifti
from ichfast.nifti.volume import read_volume
from tests.dicom.dicom_files import ct_file
from tests.nifti.volumes import (
    head_hu,
    nifti,
    packed,
    read_hu,
    rejection,
    with_field,
)

HU = head_hu((3, 4, 5))
EXPECTED_ZHW = HU[::-1, ::-1].transpose(2, 1, 0).astype(np.int32)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("pack", [bytes, packed])
@pytest.mark.parametrize(
    "dtype", [np.int16, np.int32, np.int64, np.float32, np.float64]
)
def test_every_encoding_gives_the_same_hu(
    version: int, big_endian: bool, pack: Any, dtype: Any
) -> None:
    content = pack(nifti(HU.astype(dtype), version=version, big_endian=big_endian))
    assert is_nifti(content)
    np.testing.assert_array_equal(read_hu(content), EXPECTED_ZHW)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64, np.float32])
def test_hu_are_numbers_times_slope_plus_intercept(dtype: Any) -> None:
    numbers = (2 * (HU.astype(np.int64) + 1024)).astype(dtype)
    content = nifti(numbers, slope=0.5, intercept=-1024)
    np.testing.assert_array_equal(read_hu(content), EXPECTED_ZHW)
    one, *_ = read_volume(content, "a.nii")
    assert (one.rescale_slope, one.rescale_intercept) == (0.5, -1024)
    assert one.series_header.layout.is_signed == (dtype is np.float32)


@pytest.mark.parametrize("slope", [0.0, np.nan, np.inf])
def test_a_slope_that_is_none_is_one(slope: float) -> None:
    content = nifti(HU, scl_slope=slope, scl_inter=-5)
    np.testing.assert_array_equal(read_hu(content), EXPECTED_ZHW)


@pytest.mark.parametrize(
    ("slope", "intercept"), [(1, -1024), (1, 0.5), (0.75, -300.25), (-2, 5)]
)
def test_slices_are_stored_as_those_of_dicom_with_the_same_rescale(
    slope: float, intercept: float
) -> None:
    numbers = np.random.default_rng(3).integers(0, 4096, (6, 5, 2), np.int16)
    content = nifti(numbers, slope=slope, intercept=intercept)
    for one in read_volume(content, "a.nii"):
        index = one.instance_number - 1
        pixels_HW = numbers[::-1, ::-1, index].T
        [expected] = read_slices(
            ct_file(
                np.ascontiguousarray(pixels_HW),
                RescaleSlope=str(slope),
                RescaleIntercept=str(intercept),
                PixelRepresentation=1,
                BitsStored=16,
                HighBit=15,
            )
        )
        np.testing.assert_array_equal(one.stored_HW, expected.stored_HW)


def test_values_beyond_the_store_are_clipped_as_those_of_dicom() -> None:
    voxels = HU.astype(np.float32)
    voxels[0, 0, 0], voxels[1, 1, 1], voxels[2, 2, 2] = -3024, 40_000, 10.5
    hu_ZHW = read_hu(nifti(voxels))
    assert hu_ZHW.min() == -1024
    assert hu_ZHW.max() == 32_767 - 1024
    assert hu_ZHW[2, 1, 0] == 10  # ties round to even


def test_a_fourth_axis_of_one_voxel_is_left_out() -> None:
    content = nifti(HU[..., np.newaxis])
    np.testing.assert_array_equal(read_hu(content), EXPECTED_ZHW)


def test_voxels_may_begin_after_extensions() -> None:
    content = nifti(HU)
    extension = struct.pack("<4B2i", 1, 0, 0, 0, 32, 2) + b"PatientName^X".ljust(24)
    moved = content[:348] + extension + content[352:]
    moved = with_field(moved, "vox_offset", "f", 348 + len(extension))
    np.testing.assert_array_equal(read_hu(moved), EXPECTED_ZHW)


def test_without_an_offset_voxels_begin_behind_the_header() -> None:
    content = with_field(nifti(HU), "vox_offset", "f", 0)
    np.testing.assert_array_equal(read_hu(content), EXPECTED_ZHW)


@pytest.mark.parametrize("offset", [-16, 16, 2.0**25, 2.0**62, float("nan")])
def test_voxels_that_begin_anywhere_else_are_rejected(offset: float) -> None:
    content = with_field(nifti(HU), "vox_offset", "f", offset)
    for each in (content, packed(content)):
        assert rejection(each).code == "bad-header"


def test_a_file_without_an_affine_lies_as_analyze_files_do() -> None:
    content = nifti(HU, sform_code=0, qform_code=0)
    slices = list(read_volume(content, "a.nii"))
    assert {each.quirks for each in slices} == {("missing_affine",)}
    np.testing.assert_array_equal(
        slices[0].stored_HW - 1024.0, HU[:, ::-1, 0].T.astype(float)
    )


# ---- ids ----


@pytest.mark.parametrize(
    ("name", "patient", "study", "series"),
    [
        ("049.nii", "049", "049", "049"),
        ("ct_scans/049.NII.GZ", "049", "ct_scans/049", "ct_scans/049"),
        (
            "a.zip/images/ID_0237f3c9_ID_40015688b9.nii.gz",
            *("ID_0237f3c9", "ID_40015688b9"),
            "a.zip/images/ID_0237f3c9_ID_40015688b9",
        ),
        ("ID_01_ID_02_0000.nii.gz", "ID_01", "ID_02", "ID_01_ID_02_0000"),
        ("ID_01_ID_02x.nii", "ID_01_ID_02x", "ID_01_ID_02x", "ID_01_ID_02x"),
        ("mine_ID_01_ID_02.nii", *["mine_ID_01_ID_02"] * 3),
        ("volume", "volume", "volume", "volume"),
    ],
)
def test_ids_come_from_the_name(
    name: str, patient: str, study: str, series: str
) -> None:
    one, *_ = read_volume(nifti(HU), name)
    found = one.series_header
    assert (found.patient_id, found.study_uid) == (patient, study)
    assert found.series_uid == series
    assert one.slice_id == f"{series}/0"


def test_a_path_that_is_too_long_is_rejected() -> None:
    error = rejection(nifti(HU), "folder/" * 40 + "a.nii")
    assert error.code == "bad-header"
    assert error.detail.startswith("its path has 281 characters, the limit is 256;")


# ---- rejected ----


def windowed(low: int, high: int) -> bytes:
    voxels = np.random.default_rng(1).integers(low, high + 1, (3, 4, 5), np.int16)
    voxels[0, 0, 0], voxels[0, 0, 1] = low, high
    return nifti(voxels)


def test_a_windowed_volume_is_rejected() -> None:
    error = rejection(windowed(0, 255))
    assert error.code == "not-hu"
    assert error.detail == (
        "values from 0 to 255, as of a windowed or masked copy; expected HU with air "
        "below -500; use the volume before windowing"
    )
    [one, *_] = read_volume(windowed(0, 255), "a.nii", frozenset(["not-hu"]))
    assert one.quirks == ("not-hu",)


@pytest.mark.parametrize(("low", "high"), [(-500, 255), (0, 5), (-100, 100)])
def test_neither_air_nor_bone_is_no_hu(low: int, high: int) -> None:
    assert rejection(windowed(low, high)).code == "not-hu"


@pytest.mark.parametrize(("low", "high"), [(-501, 255), (-500, 256)])
def test_air_or_bone_is_enough(low: int, high: int) -> None:
    assert len(read_hu(windowed(low, high))) == 5


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_eight_bits_are_no_hu(dtype: Any) -> None:
    error = rejection(nifti(np.arange(60).astype(dtype).reshape(3, 4, 5)))
    assert error.code == "not-hu"


@pytest.mark.parametrize("scale", [1 / 4000, 1 / 3000])
def test_normalized_values_are_no_hu(scale: float) -> None:
    assert rejection(nifti((HU * scale).astype(np.float32))).code == "not-hu"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_rejected(value: float) -> None:
    voxels = HU.astype(np.float32)
    voxels[1, 2, 3] = value
    error = rejection(nifti(voxels))
    assert error.code == "not-hu"
    assert "NaN or infinite" in error.detail


@pytest.mark.parametrize("value", [1e6, -1e30])
def test_values_that_no_ct_has_are_rejected(value: float) -> None:
    voxels = HU.astype(np.float32)
    voxels[1, 2, 3] = value
    error = rejection(nifti(voxels))
    assert error.code == "not-hu"
    assert "expected HU of at most 65,536" in error.detail


@pytest.mark.parametrize("shape", [(12, 5), (3, 4, 5, 2), (3, 4, 1, 1, 5), (60,)])
def test_other_than_three_axes_are_rejected(shape: tuple[int, ...]) -> None:
    error = rejection(nifti(np.resize(HU, shape)))
    assert error.code == "not-ct"
    assert error.detail.startswith(f"{len(shape)} axes ({shape[0]}")


def test_colours_and_complex_numbers_are_rejected() -> None:
    rgb = np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert rejection(nifti(rgb)).code == "colour"
    assert rejection(nifti(HU.astype(np.complex64))).code == "not-hu"
    quadruple = with_field(nifti(HU), "datatype", "h", 1536)
    assert rejection(quadruple).code in ("bad-header", "not-hu")  # by the machine


def test_a_header_without_voxels_is_rejected() -> None:
    error = rejection(nifti(HU, magic=b"ni1"))
    assert error.code == "bad-header"
    assert "convert both to one .nii" in error.detail


def test_too_few_voxels_are_rejected_with_both_sizes() -> None:
    content = nifti(HU)
    for cut in (content[:-20], packed(content[:-20])):
        error = rejection(cut)
        assert error.code == "truncated-pixels"
        assert error.detail == "100 bytes, expected 120"


def test_damaged_packed_voxels_are_rejected() -> None:
    content = packed(nifti(head_hu((30, 40, 5))))
    assert rejection(content[:-6]).code in ("decoder-error", "truncated-pixels")
    for place in (-1, -5):  # in the size and in the checksum at the end
        damaged = bytearray(content)
        damaged[place] ^= 1
        assert rejection(bytes(damaged)).code == "decoder-error"


@pytest.mark.parametrize(
    "shape", [(32_767, 1, 1), (4_096, 4_096, 20), (32_767, 32_767, 32_767)]
)
def test_a_huge_shape_is_rejected_before_it_is_allocated(
    shape: tuple[int, int, int],
) -> None:
    error = rejection(with_field(nifti(HU), "dim", "h", 3, *shape))
    assert error.code == "too-large"
    assert "the limits are 4,096 along an axis and 536,870,912 bytes" in error.detail


@pytest.mark.parametrize("shape", [(0, 4, 5), (3, -4, 5)])
def test_a_shape_of_no_voxels_is_rejected(shape: tuple[int, int, int]) -> None:
    error = rejection(with_field(nifti(HU), "dim", "h", 3, *shape))
    assert error.code == "bad-header"


@pytest.mark.parametrize(
    "affine",
    [
        np.diag([0.0, 0.4, 5, 1]),
        np.diag([np.nan, 0.4, 5, 1]),
        np.diag([1e38, 0.4, 5, 1]),
        np.array([[1, 1, 0, 0], [0, 0.0001, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
    ],
)
def test_an_affine_that_places_nothing_is_rejected(affine: Any) -> None:
    content = nifti(HU, srow_x=affine[0], srow_y=affine[1], srow_z=affine[2])
    error = rejection(content)
    assert error.code == "bad-header"
    assert error.detail == (
        "its affine places no voxels in space; write the volume again"
    )


def test_without_nibabel_the_rejection_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    imported = builtins.__import__

    def without_nibabel(name: str, *arguments: Any) -> Any:
        if name.startswith("nibabel"):
            raise ModuleNotFoundError("No module named 'nibabel'")
        return imported(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_nibabel)
    error = rejection(nifti(HU))
    assert error.code == "no-decoder"
    assert error.detail == "NIfTI needs nibabel; pip install 'ichfast[nifti]'"


def test_texts_of_a_header_are_in_no_rejection_and_no_slice() -> None:
    name = b"Somebody"
    content = nifti(HU, descrip=name, db_name=name, aux_file=name, intent_name=name)
    for one in read_volume(content, "a.nii"):
        assert "Somebody" not in repr(one)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x1f\x8b", packed(b""), packed(b"text" * 300), ct_file(HU[:, :, 0])],
    ids=["empty", "magic", "packed nothing", "packed text", "DICOM"],
)
def test_other_files_are_no_nifti(content: bytes) -> None:
    assert not is_nifti(content)


def test_the_bomb_of_a_packed_file_is_not_unpacked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = []
    monkeypatch.setattr(nifti_header, "_CHUNK_BYTES", 2**16)

    class Counted(gzip.GzipFile):
        def read(self, size: int | None = -1) -> bytes:
            piece = super().read(size)
            read.append(len(piece))
            return piece

    monkeypatch.setattr(gzip, "GzipFile", Counted)
    content = packed(nifti(HU) + bytes(2**24))
    np.testing.assert_array_equal(read_hu(content), EXPECTED_ZHW)
    assert sum(read) <= 352 + 120 + 1
