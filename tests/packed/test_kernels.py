"""The CUDA kernels unpack what the reference unpacks, and refuse what it refuses.

`tests/loading/test_gather.py` compares each kernel alone.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt
import pytest

from ichfast.errors import StoreError
from ichfast.packed import reference
from tests.loading.cuda_sources import CppKernel, find_kernels
from tests.packed.kernel_checks import run_sum_columns, run_unpack_rows
from tests.packed.slices import draw_slice

NUM_DAMAGED = 1500


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> list[CppKernel]:
    """Both, in the order of their launch."""
    if CppKernel.compiler is None:
        pytest.skip("needs the C++ compiler g++")
    folder, sources = tmp_path_factory.mktemp("kernels"), find_kernels()
    return [
        CppKernel(name, sources[name], folder)
        for name in ("unpack_rows", "sum_columns")
    ]


def unpack(
    kernels: list[CppKernel], records: list[bytes], shape: tuple[int, int]
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint32]]:
    """The slices, shape (B, H, W), and whether each record is refused."""
    out_BHW, errors_B = run_unpack_rows(kernels[0], records, shape)
    run_sum_columns(kernels[1], out_BHW, errors_B)
    return out_BHW, errors_B


@pytest.mark.slow
def test_the_kernels_unpack_real_slices(
    kernels: list[CppKernel], real_slices: list[npt.NDArray[np.uint16]]
) -> None:
    slices = [each for each in real_slices if each.shape == (512, 512)]
    records = [reference.pack(each).tobytes() for each in slices]
    out_BHW, errors_B = unpack(kernels, records, (512, 512))
    assert not errors_B.any()
    np.testing.assert_array_equal(out_BHW, np.stack(slices))


@pytest.mark.slow
def test_the_kernels_refuse_the_records_that_the_reference_refuses(
    kernels: list[CppKernel],
) -> None:
    rng = np.random.default_rng(2)
    num_refused = 0
    for _ in range(NUM_DAMAGED):
        shape = (int(rng.integers(1, 60)), int(rng.integers(1, 60)))
        record_R = reference.pack(draw_slice(shape, int(rng.integers(1, 17)), rng))
        sound = record_R.tobytes()
        count = rng.integers(1, 4)
        places = rng.integers(0, rng.choice([40, 120, len(record_R)]), count)
        record_R[places] = rng.integers(0, 256, count)
        expected_HW = np.empty(shape, np.uint16)
        try:
            reference.unpack(record_R, expected_HW)
            is_refused = False
        except StoreError:
            is_refused = True
            expected_HW[:] = 0
        out_BHW, errors_B = unpack(kernels, [sound, record_R.tobytes()], shape)
        assert errors_B.tolist() == [0, is_refused]
        np.testing.assert_array_equal(out_BHW[1], expected_HW)
        num_refused += is_refused
    assert 0.3 < num_refused / NUM_DAMAGED < 0.9


def test_the_kernels_refuse_a_record_that_is_cut_off_and_read_nothing_behind_it(
    kernels: list[CppKernel],
) -> None:
    shape = (40, 60)
    record = reference.pack(draw_slice(shape, 12, np.random.default_rng(3))).tobytes()
    for size in range(64, len(record), 64):
        cut = bytearray(record[:size])
        struct.pack_into("<I", cut, 8, size)  # a header that agrees
        out_BHW, errors_B = unpack(kernels, [bytes(cut)], shape)
        assert errors_B.tolist() == [1]
        assert not out_BHW.any()


def test_the_kernels_refuse_a_payload_that_begins_before_the_first_row(
    kernels: list[CppKernel],
) -> None:
    shape = (40, 60)
    for bits in range(1, 17):
        drawn_HW = draw_slice(shape, bits, np.random.default_rng(bits))
        record_R = reference.pack(drawn_HW)
        for place in (12, 32, 36, 40):  # bytes of the payload, and every start
            record_R[place : place + 4].view("<u4")[:] += 2
        out_BHW, errors_B = unpack(kernels, [record_R.tobytes()], shape)
        assert errors_B.tolist() == [1]
        assert not out_BHW.any()
