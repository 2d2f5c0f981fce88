"""`torch.compile`, where there is a compiler."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ichfast.errors import RecipeError

logger = logging.getLogger(__name__)

Forward = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) to logits (B, K)."""


def compile_forward(
    model: nn.Module, device: torch.device, *, cuda_graphs: bool
) -> Forward:
    """Compile a model's forward and backward pass for full batches.

    Where the compiler is missing (Triton for a GPU, a C++ compiler for the CPU), a
    warning says so and the model is returned as it is.

    Args:
        model: on its device; shares its weights with what is returned.
        device: where it runs.
        cuda_graphs: also record both passes as CUDA graphs and replay them.

    Raises:
        RecipeError: CUDA graphs were asked for without a GPU.
    """
    if cuda_graphs and device.type != "cuda":
        raise RecipeError(
            "train.cuda_graphs needs a GPU and this run is on the CPU; "
            "leave out --cuda-graphs"
        )
    problem = _compiler_problem(device)
    if problem is not None:
        logger.warning(
            "not compiled, the compiler does not work here: %s; training goes on "
            "without it",
            problem,
        )
        return model
    compiled: Forward = torch.compile(
        model, dynamic=False, mode="reduce-overhead" if cuda_graphs else None
    )
    return compiled


def _compiler_problem(device: torch.device) -> str | None:
    """What is wrong with the compiler, found out on a function of one line."""

    @torch.compile
    def negate(numbers: Any) -> Any:
        return -numbers

    try:
        negate(torch.ones(8, device=device))
    except Exception as error:  # noqa: BLE001 - a compiler may fail in any way
        lines = str(error).strip().splitlines()
        return lines[0] if lines else type(error).__name__
    return None
