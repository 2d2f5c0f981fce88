"""Numbers from the host to a device, without waiting for the device."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch


def upload(numbers: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """Queue the copy of numbers to a device on torch's current stream.

    CUDA may wait for all work on the stream before it copies memory that is not
    page-locked.

    Args:
        numbers: any shape and dtype; on a CPU the tensor shares its memory.
        device: where the tensor goes.
    """
    tensor = torch.from_numpy(numbers)
    if device.type != "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
