"""Schedules: learning rate and momentum over the steps of a phase.

A schedule is a pure function of the step, so it has no state to save.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch.optim import Optimizer

from ichfast.errors import RecipeError

SCHEDULES = ("one-cycle", "flat-cosine", "cosine", "warm-up-cosine")
"""``one-cycle``: up and down by cosines, with momentum down and up; ``flat-cosine``:
constant, then down by a cosine; ``cosine``: down by a cosine; ``warm-up-cosine``: up in
a straight line, then down by a cosine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Learning rate and momentum of each step of a phase."""

    kind: str
    """One of `SCHEDULES`."""

    lr: float
    """The highest learning rate."""

    num_steps: int
    """Optimizer steps in the phase; at least 1."""

    start: float
    """Where the descent starts, as a share of the steps, in [0, 1): after the rise
    (0.3 in the reference) or the constant part (0.7); 0 for ``cosine``."""

    final_lr: float = 0.0
    """The learning rate at the end of the descent, from 0 to `lr`; 0 for
    ``one-cycle``, which ends at 1 / 250,000 of `lr`."""

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULES:
            raise RecipeError(
                f"unknown schedule {self.kind!r}; known are {', '.join(SCHEDULES)}"
            )
        if self.num_steps < 1:
            raise RecipeError(f"a schedule needs 1 step or more, got {self.num_steps}")
        if not 0 <= self.start < 1 or (self.kind == "cosine" and self.start > 0):
            raise RecipeError(
                f"{self.kind} cannot start its descent at {self.start} of the steps; "
                "give a share in [0, 1), and 0 for cosine"
            )
        if not 0 <= self.final_lr <= (0 if self.kind == "one-cycle" else self.lr):
            raise RecipeError(
                f"{self.kind} cannot end at a learning rate of {self.final_lr}; give "
                f"0 to {self.lr}, and 0 for one-cycle"
            )

    def at(self, step: int) -> tuple[float, float | None]:
        """Learning rate and beta1 of a step.

        Args:
            step: from 0; `num_steps` gives the values at the end of the descent.

        Returns:
            The learning rate, and beta1, or None if it is not scheduled.

        Source:
            fastai v1, `OneCycleScheduler` (div_factor 25, final 25e4, momentum
            0.95 to 0.85) and `GeneralScheduler`: the first part has
            ``int(num_steps * start)`` steps.
        """
        assert 0 <= step <= self.num_steps, f"step {step} of {self.num_steps}"
        num_before = int(self.num_steps * self.start)
        descended = (step - num_before) / (self.num_steps - num_before)
        if self.kind == "one-cycle":
            if step < num_before:
                risen = step / num_before
                return _cosine(self.lr / 25, self.lr, risen), _cosine(0.95, 0.85, risen)
            return (
                _cosine(self.lr, self.lr / 25e4, descended),
                _cosine(0.85, 0.95, descended),
            )
        if self.kind == "warm-up-cosine" and step < num_before:
            return self.lr * (step + 1) / (num_before + 1), None
        return _cosine(self.lr, self.final_lr, max(descended, 0.0)), None

    def apply(self, optimizer: Optimizer, step: int) -> None:
        """Set the learning rate, and beta1 if scheduled, in every parameter group.

        Args:
            optimizer: changed in place.
            step: of the phase, from 0.
        """
        lr, beta1 = self.at(step)
        for group in optimizer.param_groups:
            group["lr"] = lr
            if beta1 is not None:
                group["betas"] = (beta1, group["betas"][1])


def _cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) / 2 * (math.cos(math.pi * share) + 1)
