"""Optimizers, schedules and the moving average of the weights.

Promises:

1. Weight decay is decoupled (each step shrinks a weight by lr x decay), and
   `decay_groups` spares batch norms and biases, as the reference does.
2. A schedule is a pure function of the step; nothing of it needs saving.
3. Optimizer and `Ema` continue from their state dict bit for bit.
4. Which implementation of an optimizer runs is said in the log.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer, RAdam

from ichfast.errors import CheckpointError, RecipeError, TrainError

logger = logging.getLogger(__name__)

OPTIMIZERS = ("adam", "radam", "ranger", "lamb")
"""What `make_optimizer` knows. ``ranger`` is RAdam with Lookahead."""

LOOKAHEAD_STEPS = 6
"""Steps from one meeting of fast and slow weights to the next.

Source:
    Zhang et al. 2019, arXiv:1907.08610; lessw2020's Ranger, as the reference.
"""

LOOKAHEAD_ALPHA = 0.5
"""The share of the way that the slow weights go to the fast ones."""

LAMB_MAX_GRAD_NORM = 1.0
"""LAMB scales the whole gradient down to this norm; apex's default."""

ParamGroups = Iterable[nn.Parameter] | Iterable[dict[str, Any]]


def decay_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Sort the parameters that train into those that decay and those that do not.

    Args:
        model: parameters that require no gradient are left out.

    Returns:
        Parameter groups for `make_optimizer`; the second, batch norms and biases,
        has a weight decay of 0 of its own.

    Source:
        fastai v1, `split_no_wd_params` with `bn_wd=False`.
    """
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for module in model.modules():
        is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                (spared if is_norm or name == "bias" else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed},
        {"params": spared, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(
    name: str,
    params: ParamGroups,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> Optimizer:
    """Make an optimizer, in the fastest implementation there is on this machine.

    Args:
        name: one of `OPTIMIZERS`.
        params: parameters, or groups of them as `decay_groups` gives.
        lr: learning rate; a `Schedule` changes it.
        betas: decay of the averages of the gradient and of its square.
        eps: added to the root of the second average.
        weight_decay: decoupled; for groups that do not have their own.

    Raises:
        RecipeError: an unknown name.
        TrainError: there is nothing to train.
    """
    if name not in OPTIMIZERS:
        raise RecipeError(
            f"unknown optimizer {name!r}; known are {', '.join(OPTIMIZERS)}"
        )
    entries: list[Any] = list(params)
    if not entries:
        raise TrainError("no parameter requires a gradient; unfreeze some of the model")
    first = entries[0]["params"][0] if isinstance(entries[0], dict) else entries[0]
    make, runs_as = _find_implementation(name, first.device)
    optimizer = make(entries, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    if name == "adam":
        optimizer.register_load_state_dict_pre_hook(_refuse_other_adam)
    logger.info("optimizer %s runs as %s", name, runs_as)
    return optimizer


def _find_implementation(
    name: str, device: torch.device
) -> tuple[Callable[..., Optimizer], str]:
    if name == "radam":
        return _make_radam, "torch.optim.RAdam"
    if name == "ranger":
        return Ranger, "torch.optim.RAdam with Lookahead"
    apex = nvidia_apex() if device.type == "cuda" else None
    if apex is not None:
        fused_class = {"adam": "FusedAdam", "lamb": "FusedLAMB"}[name]
        return getattr(apex, fused_class), f"NVIDIA apex {fused_class}"
    if name == "lamb":
        return Lamb, "ichfast.optim.Lamb"
    return _make_fused_adam, "torch.optim.AdamW, fused"


def nvidia_apex() -> ModuleType | None:
    """NVIDIA's `apex.optimizers`, if its CUDA extension is installed.

    The `apex` of PyPI is a web toolkit by someone else; it has no `amp_C`, so it
    is not even imported.
    """
    if importlib.util.find_spec("amp_C") is None:
        return None
    try:
        return importlib.import_module("apex.optimizers")
    except ImportError as error:
        logger.warning("NVIDIA apex is installed but does not load: %s", error)
        return None


def _make_fused_adam(params: Any, **settings: Any) -> Optimizer:
    return AdamW(params, fused=True, **settings)


def _make_radam(params: Any, **settings: Any) -> Optimizer:
    return RAdam(params, decoupled_weight_decay=True, foreach=True, **settings)


def _refuse_other_adam(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    # apex counts steps in the group, torch in each state: one would start the
    # other's bias correction anew, or fail far from here.
    has_apex_steps = "step" in state_dict["param_groups"][0]
    if state_dict["state"] and has_apex_steps == isinstance(optimizer, AdamW):
        raise CheckpointError(
            f"the checkpoint's Adam is {'apex' if has_apex_steps else 'torch'}'s, this "
            f"run's is {type(optimizer).__name__}; resume where it was written, "
            "or start a new run from its weights with --weights"
        )


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
            "max_grad_norm": LAMB_MAX_GRAD_NORM,
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
        too_large = (grad_norm / LAMB_MAX_GRAD_NORM).clamp(min=1.0)
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """How learning rate and momentum go over the steps of a phase."""

    kind: str
    """``one-cycle``: up and down by cosines, momentum the other way round;
    ``flat-cosine``: flat, then a cosine to 0; ``cosine``: a cosine to 0."""

    lr: float
    """The highest learning rate."""

    num_steps: int
    """Optimizer steps in the phase; at least 1."""

    start: float
    """Where the descent starts, as a share of the steps in [0, 1): after the rise
    (the reference: 0.3) or the flat part (0.7); 0 for ``cosine``."""

    def __post_init__(self) -> None:
        if self.kind not in ("one-cycle", "flat-cosine", "cosine"):
            raise RecipeError(
                f"unknown schedule {self.kind!r}; "
                "known are one-cycle, flat-cosine, cosine"
            )
        if self.num_steps < 1:
            raise RecipeError(f"a schedule needs 1 step or more, got {self.num_steps}")
        if not 0 <= self.start < 1 or (self.kind == "cosine" and self.start > 0):
            raise RecipeError(
                f"{self.kind} cannot start its descent at {self.start} of the steps; "
                "give a share in [0, 1), and 0 for cosine"
            )

    def at(self, step: int) -> tuple[float, float | None]:
        """Learning rate and beta1 of a step.

        Args:
            step: from 0; `num_steps` gives the values where the descent ends.

        Returns:
            The learning rate, and beta1 or None where it is not scheduled.

        Source:
            fastai v1, `OneCycleScheduler` (div_factor 25, final 25e4, momentum
            0.95 to 0.85) and `GeneralScheduler`: the first part has
            ``int(num_steps * start)`` steps.
        """
        assert 0 <= step <= self.num_steps, f"step {step} of {self.num_steps}"
        turning = int(self.num_steps * self.start)
        descended = (step - turning) / (self.num_steps - turning)
        if self.kind == "one-cycle":
            if step < turning:
                risen = step / turning
                return _cosine(self.lr / 25, self.lr, risen), _cosine(0.95, 0.85, risen)
            return (
                _cosine(self.lr, self.lr / 25e4, descended),
                _cosine(0.85, 0.95, descended),
            )
        return _cosine(self.lr, 0.0, max(descended, 0.0)), None

    def apply(self, optimizer: Optimizer, step: int) -> None:
        """Set a step's learning rate, and beta1 if scheduled, in every group."""
        lr, beta1 = self.at(step)
        for group in optimizer.param_groups:
            group["lr"] = lr
            if beta1 is not None:
                group["betas"] = (beta1, group["betas"][1])


def _cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) / 2 * (math.cos(math.pi * share) + 1)


class Ema:
    """An exponential moving average of a model's weights, as a model of its own.

    Buffers, such as the statistics of batch norm, are averages already: copied.

    Args:
        model: the model that trains, not wrapped, on its final device.
        decay: what the average keeps of itself at each update, in [0, 1).
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
        """The averaged model, in evaluation mode."""
        self._decay = decay
        self._source = model

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the model; call it after each step."""
        weights: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(weights, list(self._source.parameters()), 1 - self._decay)
        torch._foreach_copy_(list(self.model.buffers()), list(self._source.buffers()))

    def state_dict(self) -> dict[str, Any]:
        """The averaged model's state dict."""
        return self.model.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.model.load_state_dict(state_dict)
