"""LAMB, for large batches: each tensor's step is scaled to the tensor's length.

It continues from its state dict bit for bit, and from that of NVIDIA apex.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

MAX_GRAD_NORM = 1.0
"""The whole gradient is scaled down to this norm; apex's default."""


class Lamb(Optimizer):
    """LAMB as NVIDIA apex's FusedLAMB computes it, without apex.

    The state has apex's layout, so that either continues what the other began.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: decay of the averages of the gradient and of its square.
        eps: added to the root of the second average.
        weight_decay: decoupled; a group without any has no trust ratio.

    Source:
        You et al. 2019, arXiv:1904.00962; NVIDIA/apex csrc/multi_tensor_lamb.cu.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        defaults |= {
            "bias_correction": True,
            "grad_averaging": True,
            "max_grad_norm": MAX_GRAD_NORM,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step; no value leaves the device."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        all_grads = [
            parameter.grad
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        norms = torch._foreach_norm(all_grads)
        grad_norm = torch.linalg.vector_norm(torch.stack(norms))
        too_large = (grad_norm / MAX_GRAD_NORM).clamp(min=1.0)
        for group in self.param_groups:
            self._update(group, too_large)
        return loss

    def _update(self, group: dict[str, Any], too_large: Tensor) -> None:
        group["step"] = group.get("step", 0) + 1
        beta1, beta2 = group["betas"]
        params = [
            parameter for parameter in group["params"] if parameter.grad is not None
        ]
        if not params:
            return
        for parameter in params:
            if not self.state[parameter]:
                self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
                self.state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)
        means = [self.state[parameter]["exp_avg"] for parameter in params]
        squares = [self.state[parameter]["exp_avg_sq"] for parameter in params]
        grads = torch._foreach_div([parameter.grad for parameter in params], too_large)
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)

        denominators = torch._foreach_div(squares, 1 - beta2 ** group["step"])
        torch._foreach_sqrt_(denominators)
        torch._foreach_add_(denominators, group["eps"])
        updates = torch._foreach_div(means, 1 - beta1 ** group["step"])
        torch._foreach_div_(updates, denominators)
        if group["weight_decay"]:
            torch._foreach_add_(updates, params, alpha=group["weight_decay"])
            torch._foreach_mul_(updates, _trust_ratios(params, updates))
        torch._foreach_add_(params, updates, alpha=-group["lr"])


def _trust_ratios(params: list[Tensor], updates: Iterable[Tensor]) -> list[Tensor]:
    lengths = torch.stack(torch._foreach_norm(params))
    steps = torch.stack(torch._foreach_norm(list(updates)))
    ratios = torch.where((lengths > 0) & (steps > 0), lengths / steps, 1.0)
    return list(ratios.unbind())
