"""Every real file of the test set is stored as pydicom decodes it, or rejected."""

from __future__ import annotations

import csv
import hashlib
import math
import random
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.pixels.processing import apply_rescale

from ichfast.dicom import quirks
from ichfast.dicom.slices import read_slices
from ichfast.errors import REJECT_CODES
from tests.dicom.dicom_files import (
    EXPLICIT,
    attempt,
    read_one,
    rejection,
)
from tests.dicom.real_files import (
    DATA,
    REJECTED,
    UNREADABLE_BY_PYDICOM,
    ZOO,
    needs_data,
    real_files,
)


def decode_with_pydicom(content: bytes, row: dict[str, str]) -> npt.NDArray[Any]:
    """HU by pydicom alone, after checking the pixels against the manifest."""
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
def test_every_real_file_is_stored_as_pydicom_decodes_it_or_rejected() -> None:
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
            assert one.series_header.patient_id == row["patient_id"]
            num_slices += 1
    assert num_slices == 320


@needs_data
def test_the_manifest_has_a_checksum_for_every_stored_file() -> None:
    with (DATA / "MANIFEST.csv").open(newline="") as stream:
        without = {
            row["file"] for row in csv.DictReader(stream) if not row["pixel_sha256"]
        }
    assert without - set(REJECTED) == set(UNREADABLE_BY_PYDICOM)


@needs_data
def test_the_real_enhanced_ct_gives_each_frame_its_position() -> None:
    content = (DATA / ZOO / "eCT_Supplemental.dcm").read_bytes()
    first, second = read_slices(content, frozenset(("derived", "not-hu")))
    assert first.quirks == second.quirks == ("derived", "not-hu")
    assert (first.position_mm, first.slice_id[-2:]) == (159, ".1")
    assert second.position_mm not in (159, math.nan)
    assert (first.series_header.thickness_mm, first.rescale_intercept) == (10, -1024)


@needs_data
def test_real_slices_are_unwrapped_only_where_they_wrapped(
    real_slices: list[npt.NDArray[np.uint16]],
) -> None:
    for stored_HW in real_slices:
        hu_HW = stored_HW.astype(np.int32) - 1024
        wrapped_HW = (np.clip(hu_HW, -1000, 3095) & 0xFFF).astype(np.uint16)
        assert quirks.is_wrapped_12bit(wrapped_HW)
        cut_HW = np.clip(hu_HW, 0, 4095).astype(np.uint16)
        assert not quirks.is_wrapped_12bit(cut_HW)


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
