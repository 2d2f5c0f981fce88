"""The C library writes and reads the bytes of its reference, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ichfast.errors import StoreError
from ichfast.packed import reference
from ichfast.packed.library import ERRORS, PORTABLE, VECTOR, Library
from ichfast.packed.record import read_header
from tests.packed.compilers import (
    COMPILERS,
    SANITIZERS,
    compile_c,
    require_compiler,
)
from tests.packed.slices import SHAPES, draw_slice

NUM_DAMAGED, NUM_DAMAGED_IN_QEMU = 20_000, 4_000


@pytest.fixture(scope="module", params=[PORTABLE, VECTOR], ids=["portable", "vector"])
def library(library_path: Path, request: pytest.FixtureRequest) -> Library:
    found = Library(library_path, request.param)
    if request.param == VECTOR and not found.vector_instructions:
        pytest.skip("this machine has neither AVX2 nor NEON")
    return found


def check(library: Library, stored_HW: npt.NDArray[np.uint16]) -> None:
    """The library and its reference agree about a slice, and restore it."""
    record_R = library.pack(stored_HW)
    np.testing.assert_array_equal(record_R, reference.pack(stored_HW))
    check_unpacking(library, record_R, stored_HW)


def check_unpacking(
    library: Library,
    record_R: npt.NDArray[np.uint8],
    stored_HW: npt.NDArray[np.uint16],
) -> None:
    shape = stored_HW.shape
    halves: list[npt.NDArray[np.uint16]] = []
    coders: tuple[Any, ...] = (library, reference)
    for coder in coders:
        out_HW = np.full_like(stored_HW, 7)
        coder.unpack(record_R, out_HW)
        np.testing.assert_array_equal(out_HW, stored_HW)
        halves.append(np.full((-(-shape[0] // 2), -(-shape[1] // 2)), 7, np.uint16))
        coder.unpack_halved(record_R, shape, halves[-1])
        halves.append(np.full_like(halves[-1], 7))
        coder.halve(stored_HW, halves[-1])
    for halved_HW in halves[1:]:
        np.testing.assert_array_equal(halved_HW, halves[0])


# ---- every value and shape -------------------------------------------------------


@pytest.mark.slow
def test_every_shape_and_width_is_restored(library: Library) -> None:
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        for bits in (1, 5, 10, 11, 13, 16):
            check(library, draw_slice(shape, bits, rng))


def test_every_value_is_restored_beside_every_other_kind_of_value(
    library: Library,
) -> None:
    values_N = np.arange(2**16, dtype=np.uint16)
    check(library, values_N.reshape(256, 256))
    shuffled_N = np.random.default_rng(1).permutation(values_N)
    check(library, shuffled_N.reshape(64, 1024))
    for value in (0, 1, 32_767, 32_768, 65_535):
        check(library, np.full((19, 37), value, np.uint16))
        board_HW = np.indices((35, 50)).sum(axis=0) % 2 * value
        check(library, board_HW.astype(np.uint16))


def test_a_block_of_every_width_is_restored(library: Library) -> None:
    for bits in range(17):
        # Zigzag values of so many bits, in the first block of a row and the second.
        values_HW = np.zeros((3, 40), np.uint16)
        values_HW[:, [3, 18]] = 2**bits - 1
        stored_HW = reference._from_values(values_HW)
        check(library, stored_HW)
        nibbles = library.pack(stored_HW)[48:50]
        assert nibbles[0] == 17 * reference.NIBBLE_OF_BITS[bits]
        assert nibbles[1] == 0


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(4096, 4096), (1, 2**20 + 3), (2**20 + 3, 1)])
def test_the_largest_shapes_are_restored(
    library: Library, shape: tuple[int, int]
) -> None:
    stored_HW = draw_slice(shape, 12, np.random.default_rng(2))
    record_R, out_HW = library.pack(stored_HW), np.empty_like(stored_HW)
    library.unpack(record_R, out_HW)
    assert np.array_equal(out_HW, stored_HW)
    reference.unpack(record_R, out_HW)
    assert np.array_equal(out_HW, stored_HW)


def test_a_record_of_noise_fits_into_its_buffer(library: Library) -> None:
    stored_HW = np.random.default_rng(3).integers(0, 2**16, (31, 47), np.uint16)
    header = read_header(library.pack(stored_HW))
    assert header.payload_bytes == 31 * 3 * 32
    assert header.record_bytes == library._c.ichfast_max_record_bytes(31, 47)


def test_real_slices_are_restored(
    library: Library, real_slices: list[npt.NDArray[np.uint16]]
) -> None:
    for stored_HW in real_slices:
        check(library, stored_HW)


def test_a_slice_without_pixels_or_with_too_many_is_refused(library: Library) -> None:
    for shape in ((0, 5), (5, 0), (4097, 4096), (2**31, 2**31), (2**32 - 1, 1)):
        assert library._c.ichfast_max_record_bytes(*shape) == 0
        assert library._c.ichfast_pack(None, *shape, None, VECTOR) == 5


# ---- damage ----------------------------------------------------------------------


def test_the_library_and_its_reference_refuse_the_same_records(
    library: Library,
) -> None:
    rng = np.random.default_rng(4)
    errors: set[str | None] = set()
    for _ in range(400):
        shape = (int(rng.integers(1, 40)), int(rng.integers(1, 90)))
        record_R = library.pack(draw_slice(shape, int(rng.integers(1, 17)), rng)).copy()
        places = rng.integers(0, rng.choice([40, 120, len(record_R)]), 2)
        record_R[places] = rng.integers(0, 256, 2)
        error, out_HW = unpacked(library, record_R, shape)
        expected_error, expected_HW = unpacked(reference, record_R, shape)
        assert (error is None) == (expected_error is None)
        assert error is not None or np.array_equal(out_HW, expected_HW)
        errors.add(error)
    assert errors == {None, *ERRORS.values()}


def test_a_bad_width_is_refused_in_every_block(library: Library) -> None:
    stored_HW = np.zeros((1, 16 * 69), np.uint16)
    record_R, out_HW = library.pack(stored_HW), np.empty_like(stored_HW)
    for block in range(70):  # the last one is beyond the row
        for nibble in (11, 13, 14) if block < 69 else (1, 8):
            damaged_R = record_R.copy()
            damaged_R[48 + block // 2] |= nibble << block % 2 * 4
            with pytest.raises(StoreError, match="a width that no encoder writes"):
                library.unpack(damaged_R, out_HW)


def unpacked(
    coder: Any, record_R: npt.NDArray[np.uint8], shape: tuple[int, int]
) -> tuple[str | None, npt.NDArray[np.uint16]]:
    """The error and the pixels."""
    out_HW = np.empty(shape, np.uint16)
    try:
        coder.unpack(record_R, out_HW)
    except StoreError as error:
        return str(error), out_HW
    return None, out_HW


@pytest.mark.slow
@pytest.mark.parametrize("compiler", COMPILERS)
def test_damaged_records_are_read_within_bounds(compiler: str, tmp_path: Path) -> None:
    require_compiler(compiler)
    driver, command, count = tmp_path / "damaged_records", [], NUM_DAMAGED
    if compiler.startswith("aarch64"):
        if shutil.which("qemu-aarch64") is None:
            pytest.skip("needs qemu-aarch64")
        command = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]
        count = NUM_DAMAGED_IN_QEMU
    source = Path(__file__).with_name("damaged_records.c")
    compile_c(compiler, [*SANITIZERS, str(source)], driver)
    done = subprocess.run(
        [*command, str(driver), str(count)],
        capture_output=True,
        text=True,
        env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"},  # qemu cannot trace
    )
    assert done.returncode == 0, done.stderr
    *instructions, sound, header, width, start, payload, shape = done.stdout.split()
    assert instructions == ["NEON"] or not command
    counts = [int(each) for each in (sound, header, width, start, payload)]
    assert min(counts) > count / 50
    assert sum(counts) == count
    assert shape == "0"


# ---- compilers and threads -------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_sources_compile_without_a_warning(compiler: str, tmp_path: Path) -> None:
    require_compiler(compiler)
    compile_c(compiler, ["-O3", "-shared", "-fPIC"], tmp_path / "record.so")


def test_threads_share_the_library(library: Library) -> None:
    def pack_many(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        out_HW = np.empty((64, 100), np.uint16)
        equal = True
        for _ in range(20):
            stored_HW = draw_slice((64, 100), 12, rng)
            library.unpack(library.pack(stored_HW), out_HW)
            equal &= np.array_equal(out_HW, stored_HW)
        return equal

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(pack_many, range(16)))
