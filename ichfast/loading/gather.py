"""Gathers a batch of slices from a set in memory, on the GPU or the CPU.

`gather_slices` runs a CUDA kernel where it can, and `torch.index_select`, its
reference, elsewhere.

Shape letters: N slices of the set, B slices of the batch, H rows, W columns.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch

from ichfast.errors import first_line

logger = logging.getLogger(__name__)

WORD_BYTES = 16
"""Bytes that a thread of the kernel copies at a time: a uint4."""

BLOCK_THREADS = 256
SLICE_BLOCKS = 8
"""Launch shape of the kernel: threads per block, and blocks per slice."""

# Slices are along x of the grid, which takes 2**31 - 1 blocks; y takes 65,535.
GATHER_SOURCE = r"""
extern "C" __global__ void gather(
    const uint4* __restrict__ set, const long long* __restrict__ rows,
    uint4* __restrict__ picked, const long long words)
{
    const uint4* from = set + rows[blockIdx.x] * words;
    uint4* to = picked + blockIdx.x * words;
    const long long stride = (long long)gridDim.y * blockDim.x;
    for (long long k = blockIdx.y * blockDim.x + threadIdx.x; k < words; k += stride)
        to[k] = from[k];
}
"""


def gather_slices(set_NHW: torch.Tensor, rows_B: torch.Tensor) -> torch.Tensor:
    """Copy slices of a set, in the order of `rows_B`.

    On a GPU the work is queued on torch's current stream; the host does not wait.

    Args:
        set_NHW: shape (N, H, W), int16, contiguous.
        rows_B: shape (B,), B at least 1, int64, in [0, N), on the same device. Repeats
            are allowed.

    Returns:
        A new tensor of shape (B, H, W), int16, contiguous.
    """
    slice_bytes = set_NHW[0].numel() * set_NHW.element_size()
    kernel = gather_kernel(set_NHW.device.index) if set_NHW.is_cuda else None
    if kernel is None or slice_bytes % WORD_BYTES:
        return torch.index_select(set_NHW, 0, rows_B)
    picked_BHW = set_NHW.new_empty((len(rows_B), *set_NHW.shape[1:]))
    _launch(kernel, set_NHW, rows_B, picked_BHW)
    return picked_BHW


def _launch(
    kernel: Any, set_NHW: torch.Tensor, rows_B: torch.Tensor, picked_BHW: torch.Tensor
) -> None:
    import cupy

    words = picked_BHW[0].numel() * picked_BHW.element_size() // WORD_BYTES
    stream = torch.cuda.current_stream(set_NHW.device)
    with cupy.cuda.Device(set_NHW.device.index), wrap_stream(stream):
        kernel(
            (len(rows_B), SLICE_BLOCKS),
            (BLOCK_THREADS,),
            (set_NHW.data_ptr(), rows_B.data_ptr(), picked_BHW.data_ptr(), words),
        )


class _ForeignStream:
    """A stream of torch under CUDA's stream protocol, which torch 2.6 lacks."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream  # lives as long as CuPy uses it

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._stream.cuda_stream


def wrap_stream(stream: torch.cuda.Stream) -> Any:
    """Wrap a stream of torch for CuPy, which does not destroy it."""
    import cupy

    return cupy.cuda.Stream.from_external(_ForeignStream(stream))


@cache
def gather_kernel(device_index: int) -> Any:
    """The kernel for a device; None, with a warning, if CuPy cannot compile it."""
    try:
        return compile_kernel(device_index)
    except Exception as error:  # noqa: BLE001 - from CuPy, the compiler or the driver
        logger.warning(
            "CuPy cannot compile a kernel (%s), so torch gathers the slices of --cache "
            "device; the batches are the same. `ichfast doctor` says what to install",
            first_line(error),
        )
        return None


def compile_kernel(device_index: int) -> Any:
    """Compile the kernel for a device with CuPy, and return the `cupy.RawKernel`."""
    import cupy

    kernel = cupy.RawKernel(GATHER_SOURCE, "gather")
    stream = torch.cuda.current_stream(device_index)
    with cupy.cuda.Device(device_index), wrap_stream(stream):  # as in a launch
        kernel.compile()
    return kernel
