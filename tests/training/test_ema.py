"""The moving average follows its formula and does not change the model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ichfast.models.xresnet import SimpleSelfAttention
from ichfast.training.ema import Ema
from ichfast.training.optimizers import make_optimizer
from tests.models.few_weights import (
    SETTINGS,
    make_model,
    through_a_file,
    train,
    weights_of,
)


def test_ema_follows_the_formula_and_copies_buffers() -> None:
    model = make_model()
    optimizer = make_optimizer("adam", model.parameters(), **SETTINGS)
    ema = Ema(model, decay=0.9)
    expected = weights_of(model)
    for step in range(5):
        train(model, optimizer, range(step, step + 1))
        ema.update()
        expected = 0.9 * expected + 0.1 * weights_of(model)
    torch.testing.assert_close(weights_of(ema.model), expected)
    buffers = list(model.buffers())
    assert len(buffers) == 3
    for copied, buffer in zip(ema.model.buffers(), buffers, strict=True):
        assert torch.equal(copied, buffer)
        assert copied is not buffer


def test_ema_is_a_frozen_copy_in_evaluation_mode_and_keeps_the_model_as_it_is() -> None:
    model = make_model().train()
    ema = Ema(model, decay=0.9)
    assert not ema.model.training
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_a_resumed_ema_continues_bit_for_bit() -> None:
    model = make_model()
    ema = Ema(model, decay=0.9)
    optimizer = make_optimizer("adam", model.parameters(), **SETTINGS)
    train(model, optimizer, range(3))
    ema.update()
    resumed = Ema(copy.deepcopy(model), decay=0.9)
    resumed.load_state_dict(through_a_file(ema.state_dict()))
    ema.update()
    resumed.update()
    assert torch.equal(weights_of(resumed.model), weights_of(ema.model))


@pytest.mark.slow
def test_buffers_are_followed_through_a_compiled_network() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), SimpleSelfAttention(8))
    ema = Ema(model, decay=0.9)
    before = [buffer.clone() for buffer in model.buffers()]
    compiled = torch.compile(model, backend="aot_eager")
    compiled(torch.randn(2, 1, 8, 8))
    ema.update()
    for first, copied, buffer in zip(
        before, ema.model.buffers(), model.buffers(), strict=True
    ):
        assert not torch.equal(first, buffer)
        assert torch.equal(copied, buffer)
