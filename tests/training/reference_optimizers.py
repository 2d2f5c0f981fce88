"""Optimizers as their papers write them, one tensor at a time, in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(kw_only=True)
class ReferenceOptimizer:
    """What the optimizers share: settings, weights, and the two averages."""

    weights: list[Tensor]
    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    steps: int = 0
    means: list[Tensor] = field(init=False)
    squares: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.weights = [weight.detach().double().clone() for weight in self.weights]
        self.means = [torch.zeros_like(weight) for weight in self.weights]
        self.squares = [torch.zeros_like(weight) for weight in self.weights]

    def step(self, grads: list[Tensor]) -> None:
        """Take one step along `grads`."""
        self.steps += 1
        beta1, beta2 = self.betas
        for i, grad in enumerate(self.prepare([grad.double() for grad in grads])):
            self.means[i] = beta1 * self.means[i] + (1 - beta1) * grad
            self.squares[i] = beta2 * self.squares[i] + (1 - beta2) * grad**2
            mean = self.means[i] / (1 - beta1**self.steps)
            square = self.squares[i] / (1 - beta2**self.steps)
            self.move(i, mean, square)

    def prepare(self, grads: list[Tensor]) -> list[Tensor]:
        """The gradients that the averages see."""
        return grads

    def move(self, i: int, mean: Tensor, square: Tensor) -> None:
        """Move a weight, given both averages without their bias."""
        raise NotImplementedError


class ReferenceAdamW(ReferenceOptimizer):
    """Kingma & Ba 2015, algorithm 1; Loshchilov & Hutter 2019 for the decay."""

    def move(self, i: int, mean: Tensor, square: Tensor) -> None:
        """Decay, then step."""
        self.weights[i] *= 1 - self.lr * self.weight_decay
        self.weights[i] -= self.lr * mean / (square.sqrt() + self.eps)


class ReferenceRAdam(ReferenceOptimizer):
    """Liu et al. 2019, algorithm 2, rectified from a length above 5 on.

    As in its authors' code, eps is added before the bias of the root is removed.
    """

    def move(self, i: int, mean: Tensor, square: Tensor) -> None:
        """Decay, then step, rectified or without the second average."""
        self.weights[i] *= 1 - self.lr * self.weight_decay
        beta2 = self.betas[1]
        bias = 1 - beta2**self.steps
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * self.steps * beta2**self.steps / bias
        if length <= 5:
            self.weights[i] -= self.lr * mean
            return
        rectification = math.sqrt(
            (length - 4) * (length - 2) * longest
            / ((longest - 4) * (longest - 2) * length)
        )  # fmt: skip
        root = (square * bias).sqrt() + self.eps
        self.weights[i] -= self.lr * rectification * mean * math.sqrt(bias) / root


class ReferenceRanger(ReferenceRAdam):
    """RAdam inside Zhang et al. 2019, algorithm 1, with k = 6 and alpha = 0.5."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.slow = [weight.clone() for weight in self.weights]

    def step(self, grads: list[Tensor]) -> None:
        """Step, and every sixth time look ahead."""
        super().step(grads)
        if self.steps % 6 == 0:
            for slow, fast in zip(self.slow, self.weights, strict=True):
                slow += 0.5 * (fast - slow)
            self.weights = [slow.clone() for slow in self.slow]


class ReferenceLamb(ReferenceOptimizer):
    """You et al. 2019, algorithm 2, with the defaults of NVIDIA apex."""

    def prepare(self, grads: list[Tensor]) -> list[Tensor]:
        """The whole gradient, scaled down to length 1."""
        norm = math.sqrt(sum(float(grad.square().sum()) for grad in grads))
        return [grad / max(norm, 1.0) for grad in grads]

    def move(self, i: int, mean: Tensor, square: Tensor) -> None:
        """A step as long as the weight times the learning rate."""
        weight = self.weights[i]
        update = mean / (square.sqrt() + self.eps) + self.weight_decay * weight
        has_ratio = self.weight_decay > 0 and weight.norm() > 0
        ratio = weight.norm() / update.norm() if has_ratio else 1.0
        weight -= self.lr * ratio * update
