"""Where a run computes: a GPU if torch and DALI can both use it, else the CPU."""

from __future__ import annotations

import logging

import torch

from ichfast.errors import DeviceError
from ichfast.loading.dali import gpu_problem

logger = logging.getLogger(__name__)

CPU_COST = (
    "training the whole RSNA set needs a GPU; here expect a few slices a second, "
    "in float32; try it out with --limit 200"
)


def choose_device(name: str) -> torch.device:
    """Choose the device, and say in the log which and why.

    Args:
        name: ``auto``, ``cuda`` or ``cpu``.

    Raises:
        DeviceError: ``cuda`` was asked for and cannot be used.
    """
    if name == "cpu":
        logger.info("device: cpu, as asked; %s", CPU_COST)
        return torch.device("cpu")
    problem = _problem()
    if problem is None:
        device = torch.device("cuda", torch.cuda.current_device())
        logger.info("device: %s", torch.cuda.get_device_name(device))
        return device
    if name == "cuda":
        raise DeviceError(f"cannot use a GPU: {problem}; use --device cpu")
    logger.warning("device: cpu, because %s; %s", problem, CPU_COST)
    return torch.device("cpu")


def _problem() -> str | None:
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    problem = gpu_problem()
    return f"DALI cannot use the GPU ({problem})" if problem else None
