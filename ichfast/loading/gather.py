"""Takes a batch of slices out of a device's memory: gathers them, or unpacks records.

`gather_slices` and `unpack_slices` run CUDA kernels where they can. Elsewhere
`gather_slices` runs `torch.index_select`, and `unpack_slices`, for records in host
memory only, `ichfast.packed.codec.unpack_into`. These are their references.

Shape letters: N slices of the set, B slices of the batch, H rows, W columns, R bytes of
all records.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import torch

from ichfast.errors import first_line
from ichfast.packed.codec import unpack_into

logger = logging.getLogger(__name__)

WORD_BYTES = 16
"""Bytes that a thread of `gather` copies at a time: a uint4."""

BLOCK_THREADS = 256
SLICE_BLOCKS = 8
"""Launch shape of `gather`: threads per block, and blocks per slice."""

UNPACK_THREADS = 128
"""Threads per block of the kernels that unpack."""

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
    words, rest = divmod(set_NHW[0].numel() * set_NHW.element_size(), WORD_BYTES)
    kernels = load_kernels(set_NHW.device)
    if not kernels or rest:
        return torch.index_select(set_NHW, 0, rows_B)
    picked_BHW = set_NHW.new_empty((len(rows_B), *set_NHW.shape[1:]))
    _launch(
        kernels["gather"],
        (len(rows_B), SLICE_BLOCKS),
        BLOCK_THREADS,
        (set_NHW, rows_B, picked_BHW),
        words,
    )
    return picked_BHW


def unpack_slices(
    records: torch.Tensor,
    at_B: torch.Tensor,
    sizes_B: torch.Tensor,
    shape: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unpack slices of one shape.

    On a GPU the work is queued on torch's current stream; the host does not wait, and
    the kernels of `load_kernels` are required.

    Args:
        records: shape (R,), uint8, contiguous; begins at a multiple of 64 bytes.
        at_B: shape (B,), B at least 1, int64, on the same device: where each slice's
            record begins, a multiple of 64.
        sizes_B: shape (B,), int32, on the same device: bytes of each record.
        shape: rows and columns of each slice.

    Returns:
        A new tensor of shape (B, H, W), int16, contiguous; and one of shape (B,),
        int32, on the same device: 1 for each record that is damaged, whose slice is 0.

    Raises:
        StoreError: a record in host memory is damaged.
    """
    stored_BHW = records.new_empty((len(at_B), *shape), dtype=torch.int16)
    errors_B = torch.zeros_like(sizes_B)
    kernels = load_kernels(records.device)
    if not kernels:
        places = zip(at_B.tolist(), sizes_B.tolist(), stored_BHW, strict=True)
        for at, size, stored_HW in places:
            unpack_into(
                records[at : at + size].numpy(), stored_HW.numpy().view(np.uint16)
            )
        return stored_BHW, errors_B
    batch, rows, columns = stored_BHW.shape
    _launch(
        kernels["unpack_rows"],
        (-(-batch * rows // UNPACK_THREADS),),
        UNPACK_THREADS,
        (records, at_B, sizes_B, stored_BHW, errors_B),
        *(rows, columns, batch),
    )
    # A thread has two columns where their number is even; those left over end at once.
    _launch(
        kernels["sum_columns"],
        (-(-batch * columns // UNPACK_THREADS),),
        UNPACK_THREADS,
        (stored_BHW, errors_B),
        *(rows, columns, batch),
    )
    return stored_BHW, errors_B


def _launch(
    kernel: Any,
    grid: tuple[int, ...],
    block_threads: int,
    tensors: Sequence[torch.Tensor],
    *numbers: int,
) -> None:
    """Queue a kernel on torch's current stream, for the device of its tensors.

    Args:
        kernel: of CuPy.
        grid: blocks along x and y.
        block_threads: threads of a block, along x.
        tensors: the kernel's first arguments, on one device.
        numbers: the others. CuPy passes each as 64 bits; the kernel reads as many as it
            declares.
    """
    import cupy

    device = tensors[0].device
    arguments = (*(tensor.data_ptr() for tensor in tensors), *numbers)
    stream = torch.cuda.current_stream(device)
    with cupy.cuda.Device(device.index), wrap_stream(stream):
        kernel(grid, (block_threads,), arguments)


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


def load_kernels(device: torch.device) -> Mapping[str, Any]:
    """The kernels for a device, by name; none on a CPU.

    There are none, with a warning, on a GPU for which CuPy cannot compile them.
    """
    return _compile_once(device.index) if device.type == "cuda" else {}


@cache
def _compile_once(device_index: int) -> Mapping[str, Any]:
    try:
        return compile_kernels(device_index)
    except Exception as error:  # noqa: BLE001 - from CuPy, the compiler or the driver
        logger.warning(
            "CuPy cannot compile a kernel (%s), so torch gathers the slices of --cache "
            "device, which keeps packed ones unpacked; the batches are the same. "
            "`ichfast doctor` says what to install",
            first_line(error),
        )
        return {}


def compile_kernels(device_index: int) -> dict[str, Any]:
    """Compile the kernels for a device with CuPy; a `cupy.RawKernel` by its name."""
    import cupy

    source = resources.files("ichfast.packed").joinpath("unpack.cu").read_text("utf-8")
    kernels = {
        "gather": cupy.RawKernel(GATHER_SOURCE, "gather"),
        "unpack_rows": cupy.RawKernel(source, "unpack_rows"),
        "sum_columns": cupy.RawKernel(source, "sum_columns"),
    }
    stream = torch.cuda.current_stream(device_index)
    with cupy.cuda.Device(device_index), wrap_stream(stream):  # as in a launch
        for kernel in kernels.values():
            kernel.compile()
    return kernels
