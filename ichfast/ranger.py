"""Ranger: RAdam with Lookahead.

It continues from its state dict bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import RAdam

LOOKAHEAD_STEPS = 6
"""Steps from one meeting of fast and slow weights to the next.

Source:
    Zhang et al. 2019, arXiv:1907.08610; lessw2020's Ranger, as the reference.
"""

LOOKAHEAD_ALPHA = 0.5
"""The share of the way that the slow weights go to the fast ones."""


class Ranger(RAdam):
    """RAdam with Lookahead, decoupled weight decay.

    Every `LOOKAHEAD_STEPS` steps a slow copy of the weights goes
    `LOOKAHEAD_ALPHA` of the way to the weights, and the weights go there too.
    The slow copy is the state ``slow`` of each parameter; RAdam's ``step`` counts.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: as for RAdam.
        eps: as for RAdam.
        weight_decay: decoupled.

    Source:
        Liu et al. 2019, arXiv:1908.03265; Zhang et al. 2019, arXiv:1907.08610.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            decoupled_weight_decay=True,
            foreach=True,
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step of RAdam and, when it is due, one of Lookahead."""
        trained = [
            parameter
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        # Taken before the first update, kept after it: RAdam sets up only states
        # that are still empty.
        fresh = {p: p.detach().clone() for p in trained if p not in self.state}
        loss = super().step(closure)
        for parameter, slow in fresh.items():
            self.state[parameter]["slow"] = slow
        due = [p for p in trained if int(self.state[p]["step"]) % LOOKAHEAD_STEPS == 0]
        if due:
            slow_due = [self.state[parameter]["slow"] for parameter in due]
            torch._foreach_lerp_(slow_due, due, LOOKAHEAD_ALPHA)
            torch._foreach_copy_(due, slow_due)
        return loss
