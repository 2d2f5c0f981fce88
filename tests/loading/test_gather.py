"""Kernels that gather and unpack slices equal their references, without a GPU here."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ichfast.loading import gather
from ichfast.loading.gather import gather_slices, unpack_slices, wrap_stream
from ichfast.packed.codec import pack
from tests.loading.cuda_sources import (
    CppKernel,
    compile_for_gpu,
    find_kernels,
    load_nvrtc,
    record_launch,
)
from tests.loading.packed_checks import upload_records
from tests.packed.kernel_checks import check_sum_columns, check_unpack_rows
from tests.packed.slices import draw_slice

ARCHS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
"""From Turing, the oldest that CUDA 13 knows, to Blackwell."""

KERNELS = find_kernels()
needs_cpp = pytest.mark.skipif(
    CppKernel.compiler is None, reason="needs the C++ compiler g++"
)


def test_gathered_slices_are_those_requested() -> None:
    set_NHW = torch.arange(7 * 6 * 5, dtype=torch.int16).reshape(7, 6, 5)
    picked_BHW = gather_slices(set_NHW, torch.tensor([6, 0, 0]))
    assert torch.equal(picked_BHW, set_NHW[[6, 0, 0]])
    assert picked_BHW.is_contiguous()


# ---- the source of every kernel --------------------------------------------------


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("arch", ARCHS)
def test_every_kernel_compiles_for_every_gpu(name: str, arch: str) -> None:
    nvrtc = load_nvrtc()
    if nvrtc is None:
        pytest.skip("needs the package nvidia-cuda-nvrtc")
    assert name.encode() in compile_for_gpu(nvrtc, KERNELS[name], arch)


@pytest.fixture
def as_cpp(tmp_path: Path) -> Callable[[str], CppKernel]:
    return lambda name: CppKernel(name, KERNELS[name], tmp_path)


def check_gather(kernel: CppKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Launch it as on a GPU, for odd shapes, repeated rows and many blocks."""
    record_launch(monkeypatch, {"gather": kernel})
    rng = np.random.default_rng(0)
    for count, rows, columns, batch in (
        *((1, 1, 8, 1), (5, 3, 8, 9), (37, 64, 48, 5), (3, 65, 72, 2)),
        *((2, 256, 256, 11), (40, 2, 4, 1000)),
    ):
        set_NHW = torch.from_numpy(
            rng.integers(-(2**15), 2**15, (count, rows, columns), np.int16)
        )
        rows_B = torch.from_numpy(rng.integers(0, count, batch))
        picked_BHW = gather_slices(set_NHW, rows_B)
        assert torch.equal(picked_BHW, torch.index_select(set_NHW, 0, rows_B))


CHECKS = {
    "gather": check_gather,
    "unpack_rows": check_unpack_rows,
    "sum_columns": check_sum_columns,
}
"""For each kernel, a comparison with its reference."""


@needs_cpp
@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_equals_its_reference(
    name: str, as_cpp: Callable[[str], CppKernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    CHECKS[name](as_cpp(name), monkeypatch)


def test_every_check_is_of_a_kernel() -> None:
    assert CHECKS.keys() == KERNELS.keys()


@needs_cpp
def test_gather_counts_in_64_bits(as_cpp: Callable[[str], CppKernel]) -> None:
    # The arrays lie so far before the memory that only the last block is within it.
    block, row, words = 2**31 - 2, 2**33, 8
    stored = np.arange(4 * words, dtype=np.uint32)
    picked, rows = np.zeros_like(stored), np.array([row])
    as_cpp("gather")(
        (block + 1, gather.SLICE_BLOCKS),
        (gather.BLOCK_THREADS,),
        (
            stored.ctypes.data - 16 * row * words,
            rows.ctypes.data - 8 * block,
            picked.ctypes.data - 16 * block * words,
            words,
        ),
        first=block,
    )
    assert (picked == stored).all()


@needs_cpp
def test_unpack_rows_counts_in_64_bits(as_cpp: Callable[[str], CppKernel]) -> None:
    # The last row of 4,096 slices of 4,096 x 4,096 pixels: nothing before it is there.
    batch = rows = columns = 4096
    blocks = batch * rows // gather.UNPACK_THREADS
    stored_HW = draw_slice((rows, columns), 4, np.random.default_rng(0))
    record_R = np.frombuffer(pack(stored_HW), np.uint8)
    at = np.array([2**40])  # where the record begins, bytes
    sizes, errors = np.array([len(record_R)], np.uint32), np.zeros(1, np.uint32)
    out_HW = np.empty((gather.UNPACK_THREADS, columns), np.uint16)
    num_before = batch * rows - gather.UNPACK_THREADS
    as_cpp("unpack_rows")(
        (blocks,),
        (gather.UNPACK_THREADS,),
        (
            record_R.ctypes.data - int(at[0]),
            at.ctypes.data - 8 * (batch - 1),
            sizes.ctypes.data - 4 * (batch - 1),
            out_HW.ctypes.data - 2 * num_before * columns,
            errors.ctypes.data - 4 * (batch - 1),
            *(rows, columns, batch),
        ),
        first=blocks - 1,
    )
    assert not errors.any()
    down_HW = np.diff(stored_HW, axis=0)[-len(out_HW) :]
    np.testing.assert_array_equal(out_HW, down_HW)


@needs_cpp
def test_sum_columns_counts_in_64_bits(as_cpp: Callable[[str], CppKernel]) -> None:
    # The last block of many, of slices that lie so far before the memory.
    batch, rows, columns = 2**31 - 1, 2, 256
    blocks = batch * columns // 2 // gather.UNPACK_THREADS
    out_HW = np.full((rows, columns), 2**15 + 1, np.uint16)
    errors = np.zeros(1, np.uint32)
    as_cpp("sum_columns")(
        (blocks,),
        (gather.UNPACK_THREADS,),
        (
            out_HW.ctypes.data - 2 * (batch - 1) * rows * columns,
            errors.ctypes.data - 4 * (batch - 1),
            *(rows, columns, batch),
        ),
        first=blocks - 1,
    )
    assert out_HW.tolist() == [[2**15 + 1] * columns, [2] * columns]


# ---- how records are unpacked ----------------------------------------------------


@pytest.mark.parametrize("by", ["kernels", "reference"])
@pytest.mark.parametrize("shape", [(5, 7), (33, 48), (130, 20), (1, 1), (64, 300)])
def test_records_are_unpacked_in_the_order_requested(
    shape: tuple[int, int],
    by: str,
    unpack_kernels: Mapping[str, CppKernel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if by == "kernels":
        record_launch(monkeypatch, unpack_kernels)
    rng = np.random.default_rng(0)
    slices = [draw_slice(shape, bits, rng) for bits in (1, 6, 12, 16)]
    order_B = [3, 0, 0, 2, 1]
    memory, at_B, sizes_B = upload_records(slices, order_B)
    stored_BHW, errors_B = unpack_slices(memory, at_B, sizes_B, shape)
    assert errors_B.tolist() == [0] * 5
    for stored_HW, number in zip(stored_BHW, order_B, strict=True):
        np.testing.assert_array_equal(stored_HW.numpy().view(np.uint16), slices[number])


def test_a_damaged_record_is_noted_and_its_slice_is_zero(
    unpack_kernels: Mapping[str, CppKernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    record_launch(monkeypatch, unpack_kernels)
    rng = np.random.default_rng(0)
    slices = [draw_slice((20, 24), 8, rng) for _ in range(3)]
    memory, at_B, sizes_B = upload_records(slices, [0, 1, 2])
    memory[at_B[1] + 32] += 1  # where the first row's payload starts
    stored_BHW, errors_B = unpack_slices(memory, at_B, sizes_B, (20, 24))
    assert errors_B.tolist() == [0, 1, 0]
    assert not stored_BHW[1].any()
    np.testing.assert_array_equal(stored_BHW[2].numpy().view(np.uint16), slices[2])


# ---- how CuPy launches a kernel --------------------------------------------------


def test_a_launch_is_on_the_device_and_the_stream_of_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def kernel(*_: Any) -> None:
        events.append("launch")

    events = record_launch(monkeypatch, {"gather": kernel})
    gather_slices(torch.zeros(2, 4, 8, dtype=torch.int16), torch.tensor([0]))
    assert events == [
        "device None",
        "stream 7",
        "launch",
        "end of stream 7",
        "end of device None",
    ]


def test_cupy_takes_a_stream_of_torch_without_a_warning_and_never_destroys_it() -> None:
    pytest.importorskip("cupy")
    stream: Any = SimpleNamespace(cuda_stream=0x1234)
    wrapped = wrap_stream(stream)
    assert wrapped.ptr == 0x1234
    del wrapped  # destroying it would raise here: there is no driver
    gc.collect()


def test_cupy_compiles_every_kernel_out_of_its_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: dict[str, str] = {}

    def kernel(source: str, name: str) -> SimpleNamespace:
        return SimpleNamespace(compile=lambda: compiled.update({name: source}))

    cupy: Any = ModuleType("cupy")
    cupy.RawKernel = kernel
    stream = SimpleNamespace(from_external=nullcontext)
    cupy.cuda = SimpleNamespace(Device=nullcontext, Stream=stream)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    assert gather.compile_kernels(0).keys() == KERNELS.keys()
    assert compiled == KERNELS


def test_torch_gathers_with_a_warning_where_cupy_cannot_compile(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def compile_fails(*_: Any) -> None:
        raise RuntimeError("nvrtc: error: invalid value for --gpu-architecture")

    cupy: Any = ModuleType("cupy")
    cupy.RawKernel = compile_fails
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert gather._compile_once.__wrapped__(0) == {}
    assert "nvrtc: error: invalid value for --gpu-architecture" in caplog.text
    assert "ichfast doctor" in caplog.text


def test_torch_gathers_with_a_warning_where_cupy_is_too_old(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cupy: Any = ModuleType("cupy")  # CuPy 13 has no `Stream.from_external`
    cupy.RawKernel = lambda *_: SimpleNamespace(compile=lambda: None)
    cupy.cuda = SimpleNamespace(Device=nullcontext, Stream=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    assert gather._compile_once.__wrapped__(0) == {}
    assert "from_external" in caplog.text


def test_torch_gathers_with_a_warning_where_cupy_is_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert gather._compile_once.__wrapped__(0) == {}
    assert "torch gathers the slices" in caplog.text
