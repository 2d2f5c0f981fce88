"""Learning rate and momentum follow fastai v1's formulas, step by step."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ichfast.errors import RecipeError
from ichfast.training.optimizers import decay_groups, make_optimizer
from ichfast.training.schedules import Schedule
from tests.models.few_weights import SETTINGS, make_model


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
def test_one_cycle_rises_and_falls_and_momentum_falls_and_rises(
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


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (0, 0.2),  # four steps up a straight line, which reaches the peak in a fifth
        (1, 0.4),
        (3, 0.8),
        (4, 1.0),
        (6, 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2),
        (8, 0.55),
        (12, 0.1),
    ],
)
def test_warm_up_cosine_rises_in_a_line_and_falls_to_its_final_rate(
    step: int, lr: float
) -> None:
    schedule = make_schedule(
        kind="warm-up-cosine", num_steps=12, start=1 / 3, final_lr=0.1
    )
    found, beta1 = schedule.at(step)
    assert found == pytest.approx(lr, abs=1e-12)
    assert beta1 is None


def test_a_cosine_to_its_own_peak_is_constant() -> None:
    schedule = make_schedule(kind="cosine", lr=2e-5, start=0.0, final_lr=2e-5)
    assert {schedule.at(step) for step in range(101)} == {(2e-5, None)}


@pytest.mark.parametrize("kind", ["one-cycle", "flat-cosine", "warm-up-cosine"])
@pytest.mark.parametrize("start", [0.0, 0.3, 0.999])
def test_a_phase_of_one_step_starts_at_the_peak(kind: str, start: float) -> None:
    assert make_schedule(kind=kind, num_steps=1, start=start).at(0)[0] == 1.0


def test_a_schedule_sets_every_group_and_beta1_only_in_one_cycle() -> None:
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
        ({"kind": "warm-up-cosine", "final_lr": 1.1}, "rate of 1.1; give 0 to 1.0"),
        ({"kind": "flat-cosine", "final_lr": -1.0}, "a learning rate of -1.0"),
        ({"final_lr": 0.1}, "one-cycle cannot end at a learning rate of 0.1"),
    ],
)
def test_a_schedule_out_of_range_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        make_schedule(**changes)
