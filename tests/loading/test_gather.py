"""Slices are gathered by a kernel that equals its reference, without a GPU here."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ichfast.loading import gather
from ichfast.loading.gather import gather_slices, wrap_stream
from tests.loading.cuda_sources import (
    CppKernel,
    compile_for_gpu,
    find_kernels,
    load_nvrtc,
)
from tests.packed.kernel_checks import check_sum_columns, check_unpack_rows

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
    record_launch(monkeypatch)
    rng = np.random.default_rng(0)
    for count, rows, columns, batch in (
        *((1, 1, 8, 1), (5, 3, 8, 9), (37, 64, 48, 5), (3, 65, 72, 2)),
        *((2, 256, 256, 11), (40, 2, 4, 1000)),
    ):
        set_NHW = torch.from_numpy(
            rng.integers(-(2**15), 2**15, (count, rows, columns), np.int16)
        )
        rows_B = torch.from_numpy(rng.integers(0, count, batch))
        picked_BHW = set_NHW.new_zeros((batch, rows, columns))
        gather._launch(kernel, set_NHW, rows_B, picked_BHW)
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


# ---- how CuPy launches it --------------------------------------------------------


def record_launch(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let `_launch` run without a GPU; return what it enters and leaves, in order."""
    cupy = pytest.importorskip("cupy")
    events: list[str] = []

    @contextmanager
    def entered(name: str) -> Iterator[None]:
        events.append(name)
        yield
        events.append(f"end of {name}")

    monkeypatch.setattr(cupy.cuda, "Device", lambda index: entered(f"device {index}"))
    monkeypatch.setattr(
        gather, "wrap_stream", lambda stream: entered(f"stream {stream.cuda_stream}")
    )
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=7)
    )
    return events


def test_a_launch_is_on_the_device_and_the_stream_of_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def kernel(*_: Any) -> None:
        events.append("launch")

    events = record_launch(monkeypatch)
    set_NHW = torch.zeros(2, 4, 8, dtype=torch.int16)
    gather._launch(kernel, set_NHW, torch.tensor([0]), set_NHW[:1].clone())
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


def test_torch_gathers_with_a_warning_where_cupy_cannot_compile(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def compile_fails(*_: Any) -> None:
        raise RuntimeError("nvrtc: error: invalid value for --gpu-architecture")

    cupy: Any = ModuleType("cupy")
    cupy.RawKernel = compile_fails
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert gather.gather_kernel.__wrapped__(0) is None
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
    assert gather.gather_kernel.__wrapped__(0) is None
    assert "from_external" in caplog.text


def test_torch_gathers_with_a_warning_where_cupy_is_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert gather.gather_kernel.__wrapped__(0) is None
    assert "torch gathers the slices" in caplog.text
