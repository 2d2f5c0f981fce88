"""Optimizers, schedules and the moving average do what their papers say, exactly."""

from __future__ import annotations

import copy
import io
import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ichfast import optim
from ichfast.errors import CheckpointError, RecipeError, TrainError
from ichfast.optim import (
    OPTIMIZERS,
    Ema,
    Lamb,
    Ranger,
    Schedule,
    decay_groups,
    make_optimizer,
    nvidia_apex,
)

SETTINGS: dict[str, Any] = {
    "lr": 0.01,
    "betas": (0.95, 0.99),
    "eps": 1e-6,
    "weight_decay": 0.01,
}

every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


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
    """Take the steps, each on images that only its number decides."""
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


# ---------------------------------------------------------------------- optimizers


@every_optimizer
@pytest.mark.parametrize("num_steps_before", [1, 5, 6, 7, 13])
def test_a_resumed_optimizer_goes_on_bit_for_bit(
    name: str, num_steps_before: int
) -> None:
    model = make_model()
    optimizer = make_optimizer(name, decay_groups(model), **SETTINGS)
    train(model, optimizer, range(num_steps_before))
    saved = through_a_file(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    )
    train(model, optimizer, range(num_steps_before, 20))

    resumed = make_model()
    resumed.load_state_dict(saved["model"])
    other = make_optimizer(name, decay_groups(resumed), **SETTINGS)
    other.load_state_dict(saved["optimizer"])
    train(resumed, other, range(num_steps_before, 20))
    assert torch.equal(weights_of(resumed), weights_of(model))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("adam", lambda p: torch.optim.AdamW(p, **SETTINGS)),
        (
            "radam",
            lambda p: torch.optim.RAdam(p, decoupled_weight_decay=True, **SETTINGS),
        ),
    ],
)
def test_adam_and_radam_are_those_of_torch(
    name: str, make: Callable[[Any], Optimizer]
) -> None:
    ours, theirs = make_model(), make_model()
    train(ours, make_optimizer(name, ours.parameters(), **SETTINGS), range(20))
    train(theirs, make(theirs.parameters()), range(20))
    torch.testing.assert_close(weights_of(ours), weights_of(theirs))


def test_ranger_is_radam_that_looks_ahead_every_sixth_step() -> None:
    ours, theirs = make_model(), make_model()
    ranger = make_optimizer("ranger", ours.parameters(), **SETTINGS)
    radam = make_optimizer("radam", theirs.parameters(), **SETTINGS)
    slow = [parameter.detach().clone() for parameter in theirs.parameters()]
    for step in range(20):
        train(ours, ranger, range(step, step + 1))
        train(theirs, radam, range(step, step + 1))
        if step in (5, 11, 17):
            for slow_weights, fast_weights in zip(
                slow, theirs.parameters(), strict=True
            ):
                slow_weights += 0.5 * (fast_weights.detach() - slow_weights)
                fast_weights.data.copy_(slow_weights)
        torch.testing.assert_close(weights_of(ours), weights_of(theirs))


def test_lookahead_starts_from_the_weights_before_the_first_step() -> None:
    weight = nn.Parameter(torch.ones(3))
    ranger = Ranger([weight], lr=0.1, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.0)
    weight.grad = torch.ones(3)
    ranger.step()
    assert not torch.equal(weight, torch.ones(3))
    assert torch.equal(ranger.state[weight]["slow"], torch.ones(3))


def naive_lamb_step(
    weights: list[Tensor], grads: list[Tensor], state: dict[str, Any], decay: float
) -> None:
    """LAMB with apex's defaults, tensor by tensor."""
    (beta1, beta2), lr, eps = SETTINGS["betas"], SETTINGS["lr"], SETTINGS["eps"]
    state["step"] += 1
    norm = math.sqrt(sum(float(grad.square().sum()) for grad in grads))
    for i, (weight, whole_grad) in enumerate(zip(weights, grads, strict=True)):
        grad = whole_grad / max(norm, 1.0)
        state["m"][i] = beta1 * state["m"][i] + (1 - beta1) * grad
        state["v"][i] = beta2 * state["v"][i] + (1 - beta2) * grad**2
        mean = state["m"][i] / (1 - beta1 ** state["step"])
        square = state["v"][i] / (1 - beta2 ** state["step"])
        update = mean / (square.sqrt() + eps) + decay * weight
        ratio = weight.norm() / update.norm() if decay and weight.norm() > 0 else 1.0
        weight -= lr * ratio * update


@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("grad_scale", [0.01, 10.0])
def test_lamb_equals_the_naive_one(decay: float, grad_scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    params = [
        nn.Parameter(torch.randn(5, 3, generator=generator)),
        nn.Parameter(torch.zeros(7)),
    ]
    lamb = Lamb(params, **{**SETTINGS, "weight_decay": decay})
    slow = [parameter.detach().clone() for parameter in params]
    zeros = [torch.zeros_like(weight) for weight in slow]
    state = {"step": 0, "m": list(zeros), "v": list(zeros)}
    for _ in range(8):
        grads = [grad_scale * torch.randn(w.shape, generator=generator) for w in slow]
        for parameter, grad in zip(params, grads, strict=True):
            parameter.grad = grad.clone()
        lamb.step()
        naive_lamb_step(slow, grads, state, decay)
    for parameter, weight in zip(params, slow, strict=True):
        torch.testing.assert_close(parameter.detach(), weight, rtol=1e-4, atol=1e-6)


@every_optimizer
def test_an_optimizer_lowers_the_loss(name: str) -> None:
    model = make_model()
    images = torch.randn(7, 1, 5, 5)
    before = model(images).square().mean().item()
    train(model, make_optimizer(name, decay_groups(model), **SETTINGS), range(40))
    assert model(images).square().mean().item() < 0.7 * before


@every_optimizer
def test_weight_decay_is_decoupled_from_the_gradient(name: str) -> None:
    weight, bias = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    groups: list[dict[str, Any]] = [
        {"params": [weight]},
        {"params": [bias], "weight_decay": 0.0},
    ]
    settings = {**SETTINGS, "lr": 0.1, "weight_decay": 0.5}
    optimizer = make_optimizer(name, groups, **settings)
    for parameter in (weight, bias):
        parameter.grad = torch.zeros(3)
    optimizer.step()
    # LAMB scales the update, here the decay alone, to the length of the weights.
    expected = 0.9 if name == "lamb" else 1 - 0.1 * 0.5
    torch.testing.assert_close(weight.detach(), torch.full((3,), expected))
    assert torch.equal(bias, torch.ones(3))


def test_batch_norm_and_biases_do_not_decay_and_frozen_weights_stay_out() -> None:
    model = make_model()
    decayed, spared = decay_groups(model)
    assert [tuple(p.shape) for p in decayed["params"]] == [(5, 1, 3, 3), (6, 45)]
    assert [p.numel() for p in spared["params"]] == [5, 5, 6]
    assert spared["weight_decay"] == 0
    assert "weight_decay" not in decayed
    model[0].requires_grad_(False)  # type: ignore[index]  # noqa: FBT003
    assert [len(group["params"]) for group in decay_groups(model)] == [1, 3]
    assert decay_groups(model.requires_grad_(requires_grad=False)) == []


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(TrainError, match="no parameter requires a gradient"):
        make_optimizer("adam", [], **SETTINGS)


def test_an_unknown_optimizer_names_the_known() -> None:
    with pytest.raises(RecipeError, match="'sgd'; known are adam, radam, ranger, lamb"):
        make_optimizer("sgd", make_model().parameters(), **SETTINGS)


# ---------------------------------------------------------------------------- apex


def write_module(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to put modules in; none of them stays imported."""
    for name in [m for m in sys.modules if m.split(".")[0] in ("apex", "amp_C")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def forget(*names: str) -> None:
    for name in names:
        sys.modules.pop(name, None)


def test_the_other_apex_of_pypi_is_not_even_imported(site: Path) -> None:
    write_module(site / "apex" / "__init__.py", "raise SystemExit('imported')")
    assert nvidia_apex() is None
    assert "apex" not in sys.modules


def test_an_apex_that_does_not_load_is_left_alone(
    site: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_module(site / "amp_C.py", "")
    write_module(site / "apex" / "__init__.py", "")
    assert nvidia_apex() is None
    assert "does not load" in caplog.text
    forget("apex")


def test_the_apex_of_nvidia_is_found(site: Path) -> None:
    write_module(site / "amp_C.py", "")
    write_module(site / "apex" / "__init__.py", "")
    write_module(site / "apex" / "optimizers.py", "FusedLAMB = 'the real one'")
    found = nvidia_apex()
    assert found is not None
    assert found.FusedLAMB == "the real one"
    forget("apex", "apex.optimizers")


class FusedAdam(torch.optim.Adam):
    """Counts its steps in the group, as apex's does."""

    def state_dict(self) -> dict[str, Any]:
        """As apex's: the step stands in the group."""
        state_dict = super().state_dict()
        for group in state_dict["param_groups"]:
            group["step"] = 3
        return state_dict


@pytest.mark.parametrize("name", ["adam", "lamb"])
def test_apex_runs_on_cuda_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    apex = SimpleNamespace(FusedAdam=FusedAdam, FusedLAMB=FusedAdam)
    monkeypatch.setattr(optim, "nvidia_apex", lambda: apex)
    on_cuda, says = optim._find_implementation(name, torch.device("cuda"))
    on_cpu, _ = optim._find_implementation(name, torch.device("cpu"))
    assert on_cuda is FusedAdam
    assert "NVIDIA apex Fused" in says
    assert on_cpu is not FusedAdam


@pytest.mark.parametrize("written_by", ["apex", "torch"])
def test_adam_refuses_the_state_of_the_other_adam(
    written_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(implementation: str) -> tuple[nn.Module, Optimizer]:
        model = make_model()
        apex = ModuleType("apex.optimizers")
        apex.FusedAdam = FusedAdam  # type: ignore[attr-defined]
        device = torch.device("cuda" if implementation == "apex" else "cpu")
        find = optim._find_implementation
        with monkeypatch.context() as patch:
            patch.setattr(optim, "nvidia_apex", lambda: apex)
            patch.setattr(
                optim, "_find_implementation", lambda name, _: find(name, device)
            )
            return model, make_optimizer("adam", model.parameters(), **SETTINGS)

    model, writer = make(written_by)
    train(model, writer, range(3))
    make(written_by)[1].load_state_dict(writer.state_dict())
    reader = make("torch" if written_by == "apex" else "apex")[1]
    with pytest.raises(
        CheckpointError, match=f"the checkpoint's Adam is {written_by}'s"
    ):
        reader.load_state_dict(writer.state_dict())


@every_optimizer
def test_the_log_says_which_implementation_runs(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        make_optimizer(name, make_model().parameters(), **SETTINGS)
    assert f"optimizer {name} runs as " in caplog.text


# ----------------------------------------------------------------------- schedules


def make_schedule(**changes: Any) -> Schedule:
    settings = {"kind": "one-cycle", "lr": 1.0, "num_steps": 100, "start": 0.3}
    return Schedule(**{**settings, **changes})


@pytest.mark.parametrize(
    ("step", "lr", "beta1"),
    [
        (0, 1 / 25, 0.95),
        (15, (1 / 25 + 1) / 2, 0.90),  # half way up
        (30, 1.0, 0.85),  # the peak
        (65, (1 + 1 / 25e4) / 2, 0.90),  # half way down
        (100, 1 / 25e4, 0.95),
    ],
)
def test_one_cycle_goes_up_and_down_and_momentum_the_other_way(
    step: int, lr: float, beta1: float
) -> None:
    assert make_schedule().at(step) == pytest.approx((lr, beta1))


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (0, 1.0),
        (6, 1.0),
        (7, 1.0),  # int(11 x 0.7) = 7 flat steps, then the cosine begins at its top
        (8, (1 + math.cos(math.pi / 4)) / 2),
        (9, 0.5),
        (10, (1 + math.cos(3 * math.pi / 4)) / 2),
        (11, 0.0),
    ],
)
def test_flat_cosine_is_flat_and_then_falls_to_zero(step: int, lr: float) -> None:
    schedule = make_schedule(kind="flat-cosine", num_steps=11, start=0.7)
    found, beta1 = schedule.at(step)
    assert found == pytest.approx(lr, abs=1e-12)
    assert beta1 is None


@pytest.mark.parametrize(("step", "lr"), [(0, 1.0), (2, 0.75), (3, 0.5), (6, 0.0)])
def test_cosine_falls_from_the_first_step(step: int, lr: float) -> None:
    schedule = make_schedule(kind="cosine", num_steps=6, start=0.0)
    assert schedule.at(step)[0] == pytest.approx(lr, abs=1e-12)


@pytest.mark.parametrize("kind", ["one-cycle", "flat-cosine"])
@pytest.mark.parametrize("start", [0.0, 0.3, 0.999])
def test_a_phase_of_one_step_starts_at_the_peak(kind: str, start: float) -> None:
    assert make_schedule(kind=kind, num_steps=1, start=start).at(0)[0] == 1.0


def test_a_schedule_sets_every_group_and_touches_beta1_only_when_it_says_so() -> None:
    optimizer = make_optimizer("ranger", decay_groups(make_model()), **SETTINGS)
    make_schedule().apply(optimizer, 30)
    assert [g["lr"] for g in optimizer.param_groups] == [1.0, 1.0]
    assert [g["betas"] for g in optimizer.param_groups] == [(0.85, 0.99)] * 2
    make_schedule(kind="flat-cosine", lr=0.2).apply(optimizer, 0)
    assert [g["lr"] for g in optimizer.param_groups] == [0.2, 0.2]
    assert [g["betas"] for g in optimizer.param_groups] == [(0.85, 0.99)] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "linear"}, "known are one-cycle, flat-cosine, cosine"),
        ({"num_steps": 0}, "1 step or more, got 0"),
        ({"start": 1.0}, "at 1.0 of the steps"),
        ({"start": math.nan}, "at nan of the steps"),
        ({"kind": "cosine"}, "0 for cosine"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        make_schedule(**changes)


# ----------------------------------------------------------------------------- ema


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


def test_ema_is_a_frozen_model_in_evaluation_mode_and_leaves_the_other_alone() -> None:
    model = make_model().train()
    ema = Ema(model, decay=0.9)
    assert not ema.model.training
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_a_resumed_ema_goes_on_bit_for_bit() -> None:
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
