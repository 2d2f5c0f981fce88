"""Ranger looks ahead from the right weights; its twin is held in `test_optim`."""

from __future__ import annotations

import torch
from torch import nn

from ichfast.ranger import Ranger


def test_lookahead_starts_from_the_weights_before_the_first_step() -> None:
    weight = nn.Parameter(torch.ones(3))
    ranger = Ranger([weight], lr=0.1, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.0)
    weight.grad = torch.ones(3)
    ranger.step()
    assert not torch.equal(weight, torch.ones(3))
    assert torch.equal(ranger.state[weight]["slow"], torch.ones(3))


def test_the_two_thresholds_of_the_reference_differ_in_one_step_only() -> None:
    # Its Ranger rectifies where the length exceeds 5, in exp-30's notebook 4.
    longest = 2 / (1 - 0.99) - 1
    lengths = [
        longest - 2 * step * 0.99**step / (1 - 0.99**step) for step in range(1, 100)
    ]
    assert [step for step, length in enumerate(lengths, 1) if 4 < length <= 5] == [5]
