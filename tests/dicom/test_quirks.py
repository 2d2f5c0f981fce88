"""Known defects of CT files are mended and named."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from tests.dicom.dicom_files import (
    EXPLICIT,
    IMPLICIT,
    ITEM,
    ct_file,
    encode,
    ramp,
    read_hu,
    read_one,
    rejection,
)


def test_missing_rescale_is_slope_1_and_intercept_0_and_flagged() -> None:
    one = read_one(ct_file(ramp(), without=("RescaleSlope", "RescaleIntercept")))
    np.testing.assert_array_equal(one.stored_HW, ramp() + 1024)
    assert (one.rescale_slope, one.rescale_intercept) == (1, 0)
    assert one.quirks == ("missing_rescale",)


def test_the_intercept_is_used_without_a_slope() -> None:
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


def wrapped_head() -> Any:
    """Raw 12 bits of a head in noisy air, where negative HU wrapped around."""
    rng = np.random.default_rng(3)
    hu_HW = np.full((64, 64), -1000) + rng.integers(0, 40, (64, 64))
    hu_HW[16:48, 16:48] = rng.integers(-20, 80, (32, 32))
    hu_HW[16:48, 16] = 1200
    hu_HW[20:24, 20:24] = -100
    return hu_HW, (hu_HW & 0xFFF).astype("<u2")


TWELVE_BITS: dict[str, Any] = {"BitsStored": 12, "HighBit": 11, "RescaleIntercept": "0"}


@pytest.mark.parametrize("part", [np.s_[:, :], np.s_[28:, 28:], np.s_[28:44, 28:44]])
def test_a_wrapped_head_is_unwrapped_with_and_without_air(part: Any) -> None:
    hu_HW, raw_HW = wrapped_head()
    one = read_one(ct_file(np.ascontiguousarray(raw_HW[part]), **TWELVE_BITS))
    np.testing.assert_array_equal(one.stored_HW.astype(int) - 1024, hu_HW[part])
    assert one.quirks == ("wrapped_12bit",)


@pytest.mark.parametrize(
    "metal",
    [
        *([3500] * 99, [4000] * 99, [4095] * 999, [3100], [4080]),
        [*range(3000, 4096, 3), *[4095] * 900],
    ],
)
@pytest.mark.parametrize("intercept", [0, -50])
def test_metal_is_not_unwrapped(metal: list[int], intercept: int) -> None:
    raw_HW = np.random.default_rng(4).integers(0, 2500, (64, 64)).astype("<u2")
    raw_HW.flat[: len(metal)] = metal
    changed = TWELVE_BITS | {"RescaleIntercept": str(intercept)}
    one = read_one(ct_file(raw_HW, **changed))
    np.testing.assert_array_equal(
        one.stored_HW.astype(int) - 1024, raw_HW.astype(int) + intercept
    )
    assert (one.rescale_intercept, one.quirks) == (intercept, ())


def test_a_plausible_rescale_is_never_changed() -> None:
    """Pixels near 3,096 are bone or metal where the intercept gives air a place."""
    _, raw_HW = wrapped_head()
    for intercept in (-1024, -1000, -100):
        changed = TWELVE_BITS | {"RescaleIntercept": str(intercept)}
        one = read_one(ct_file(raw_HW, **changed))
        np.testing.assert_array_equal(
            one.stored_HW, raw_HW.astype(int) + intercept + 1024
        )


def test_monochrome1_keeps_its_hu() -> None:
    one = read_one(ct_file(ramp(), PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(one.stored_HW, np.clip(ramp(), 0, None))
    assert one.quirks == ("monochrome1",)


def test_the_first_of_two_windows_is_used() -> None:
    one = read_one(
        ct_file(ramp(), WindowCenter="00036\\00040", WindowWidth="00080\\00100")
    )
    assert (one.series_header.window_center, one.series_header.window_width) == (36, 80)
    assert one.quirks == ("two_windows",)


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


@pytest.mark.parametrize("padding", [-2049, -3024, -32768])
def test_words_with_their_sign_are_not_masked(padding: int) -> None:
    raw_HW = np.array([[padding, -1000, 40], [2047, 2048, 3071]], "<i2")
    one = read_one(ct_file(raw_HW, **TWELVE_BITS))
    np.testing.assert_array_equal(
        one.stored_HW, np.clip(raw_HW.astype(int) + 1024, 0, None)
    )
    assert one.quirks == ()


def test_values_in_the_upper_bits_are_shifted_down() -> None:
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
