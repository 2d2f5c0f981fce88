"""Optimizers by name, in the fastest implementation that the machine has.

Promises:

1. Weight decay is decoupled (each step shrinks a weight by lr x decay), and
   `decay_groups` exempts batch norm and biases, as the reference does.
2. Every optimizer continues from its state dict bit for bit.
3. The log says which implementation runs.

Only this module and `models/build.py` import timm; this one takes its LAMB.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch
from timm.optim import Lamb
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer, RAdam

from ichfast.errors import CheckpointError, RecipeError, TrainError
from ichfast.training.checkpoint import restoring

logger = logging.getLogger(__name__)

OPTIMIZERS = ("adam", "radam", "ranger", "lamb")
"""Names that `make_optimizer` takes. ``ranger`` is RAdam with Lookahead."""

LOOKAHEAD_STEPS = 6
"""Steps between two synchronizations of fast and slow weights.

Source:
    Zhang et al. 2019, arXiv:1907.08610; lessw2020's Ranger, as in the reference.
"""

LOOKAHEAD_ALPHA = 0.5
"""Share of the way that the slow weights move towards the fast ones."""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What every optimizer keeps for a parameter, in its shape."""

ParamGroups = Iterable[nn.Parameter] | Iterable[dict[str, Any]]


def decay_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Split the parameters that train into those that decay and those that do not.

    Args:
        model: parameters that require no gradient are left out.

    Returns:
        Parameter groups for `make_optimizer`; the second, batch norm and biases, has
        a weight decay of 0.

    Source:
        fastai v1, `split_no_wd_params` with `bn_wd=False`.
    """
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for module in model.modules():
        is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                (exempt if is_norm or name == "bias" else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed},
        {"params": exempt, "weight_decay": 0.0},
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
    """Make an optimizer, in the fastest implementation that the machine has.

    Args:
        name: one of `OPTIMIZERS`.
        params: parameters, or groups of them as `decay_groups` returns.
        lr: learning rate; a `Schedule` changes it.
        betas: decay rates of the averages of the gradient and of its square.
        eps: added to the square root of the second average.
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
    elif name == "lamb":
        optimizer.register_load_state_dict_pre_hook(_accept_other_lamb)
    logger.info("optimizer %s runs as %s", name, runs_as)
    return optimizer


def restore_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an optimizer, which is checked before a step uses it.

    Args:
        optimizer: changed in place.
        state: its `state_dict` of before, from a checkpoint.

    Raises:
        CheckpointError: it is of another implementation, or does not fit.
    """
    fresh = [dict(group) for group in optimizer.param_groups]
    with restoring():
        optimizer.load_state_dict(state)
        for before, group in zip(fresh, optimizer.param_groups, strict=True):
            for name in before.keys() - {"params", "step"}:
                if _kind(group[name]) != _kind(before[name]):
                    raise ValueError(f"{name} of the optimizer is {group[name]!r:.40}")
        for parameter, values in optimizer.state.items():
            _check_moments(optimizer, parameter, values)


def _kind(value: Any) -> type:
    return float if type(value) is int else type(value)


def _check_moments(
    optimizer: Optimizer, parameter: Tensor, values: dict[str, Any]
) -> None:
    for name in (*MOMENTS, *(("slow",) if isinstance(optimizer, Ranger) else ())):
        if values[name].shape != parameter.shape:
            raise ValueError(f"{name} of the optimizer is {tuple(values[name].shape)}")
    if isinstance(optimizer, RAdam | AdamW) and not values["step"].ndim == 0:
        raise ValueError("step of the optimizer is no number")


def _find_implementation(
    name: str, device: torch.device
) -> tuple[Callable[..., Optimizer], str]:
    if name == "radam":
        return _make_radam, "torch.optim.RAdam, foreach"
    if name == "ranger":
        return Ranger, "torch.optim.RAdam, foreach, with Lookahead"
    apex = nvidia_apex() if device.type == "cuda" else None
    if apex is not None:
        fused_class = {"adam": "FusedAdam", "lamb": "FusedLAMB"}[name]
        return getattr(apex, fused_class), f"NVIDIA apex {fused_class}"
    if name == "lamb":
        return Lamb, "timm.optim.Lamb"
    return _make_fused_adam, "torch.optim.AdamW, fused"


def nvidia_apex() -> ModuleType | None:
    """NVIDIA's `apex.optimizers`, if its CUDA extension is installed.

    The `apex` of PyPI is another project, a web toolkit. It has no `amp_C`, so it
    is never imported.
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
    # apex counts steps in the group, torch in each state: with the other's state one
    # would restart its bias correction, or fail far from here.
    has_apex_steps = "step" in state_dict["param_groups"][0]
    if state_dict["state"] and has_apex_steps == isinstance(optimizer, AdamW):
        raise CheckpointError(
            f"the checkpoint's Adam is {'apex' if has_apex_steps else 'torch'}'s, this "
            f"run's is {type(optimizer).__name__}; resume where it was written, "
            "or start a new run from its weights with --weights"
        )


def _accept_other_lamb(optimizer: Optimizer, state_dict: dict[str, Any]) -> Any:
    # apex and timm share the moments. Only their groups differ: timm's have more
    # settings and count steps in a tensor, which it makes of a number.
    groups = [
        {**optimizer.defaults, **group, "step": int(group.get("step", 0))}
        for group in state_dict["param_groups"]
    ]
    return {**state_dict, "param_groups": groups}


class Ranger(RAdam):
    """RAdam with Lookahead and decoupled weight decay.

    Every `LOOKAHEAD_STEPS` steps the slow weights move `LOOKAHEAD_ALPHA` of the way
    to the fast ones, which are then set to them. A parameter's state holds its slow
    weights as ``slow``.

    timm's Lookahead is another update: its slow weights start at the first
    synchronization, which therefore changes nothing, where the paper and the
    reference start them at the initial weights.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: decay rates of the averages of the gradient and of its square.
        eps: added to the square root of the second average.
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
        """Take one step of RAdam and, every `LOOKAHEAD_STEPS`, one of Lookahead."""
        trained = [
            parameter
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        # Copied before the first update and stored after it: RAdam initializes only
        # states that are empty.
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
