"""The moving average of a model's weights.

It continues from its state dict bit for bit.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


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
        self._source = model

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the model. Call it after each step."""
        weights: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(weights, list(self._source.parameters()), 1 - self._decay)
        torch._foreach_copy_(list(self.model.buffers()), list(self._source.buffers()))

    def state_dict(self) -> dict[str, Any]:
        """The averaged model's state dict."""
        return self.model.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the averaged model's state dict."""
        self.model.load_state_dict(state_dict)
