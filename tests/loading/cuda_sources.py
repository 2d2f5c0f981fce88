"""Checks CUDA sources without a GPU: NVRTC compiles them, and so does a C++ compiler.

As C++, a kernel runs thread by thread. That is right for a kernel without barriers,
shared memory or atomics, whose threads are independent.
"""

from __future__ import annotations

import ast
import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import ichfast
from ichfast.loading import gather

ROOT = Path(ichfast.__path__[0])
_KERNEL_NAME = re.compile(r"__global__\s+void\s+(\w+)\s*\(")


def find_kernels() -> dict[str, str]:
    """The source of every kernel of ichfast, by the kernel's name."""
    texts: list[str] = []
    for path in ROOT.rglob("*"):
        if path.suffix == ".py":
            nodes = ast.walk(ast.parse(path.read_text("utf-8")))
            texts += [
                node.value
                for node in nodes
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            ]
        elif path.is_file() and path.suffix not in (".pyc", ".so"):
            texts.append(path.read_text("utf-8"))
    sources = [text for text in texts if "__global__" in text]
    return {name: text for text in sources for name in _KERNEL_NAME.findall(text)}


@cache
def load_nvrtc() -> ctypes.CDLL | None:
    """NVIDIA's run-time compiler, which needs no driver; None if not installed."""
    try:
        files = metadata.files("nvidia-cuda-nvrtc") or []
    except metadata.PackageNotFoundError:
        return None
    (library,) = (file for file in files if re.match(r"libnvrtc\.so\.\d+$", file.name))
    return ctypes.CDLL(str(library.locate()))


def compile_for_gpu(nvrtc: ctypes.CDLL, source: str, arch: str) -> bytes:
    """Compile a source to the machine code of a GPU.

    Args:
        nvrtc: the compiler.
        source: in CUDA C++.
        arch: such as ``sm_90``.

    Raises:
        RuntimeError: the compiler's messages.
    """
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None
    )
    options = (ctypes.c_char_p * 1)(f"--gpu-architecture={arch}".encode())
    if nvrtc.nvrtcCompileProgram(program, 1, options):
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        messages = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, messages)
        raise RuntimeError(messages.value.decode())
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    code = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, code)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return code.raw


_AS_CPP = """
#include <cstddef>
#include <utility>
#define __global__
#define __device__
struct dim3 { unsigned x, y, z; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static dim3 gridDim, blockDim, blockIdx, threadIdx;
#line 1 "kernel.cu"
SOURCE
template <class... A, std::size_t... I>
static void call(void (*kernel)(A...), void** args, std::index_sequence<I...>)
{
    kernel(*static_cast<A*>(args[I])...);
}
template <class... A> static void call(void (*kernel)(A...), void** args)
{
    call(kernel, args, std::index_sequence_for<A...>());
}
extern "C" void launch(unsigned first, const dim3* grid, const dim3* block, void** args)
{
    gridDim = *grid;
    blockDim = *block;
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
    for (blockIdx.x = first; blockIdx.x < gridDim.x; ++blockIdx.x)
    for (threadIdx.z = 0; threadIdx.z < blockDim.z; ++threadIdx.z)
    for (threadIdx.y = 0; threadIdx.y < blockDim.y; ++threadIdx.y)
    for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x)
        call(NAME, args);
}
"""


class CppKernel:
    """A kernel compiled as C++, called as a `cupy.RawKernel` is.

    Args:
        name: of the kernel.
        source: in CUDA C++.
        folder: where the library is written.
    """

    compiler = shutil.which("g++")

    def __init__(self, name: str, source: str, folder: Path) -> None:
        text = _AS_CPP.replace("SOURCE", source).replace("NAME", name)
        (folder / f"{name}.cpp").write_text(text)
        command = [str(self.compiler), "-std=c++17", "-O1", "-shared", "-fPIC"]
        command += ["-Wall", "-Wextra", "-Werror", "-o", f"{name}.so", f"{name}.cpp"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        self._launch = ctypes.CDLL(str(folder / f"{name}.so")).launch

    def __call__(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[int],
        *,
        first: int = 0,
    ) -> None:
        """Run all threads, one after the other.

        Args:
            grid: blocks along x, y and z; those not given are 1.
            block: threads of a block in the same order.
            args: pointers and whole numbers, as 64 bits each.
            first: along x, the blocks before it are left out.
        """
        sizes = [
            (ctypes.c_uint * 3)(*each, *(1,) * (3 - len(each)))
            for each in (grid, block)
        ]
        values = [ctypes.c_uint64(each % 2**64) for each in args]
        places = [ctypes.cast(ctypes.byref(v), ctypes.c_void_p) for v in values]
        self._launch(
            ctypes.c_uint(first), *sizes, (ctypes.c_void_p * len(places))(*places)
        )


def record_launch(
    monkeypatch: pytest.MonkeyPatch, kernels: Mapping[str, Callable[..., None]]
) -> list[str]:
    """Let kernels be launched without a GPU.

    Args:
        monkeypatch: undoes it.
        kernels: by their names.

    Returns:
        What a launch enters and leaves, in order.
    """
    cupy = pytest.importorskip("cupy")
    events: list[str] = []

    @contextmanager
    def entered(name: str) -> Iterator[None]:
        events.append(name)
        yield
        events.append(f"end of {name}")

    monkeypatch.setattr(gather, "load_kernels", lambda _: kernels)
    monkeypatch.setattr(cupy.cuda, "Device", lambda index: entered(f"device {index}"))
    monkeypatch.setattr(
        gather, "wrap_stream", lambda stream: entered(f"stream {stream.cuda_stream}")
    )
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=7)
    )
    return events
