"""A model of a few weights, and training steps for it."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

SETTINGS: dict[str, Any] = {
    "lr": 0.01,
    "betas": (0.95, 0.99),
    "eps": 1e-6,
    "weight_decay": 0.01,
}


def make_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 5, 3, bias=False),
        nn.BatchNorm2d(5),
        nn.Flatten(),
        nn.Linear(45, 6),
    )
    return model.to(memory_format=torch.channels_last)


def train(model: nn.Module, optimizer: Optimizer, steps: range) -> None:
    """Take steps, each on images drawn from its number as the seed."""
    for step in steps:
        images = torch.randn(7, 1, 5, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()


def weights_of(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def through_a_file(content: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)
