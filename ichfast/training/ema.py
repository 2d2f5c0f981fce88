"""The moving average of a model's weights.

It continues from its state dict bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_Pair = tuple[list[Tensor], list[Tensor]]
"""Tensors of the averaged model, and those of the model that trains, in one order."""


class Ema:
    """An exponential moving average of a model's weights, as a second model.

    Buffers, such as the statistics of batch norm, are averages already and are copied.

    Args:
        model: the model that trains, not wrapped, on its final device.
        decay: share of the average that each update keeps, in [0, 1).
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
        """The averaged model, in evaluation mode."""
        self._decay = decay
        self._weights = _pair_by_dtype(self.model.parameters(), model.parameters())
        self._buffers = _pair_by_dtype(self.model.buffers(), model.buffers())

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the model. Call it after each step."""
        for averaged, trained in self._weights:
            torch._foreach_lerp_(averaged, trained, 1 - self._decay)
        for copied, trained in self._buffers:
            torch._foreach_copy_(copied, trained)

    def state_dict(self) -> dict[str, Any]:
        """The averaged model's state dict."""
        return self.model.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the averaged model's state dict."""
        self.model.load_state_dict(state_dict)


def _pair_by_dtype(
    averaged: Iterable[Tensor], trained: Iterable[Tensor]
) -> list[_Pair]:
    # A list of several dtypes costs one kernel a tensor: torch has one kernel for a
    # whole list only if all its tensors share their dtype.
    pairs: dict[torch.dtype, _Pair] = {}
    for mine, theirs in zip(averaged, trained, strict=True):
        mine_so_far, theirs_so_far = pairs.setdefault(mine.dtype, ([], []))
        mine_so_far.append(mine)
        theirs_so_far.append(theirs)
    return list(pairs.values())
