"""Uncompressed pixels are read as they are, or rejected if they are incomplete."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydicom import uid

from ichfast.dicom import hounsfield
from ichfast.dicom.hounsfield import to_stored
from tests.dicom.dicom_files import (
    Raw,
    big_endian_file,
    ct_file,
    ramp,
    read_one,
    rejection,
)


def test_big_endian_pixels_are_converted_to_native_order(
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
    assert one.series_header.layout == read_one(ct_file(ramp())).series_header.layout
    for raw_HW in seen:
        assert raw_HW.dtype.isnative
        np.testing.assert_array_equal(raw_HW, ramp())


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
def test_the_full_range_of_the_stored_bits_is_read(dtype: str, bits: int) -> None:
    low = -(1 << (bits - 1)) if dtype == "<i2" else 0
    high = low + (1 << bits) - 1
    raw = np.array([[low, low + 1, 7], [100, high - 1, high]], dtype)
    one = read_one(ct_file(raw, BitsStored=bits, HighBit=bits - 1))
    np.testing.assert_array_equal(one.stored_HW, np.clip(raw, 0, 32767))
    assert one.quirks == ()


@pytest.mark.parametrize("garbage", [b"\xff" * 33, b"\xe0\x7f\x10\x00OW", b"x"])
def test_garbage_after_the_pixels_is_ignored(garbage: bytes) -> None:
    content = ct_file(ramp())
    one = read_one(content + garbage)
    np.testing.assert_array_equal(one.stored_HW, read_one(content).stored_HW)


def test_surplus_pixels_are_ignored() -> None:
    one = read_one(ct_file(ramp(), pixels=ramp().tobytes() + bytes(6)))
    np.testing.assert_array_equal(one.stored_HW, np.clip(ramp(), 0, None))
    assert one.quirks == ("long_pixels",)


def test_native_pixels_in_a_compressed_syntax_are_read_if_they_fit_exactly() -> None:
    one = read_one(ct_file(ramp(), syntax=uid.RLELossless))
    np.testing.assert_array_equal(one.stored_HW, np.clip(ramp(), 0, None))
    assert one.quirks == ("wrong_syntax",)
    unfit = ct_file(ramp(), syntax=uid.RLELossless, pixels=ramp().tobytes()[2:])
    assert rejection(unfit).code == "decoder-error"


def test_a_rejection_of_truncated_pixels_has_both_sizes() -> None:
    error = rejection(ct_file(ramp())[:-20])
    assert (error.code, error.detail) == ("truncated-pixels", "50 bytes, expected 70")
