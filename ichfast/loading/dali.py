"""The boundary to DALI: arrays in and out without a copy, its GPU check, its errors.

DALI reads the arrays it is given in place.

Shape letters: B slices of the batch, H rows, W columns.
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
"""Axes of a slice, in DALI's notation."""


def wrap_columns(columns: Iterable[npt.NDArray[Any]]) -> tuple[TensorListCPU, ...]:
    """Wrap numbers of a batch for DALI, in half the time that DALI takes.

    Args:
        columns: arrays of shape (B, ...), C order, with the dtype of their feed.
    """
    return tuple(TensorListCPU(column) for column in columns)


def wrap_host_slices(
    slices: npt.NDArray[np.uint16] | Sequence[npt.NDArray[np.uint16]], *, pinned: bool
) -> TensorListCPU | list[TensorCPU]:
    """Wrap slices in host memory for DALI.

    Args:
        slices: an array (B, H, W), or a sequence of arrays (H, W); uint16, C order.
        pinned: their memory is page-locked.

    Returns:
        One object for an array, which is fast to make; else one object per slice.
    """
    if isinstance(slices, np.ndarray):
        stored_BHWC = slices[..., np.newaxis]
        return TensorListCPU(stored_BHWC, SLICE_LAYOUT, is_pinned=pinned)
    return [
        TensorCPU(stored_HW[..., np.newaxis], SLICE_LAYOUT, is_pinned=pinned)
        for stored_HW in slices
    ]


def wrap_device_slices(stored_BHW: torch.Tensor) -> torch.Tensor:
    """Wrap slices in the GPU's memory, int16, for DALI."""
    return stored_BHW.view(torch.uint16).unsqueeze(-1)


def as_torch(tensors: Any, *, on_gpu: bool) -> torch.Tensor:
    """Convert an output of DALI to a tensor that stays valid.

    Args:
        tensors: a tensor list.
        on_gpu: it is on the GPU. On a CPU it is copied, because DALI reuses its memory.
    """
    tensor = tensors.as_tensor()
    if on_gpu:
        return torch.utils.dlpack.from_dlpack(tensor)
    # NumPy copies: torch would wake a thread per core, and they spin for a while.
    return torch.from_numpy(np.array(tensor))


def as_array(tensors: Any) -> npt.NDArray[Any]:
    """View an output of DALI on a CPU; valid until DALI runs again."""
    array: npt.NDArray[Any] = np.asarray(tensors.as_tensor())
    return array


def gpu_problem() -> str | None:
    """Return why DALI cannot run on the current CUDA device; None if it can.

    Builds and runs the smallest graph that uses the GPU.
    """
    try:
        # With device 0, every rank would take memory of the first GPU.
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
"""Matches the reason between the phrases of every DALI error."""


def failure_reason(error: Exception) -> str:
    """Extract the reason from an error of DALI, in one line.

    DALI names the operator and quotes the graph. After ``encountered:`` comes the
    reason, sometimes over several lines, and then the place in DALI's source.
    """
    found = _REASON.match(str(error).rpartition("encountered:")[2].strip())
    reason = " ".join(found[1].split()) if found else ""
    return reason or first_line(error)
