"""Optimizers compute what their papers say, and continue from saved states."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from ichfast.errors import CheckpointError, RecipeError, TrainError
from ichfast.training import optimizers
from ichfast.training.optimizers import (
    OPTIMIZERS,
    Ranger,
    decay_groups,
    make_optimizer,
    nvidia_apex,
)
from tests.models.few_weights import (
    SETTINGS,
    make_model,
    through_a_file,
    train,
    weights_of,
)
from tests.training.reference_optimizers import (
    ReferenceAdamW,
    ReferenceLamb,
    ReferenceOptimizer,
    ReferenceRAdam,
    ReferenceRanger,
)

every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


# ---------------------------------------------------------------------- optimizers


@every_optimizer
@pytest.mark.parametrize("num_steps_before", [1, 5, 6, 7, 13])
def test_a_resumed_optimizer_continues_bit_for_bit(
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
    ("name", "reference_class"),
    [
        ("adam", ReferenceAdamW),
        ("radam", ReferenceRAdam),
        ("ranger", ReferenceRanger),
        ("lamb", ReferenceLamb),
    ],
)
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("grad_scale", [0.01, 10.0])
def test_an_optimizer_equals_the_reference_of_its_paper(
    name: str,
    reference_class: type[ReferenceOptimizer],
    decay: float,
    grad_scale: float,
) -> None:
    generator = torch.Generator().manual_seed(0)
    settings = {**SETTINGS, "weight_decay": decay}
    params = [
        nn.Parameter(torch.randn(5, 3, generator=generator)),
        nn.Parameter(torch.zeros(7)),
    ]
    optimizer = make_optimizer(name, params, **settings)
    reference = reference_class(weights=list(params), **settings)
    for _ in range(20):  # RAdam rectifies from step 6 on; Lookahead synchronizes thrice
        grads = [grad_scale * torch.randn(p.shape, generator=generator) for p in params]
        for parameter, grad in zip(params, grads, strict=True):
            parameter.grad = grad.clone()
        optimizer.step()
        reference.step(grads)
        for parameter, weight in zip(params, reference.weights, strict=True):
            torch.testing.assert_close(
                parameter.detach(), weight.float(), rtol=1e-4, atol=1e-6
            )


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


def test_batch_norm_and_biases_do_not_decay_and_frozen_weights_are_left_out() -> None:
    model = make_model()
    decayed, exempt = decay_groups(model)
    assert [tuple(p.shape) for p in decayed["params"]] == [(5, 1, 3, 3), (6, 45)]
    assert [p.numel() for p in exempt["params"]] == [5, 5, 6]
    assert exempt["weight_decay"] == 0
    assert "weight_decay" not in decayed
    model[0].requires_grad_(False)  # type: ignore[index]  # noqa: FBT003
    assert [len(group["params"]) for group in decay_groups(model)] == [1, 3]
    assert decay_groups(model.requires_grad_(requires_grad=False)) == []


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(TrainError, match="no parameter requires a gradient"):
        make_optimizer("adam", [], **SETTINGS)


def test_an_unknown_optimizer_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="'sgd'; known are adam, radam, ranger, lamb"):
        make_optimizer("sgd", make_model().parameters(), **SETTINGS)


# ---------------------------------------------------------------------------- apex


def write_module(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for modules on the import path; none of them stays imported."""
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
    """Counts its steps in the group, as that of apex does."""

    def state_dict(self) -> dict[str, Any]:
        """Put the step into the group."""
        state_dict = super().state_dict()
        for group in state_dict["param_groups"]:
            group["step"] = 3
        return state_dict


@pytest.mark.parametrize("name", ["adam", "lamb"])
def test_apex_runs_on_cuda_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    apex = SimpleNamespace(FusedAdam=FusedAdam, FusedLAMB=FusedAdam)
    monkeypatch.setattr(optimizers, "nvidia_apex", lambda: apex)
    on_cuda, runs_as = optimizers._find_implementation(name, torch.device("cuda"))
    on_cpu, _ = optimizers._find_implementation(name, torch.device("cpu"))
    assert on_cuda is FusedAdam
    assert "NVIDIA apex Fused" in runs_as
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
        find = optimizers._find_implementation
        with monkeypatch.context() as patch:
            patch.setattr(optimizers, "nvidia_apex", lambda: apex)
            patch.setattr(
                optimizers, "_find_implementation", lambda name, _: find(name, device)
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


APEX_LAMB = (
    "params", "lr", "betas", "eps", "weight_decay", "bias_correction",
    "grad_averaging", "max_grad_norm", "step",
)  # fmt: skip
"""What a parameter group of apex's FusedLAMB holds."""


def test_lamb_continues_from_the_state_of_apex() -> None:
    model, resumed = make_model(), make_model()
    writer = make_optimizer("lamb", decay_groups(model), **SETTINGS)
    train(model, writer, range(3))
    state = writer.state_dict()
    for group in state["param_groups"]:
        for name in group.keys() - APEX_LAMB:
            del group[name]
        group["step"] = 3
    resumed.load_state_dict(model.state_dict())
    reader = make_optimizer("lamb", decay_groups(resumed), **SETTINGS)
    reader.load_state_dict(through_a_file(state))
    train(model, writer, range(3, 9))
    train(resumed, reader, range(3, 9))
    assert torch.equal(weights_of(resumed), weights_of(model))


class FusedLAMB(Optimizer):
    """Takes apex's settings and no steps."""

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, settings)


def test_apex_reads_the_steps_of_lamb_as_a_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model()
    writer = make_optimizer("lamb", decay_groups(model), **SETTINGS)
    train(model, writer, range(3))
    monkeypatch.setattr(
        optimizers, "_find_implementation", lambda *_: (FusedLAMB, "apex")
    )
    apex = make_optimizer("lamb", decay_groups(make_model()), **SETTINGS)
    apex.load_state_dict(through_a_file(writer.state_dict()))
    steps = [group["step"] for group in apex.param_groups]
    assert steps == [3, 3]
    assert all(type(step) is int for step in steps)


@every_optimizer
def test_the_log_says_which_implementation_runs(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        make_optimizer(name, make_model().parameters(), **SETTINGS)
    assert f"optimizer {name} runs as " in caplog.text


def test_lookahead_starts_from_the_weights_before_the_first_step() -> None:
    weight = nn.Parameter(torch.ones(3))
    ranger = Ranger([weight], lr=0.1, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.0)
    weight.grad = torch.ones(3)
    ranger.step()
    assert not torch.equal(weight, torch.ones(3))
    assert torch.equal(ranger.state[weight]["slow"], torch.ones(3))


def test_the_two_thresholds_of_the_reference_differ_in_one_step_only() -> None:
    # Its Ranger rectifies above a length of 5, and of 4 in the notebook of exp-30.
    longest = 2 / (1 - 0.99) - 1
    lengths = [
        longest - 2 * step * 0.99**step / (1 - 0.99**step) for step in range(1, 100)
    ]
    assert [step for step, length in enumerate(lengths, 1) if 4 < length <= 5] == [5]
