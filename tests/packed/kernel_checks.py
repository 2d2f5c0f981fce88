"""Comparisons of the CUDA kernels, run as C++, with the reference."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
import numpy.typing as npt
import pytest

from ichfast.packed import reference
from tests.loading.cuda_sources import CppKernel
from tests.packed.slices import draw_slice

SHAPES = [
    (rows, columns)
    for rows in (1, 2, 15, 16, 17, 31, 33, 64)
    for columns in (1, 2, 15, 16, 17, 31, 32, 33, 64, 65)
]
BLOCK_THREADS = 128


class GuardedBytes(AbstractContextManager[int]):
    """Memory behind whose last byte no byte can be read: the process would end.

    Args:
        content: of the memory.

    Entering it gives the address of the first byte.
    """

    def __init__(self, content: bytes) -> None:
        page = mmap.PAGESIZE
        room = -(-len(content) // page) * page
        self._memory = mmap.mmap(-1, room + page)
        self._memory[room - len(content) : room] = content
        self._view = ctypes.c_char.from_buffer(self._memory)
        self._first = ctypes.addressof(self._view)
        self._address = self._first + room - len(content)
        self._guard = ctypes.c_void_p(self._first + room), ctypes.c_size_t(page)

    def __enter__(self) -> int:
        assert ctypes.CDLL(None).mprotect(*self._guard, 0) == 0
        return self._address

    def __exit__(self, *_: object) -> None:
        del self._view
        self._memory.close()


def run_unpack_rows(
    kernel: CppKernel, records: Sequence[bytes], shape: tuple[int, int]
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint32]]:
    """Launch the first kernel with some threads too many.

    Args:
        kernel: `unpack_rows`.
        records: one each slice.
        shape: rows and columns of the slices.

    Returns:
        The sums along rows, shape (B, H, W), and whether each record is refused.
    """
    rows, columns = shape
    sizes_B = np.array([len(record) for record in records], np.uint32)
    at_B = np.concatenate([[0], np.cumsum(sizes_B[:-1], dtype=np.int64)])
    out_BHW = np.full((len(records), rows, columns), 7, np.uint16)
    errors_B = np.zeros(len(records), np.uint32)
    with GuardedBytes(b"".join(records)) as address:
        kernel(
            (len(records) * rows // BLOCK_THREADS + 2,),
            (BLOCK_THREADS,),
            (
                *(address, at_B.ctypes.data, sizes_B.ctypes.data),
                *(out_BHW.ctypes.data, errors_B.ctypes.data),
                *(rows, columns, len(records)),
            ),
        )
    return out_BHW, errors_B


def run_sum_columns(
    kernel: CppKernel, out_BHW: npt.NDArray[np.uint16], errors_B: npt.NDArray[np.uint32]
) -> None:
    """Launch the second kernel with some threads too many.

    Args:
        kernel: `sum_columns`.
        out_BHW: shape (B, H, W), uint16; changed.
        errors_B: shape (B,), uint32.
    """
    batch, rows, columns = out_BHW.shape
    kernel(
        (batch * columns // BLOCK_THREADS + 2,),
        (BLOCK_THREADS,),
        (out_BHW.ctypes.data, errors_B.ctypes.data, rows, columns, batch),
    )


def check_unpack_rows(kernel: CppKernel, _: pytest.MonkeyPatch) -> None:
    """For blocks of every width and shapes around the sides of blocks and groups."""
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        slices = [draw_slice(shape, bits, rng) for bits in (1, 6, 10, 11, 13, 16)]
        records = [reference.pack(each).tobytes() for each in slices]
        out_BHW, errors_B = run_unpack_rows(kernel, records, shape)
        assert not errors_B.any()
        down_BHW = np.diff(np.stack(slices), axis=1, prepend=np.uint16(0))
        np.testing.assert_array_equal(out_BHW, down_BHW)


def check_sum_columns(kernel: CppKernel, _: pytest.MonkeyPatch) -> None:
    """For odd and even numbers of columns, some slices without a valid record."""
    rng = np.random.default_rng(1)
    for shape in SHAPES:
        out_BHW = rng.integers(0, 2**16, (5, *shape), np.uint16)
        errors_B = np.array([0, 1, 0, 0, 1], np.uint32)
        expected_BHW = np.cumsum(out_BHW, axis=1, dtype=np.uint16)
        expected_BHW[errors_B > 0] = 0
        run_sum_columns(kernel, out_BHW, errors_B)
        np.testing.assert_array_equal(out_BHW, expected_BHW)
