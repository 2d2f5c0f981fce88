"""Gathers a batch of slices from a set in memory, on the GPU or the CPU.

`gather_slices` runs a CUDA kernel where it can, and `torch.index_select`, its
reference, elsewhere.

Shape letters: N slices of the set, B slices of the batch, H rows, W columns.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

from ichfast.errors import first_line

logger = logging.getLogger(__name__)

WORD_BYTES = 16
"""Bytes that a thread of the kernel copies at a time: a uint4."""

BLOCK_THREADS = 256
SLICE_BLOCKS = 8
"""Launch shape of the kernel: threads per block, and blocks per slice."""

_KERNEL = r"""
extern "C" __global__ void gather(
    const uint4* __restrict__ set, const long long* __restrict__ rows,
    uint4* __restrict__ picked, const long long words)
{
    const uint4* from = set + rows[blockIdx.y] * words;
    uint4* to = picked + blockIdx.y * words;
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long k = blockIdx.x * blockDim.x + threadIdx.x; k < words; k += stride)
        to[k] = from[k];
}
"""


def gather_slices(set_NHW: torch.Tensor, rows_B: torch.Tensor) -> torch.Tensor:
    """Copy slices of a set, in the order of `rows_B`.

    On a GPU the work is queued on torch's current stream; the host does not wait.

    Args:
        set_NHW: shape (N, H, W), int16, contiguous.
        rows_B: shape (B,), int64, in [0, N), on the same device. Repeats are allowed.

    Returns:
        A new tensor of shape (B, H, W), int16, contiguous.
    """
    slice_bytes = set_NHW[0].numel() * set_NHW.element_size()
    if not set_NHW.is_cuda or slice_bytes % WORD_BYTES or _kernel() is None:
        return torch.index_select(set_NHW, 0, rows_B)
    picked_BHW = set_NHW.new_empty((len(rows_B), *set_NHW.shape[1:]))
    _launch(set_NHW, rows_B, picked_BHW, slice_bytes // WORD_BYTES)
    return picked_BHW


def _launch(
    set_NHW: torch.Tensor, rows_B: torch.Tensor, picked_BHW: torch.Tensor, words: int
) -> None:
    import cupy

    stream = torch.cuda.current_stream(set_NHW.device)
    with (
        cupy.cuda.Device(set_NHW.device.index),
        cupy.cuda.ExternalStream(stream.cuda_stream),
    ):
        _kernel()(
            (SLICE_BLOCKS, len(rows_B)),
            (BLOCK_THREADS,),
            (set_NHW.data_ptr(), rows_B.data_ptr(), picked_BHW.data_ptr(), words),
        )


@cache
def _kernel() -> Any:
    """The kernel, compiled by CuPy; None if CuPy is missing or cannot compile."""
    if find_spec("cupy") is None:
        return None
    try:
        import cupy

        kernel = cupy.RawKernel(_KERNEL, "gather")
        kernel.compile()
    except Exception as error:  # noqa: BLE001 - from CuPy, the compiler or the driver
        logger.warning(
            "CuPy cannot compile a kernel (%s); torch gathers instead",
            first_line(error),
        )
        return None
    return kernel
