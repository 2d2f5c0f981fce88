"""A slice that is packed is unpacked exactly, and a damaged record never."""

from __future__ import annotations

import struct

import google_crc32c
import numpy as np
import numpy.typing as npt
import pytest

from ichfast.errors import StoreError
from ichfast.packed import (
    codec,
    halve_into,
    pack,
    read_header,
    reference,
    unpack_halved_into,
    unpack_into,
)
from ichfast.packed.library import Library
from ichfast.store import levels
from tests.packed.slices import draw_slice


@pytest.fixture(autouse=True, params=["library", "reference"])
def _coder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test is of both."""
    if request.param == "library":
        library = Library(request.getfixturevalue("library_path"))
        monkeypatch.setattr(codec, "_coder", lambda: library)
    else:
        monkeypatch.setattr(codec, "_coder", lambda: reference)


def drawn(rows: int, columns: int, bits: int = 12) -> npt.NDArray[np.uint16]:
    return draw_slice((rows, columns), bits, np.random.default_rng(rows + columns))


@pytest.mark.parametrize("shape", [(1, 1), (17, 33), (64, 65)])
def test_a_packed_slice_is_unpacked_exactly(shape: tuple[int, int]) -> None:
    stored_HW, out_HW = drawn(*shape), np.full(shape, 7, np.uint16)
    record = pack(stored_HW)
    for each in (
        record,
        bytearray(record),
        memoryview(record),
        np.array([*record], "u1"),
    ):
        out_HW[:] = 7
        unpack_into(each, out_HW)
        np.testing.assert_array_equal(out_HW, stored_HW)


def test_the_header_tells_shape_sizes_and_checksums() -> None:
    stored_HW = drawn(20, 40)
    record = pack(stored_HW)
    header = read_header(record)
    assert header.shape == (header.rows, header.columns) == (20, 40)
    assert header.record_bytes == len(record)
    assert len(record) % 64 == 0
    assert header.crc32c == google_crc32c.value(record[8:])
    assert header.pixels_crc32c == google_crc32c.value(stored_HW.tobytes())


def test_the_bytes_of_a_record_stay_as_they_are() -> None:
    # Residuals of 3 in the first row; in the second -1, and -2**15 in its second block.
    stored_HW = np.full((2, 18), 3, np.uint16)
    stored_HW[1] = 2
    stored_HW[1, 17] = 2 + 2**15
    record = pack(stored_HW)
    assert record[:4] == b"ICP1"
    assert struct.unpack("<4I", record[8:24]) == (128, 40, 2, 18)
    assert record[28:36] == bytes(8)  # 0, and the first start
    assert record[36:48] == bytes(12)
    # Widths 3 and 0, then 1 and 16.
    assert record[48:64] == bytes([0x03, 0xF1]) + bytes(14)
    # 6 in 3 bits; 1 in 1 bit; and, second of sixteen, 2**16 - 1.
    payload = b"\6" + bytes(5) + b"\1\0" + b"\0\0\xff\xff" + bytes(28)
    assert record[64:104] == payload
    assert record[104:] == bytes(24)


# ---- halving ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(512, 512), (63, 65), (7, 4), (4, 7), (1, 9), (9, 1), (1, 1), (2, 32)]
)
def test_halving_on_the_way_equals_halving_after(shape: tuple[int, int]) -> None:
    stored_HW = drawn(*shape, bits=15) % np.uint16(32_768)
    expected_HW = np.empty((-(-shape[0] // 2), -(-shape[1] // 2)), np.uint16)
    levels.halve_into(stored_HW, 1, expected_HW)
    out_HW = np.full_like(expected_HW, 7)
    unpack_halved_into(pack(stored_HW), out_HW)
    np.testing.assert_array_equal(out_HW, expected_HW)


def test_ties_go_to_the_even_number_and_the_largest_numbers_do_not_overflow() -> None:
    totals = [*range(12), *range(4 * 65_535 - 11, 4 * 65_535 + 1)] * 3
    stored_HW = np.empty((2, 2 * len(totals)), np.uint16)
    for k, total in enumerate(totals):
        first = total // 4
        square = [[first, first], [first, total - 3 * first]]
        stored_HW[:, 2 * k : 2 * k + 2] = np.minimum(square, 65_535)
    sums = stored_HW.reshape(2, -1, 2).sum(axis=(0, 2), dtype=int).tolist()
    out_HW = np.empty((1, len(totals)), np.uint16)
    unpack_halved_into(pack(stored_HW), out_HW)
    # Python's rounding goes to the even number, too.
    assert out_HW[0].tolist() == [round(total / 4) for total in sums]


# ---- damage ----------------------------------------------------------------------


def test_every_flipped_bit_is_found() -> None:
    record = pack(drawn(17, 33))
    out_HW, halved_HW = np.empty((17, 33), np.uint16), np.empty((9, 17), np.uint16)
    for bit in range(8 * len(record)):
        damaged = bytearray(record)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StoreError):
            unpack_into(damaged, out_HW)
        with pytest.raises(StoreError):
            unpack_halved_into(damaged, halved_HW)


def test_an_error_names_what_is_wrong() -> None:
    record, out_HW = pack(drawn(17, 33)), np.empty((17, 33), np.uint16)
    cases = {
        b"": "0 bytes are no packed slice",
        b"\x93NUMPY"
        + record: "bytes are no packed slice: a record .* begins with ICP1",
        record[:-64]: "has .* bytes, but .* in its header: it is damaged or cut off",
        record[:-1] + b"\1": "is damaged: its CRC-32C is .{8}, but .{8} in its header",
        pack(drawn(17, 32)): "is of 17x32 pixels, expected 17x33",
    }
    for damaged, message in cases.items():
        with pytest.raises(StoreError, match=message):
            unpack_into(damaged, out_HW)
    with pytest.raises(StoreError, match=r"17x33 pixels, expected one .* to 9x16"):
        unpack_halved_into(record, np.empty((9, 16), np.uint16))


def test_a_wrong_record_with_a_right_checksum_is_refused() -> None:
    record, out_HW = bytearray(pack(drawn(17, 33))), np.empty((17, 33), np.uint16)
    record[32] ^= 2  # the first start
    struct.pack_into("<I", record, 4, google_crc32c.value(bytes(record[8:])))
    with pytest.raises(StoreError, match="a start is not where the rows before it end"):
        unpack_into(record, out_HW)
    with pytest.raises(StoreError, match="a start is not where the rows before it end"):
        unpack_halved_into(record, np.empty((9, 17), np.uint16))


# ---- arrays ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.int16),
        np.zeros((4, 4), ">u2"),
        np.zeros(16, np.uint16),
        np.zeros((4, 4), np.uint16).T[::2],
        np.zeros((4, 8), np.uint16)[:, ::2],
    ],
)
def test_other_arrays_are_refused(pixels: npt.NDArray[np.uint16]) -> None:
    message = "pixels are a uint16 array of rows and columns in C order, got .* shape"
    record = pack(np.zeros((4, 4), np.uint16))
    with pytest.raises(ValueError, match=message):
        pack(pixels)
    with pytest.raises(ValueError, match=message):
        unpack_into(record, pixels)
    with pytest.raises(ValueError, match=message):
        unpack_halved_into(record, pixels)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4097, 4096)])
def test_a_slice_without_pixels_or_with_too_many_is_refused(
    shape: tuple[int, int],
) -> None:
    with pytest.raises(ValueError, match=f"1 to 16,777,216 .* {shape[0]}x{shape[1]}"):
        pack(np.zeros(shape, np.uint16))


def test_halving_equals_the_mean_of_four_with_ties_to_even() -> None:
    stored_HW = np.array([[1, 0, 5], [1, 0, 6], [3, 3, 2]], np.uint16)
    out_HW = np.full((2, 2), 7, np.uint16)
    halve_into(stored_HW, out_HW)
    # 2 / 4, 11 / 4; 6 / 4, 2 / 4
    assert out_HW.tolist() == [[0, 3], [2, 0]]


@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (4,)])
def test_halving_into_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="pixels"):
        halve_into(drawn(4, 4), np.empty(shape, np.uint16))
    with pytest.raises(ValueError, match="C order"):
        halve_into(drawn(4, 4).T, np.empty((2, 2), np.uint16))
