"""Arrays handed to DALI, which reads them in place, and what is taken from it.

Shape letters: B slices of the batch, H rows, W columns.

What went wrong inside DALI, out of all that it reports.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import fn, pipeline_def
from nvidia.dali.tensors import TensorCPU, TensorListCPU

from ichfast.errors import first_line

SLICE_LAYOUT = "HWC"
"""Axes of a slice, as DALI spells them."""


def wrap_columns(columns: Iterable[npt.NDArray[Any]]) -> tuple[TensorListCPU, ...]:
    """Numbers of a batch as DALI would wrap them itself, in half the time.

    Args:
        columns: shape (B, ...) each, C order, of the dtype of their `Feed`.
    """
    return tuple(TensorListCPU(column) for column in columns)


def wrap_host_slices(
    slices: npt.NDArray[np.uint16] | Sequence[npt.NDArray[np.uint16]], *, pinned: bool
) -> TensorListCPU | list[TensorCPU]:
    """Slices in host memory as DALI takes them in place.

    Args:
        slices: an array (B, H, W), or an array (H, W) each; uint16, C order.
        pinned: their memory is page-locked.

    Returns:
        One object for an array, else one a slice: making them is what costs.
    """
    if isinstance(slices, np.ndarray):
        stored_BHWC = slices[..., np.newaxis]
        return TensorListCPU(stored_BHWC, SLICE_LAYOUT, is_pinned=pinned)
    return [
        TensorCPU(stored_HW[..., np.newaxis], SLICE_LAYOUT, is_pinned=pinned)
        for stored_HW in slices
    ]


def wrap_device_slices(stored_BHW: torch.Tensor) -> torch.Tensor:
    """Slices in the GPU's memory, int16, as DALI takes them in place."""
    return stored_BHW.view(torch.uint16).unsqueeze(-1)


def as_torch(tensors: Any, *, on_gpu: bool) -> torch.Tensor:
    """An output of DALI that stays valid: on a CPU a copy, for DALI fills its own."""
    tensor = tensors.as_tensor()
    if on_gpu:
        return torch.utils.dlpack.from_dlpack(tensor)
    # By NumPy: torch wakes a thread for every core, which then spin for a while.
    return torch.from_numpy(np.array(tensor))


def as_array(tensors: Any) -> npt.NDArray[Any]:
    """An output of DALI on a CPU, valid until DALI runs again."""
    array: npt.NDArray[Any] = np.asarray(tensors.as_tensor())
    return array


def gpu_problem() -> str | None:
    """Why DALI cannot run on the current CUDA device; None if it can.

    Builds and runs the smallest graph that uses the GPU.
    """
    try:
        # Not 0: each rank would take memory of the first GPU.
        device_id = torch.cuda.current_device()
        pipe = _gpu_probe(batch_size=1, num_threads=1, device_id=device_id)
        pipe.build()
        pipe.run()
    except RuntimeError as error:
        return failure_reason(error)
    return None


@pipeline_def
def _gpu_probe() -> Any:
    return fn.random.uniform(range=[0, 1], shape=[1], device="gpu")


_REASON = re.compile(
    r"(?:Critical error in pipeline:\s*)*(.*?)\s*"
    r"(?:\n\n|\nC\+\+ context|\nStacktrace|\nCurrent pipeline object|$)",
    re.DOTALL,
)
"""What went wrong, between what DALI says of every failure."""


def failure_reason(error: Exception) -> str:
    """What DALI's error says went wrong, in one line.

    DALI names the operator and quotes the graph; behind ``encountered:`` comes the
    reason, over a few lines at times, then where in its own source.
    """
    found = _REASON.match(str(error).rpartition("encountered:")[2].strip())
    reason = " ".join(found[1].split()) if found else ""
    return reason or first_line(error)
