"""The recipes equal the reference's experiments, field by field and step by step."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from ichfast.augment.config import AugmentConfig
from ichfast.loading.splits import FOLD_SEED, NUM_FOLDS
from ichfast.models.build import body_and_head, build_model
from ichfast.recipes.reference import EXPERIMENTS
from ichfast.recipes.settings import to_dict
from ichfast.runs.folder import default_run_dir
from ichfast.training.config import Phase
from ichfast.training.schedules import Schedule
from tests.augment.test_config import NOTEBOOKS

BATCHES = 7
"""Batches in an epoch: a prime, so the schedule's parts have uneven lengths."""

INPUTS = {
    "exp-00": ("efficientnet-b0", "linear", 224, 512, "imagenet"),
    "exp-10": ("xresnet50-attn", "linear", 224, 384, "data"),
    "exp-10-tfl": ("xresnet50-attn", "linear", 512, 64, "data"),
    "exp-10-mixup": ("xresnet50-attn", "linear", 224, 384, "data"),
    "exp-20": ("res2net50", "linear", 224, 384, "data"),
    "exp-30": ("resnext50", "concat-pool", 224, 512, "imagenet"),
}
"""Arch, head, size, batch size, normalization."""

Phases = list[tuple[int, float, float, float | str, bool]]
"""Epochs, lr, start, beta1, frozen. ``one-cycle`` means Adam, a beta1 Ranger."""

README: dict[str, Phases] = {
    "exp-00": [(5, 1e-2 / 3, 0.3, "one-cycle", True), (20, 1e-3 / 8, 0.7, 0.95, False)],
    "exp-10": [(20, 1e-3 / 8, 0.7, 0.95, False)],
    "exp-10-tfl": [(5, 1e-3, 0.7, 0.95, False)],
    "exp-10-mixup": [
        (25, 1e-2 / 2, 0.7, 0.95, False),
        (30, 1e-3 / 2, 0.15, "one-cycle", False),
    ],
    "exp-20": [(20, 1e-3 / 8, 0.7, 0.92, False)],
    "exp-30": [(10, 1e-2, 0.3, "one-cycle", True), (30, 1e-4, 0.7, 0.92, False)],
}
NOTEBOOK: dict[str, Phases] = {
    "exp-00": [
        (5, 1e-2 / 3, 0.3, "one-cycle", False),
        (20, 1e-3 / 8, 0.7, 0.95, False),
    ],
    "exp-10": [(20, 1e-2 / 3, 0.7, 0.95, False)],
    "exp-10-tfl": README["exp-10-tfl"],
    "exp-10-mixup": README["exp-10-mixup"],
    "exp-20": [(20, 1e-2 / 3, 0.7, 0.92, False)],
    "exp-30": [(10, 1e-2, 0.3, "one-cycle", True), (30, 1e-4, 0.68, 0.92, False)],
}
DEFAULTS = {
    "flip_probability": 0.5,
    "affine_probability": 0.75,
    "max_rotation_deg": 10.0,
    "max_zoom": 1.1,
    "max_warp": 0.2,
    "max_lighting": 0.2,
    "lighting_probability": 0.75,
}
"""fastai v1's `get_transforms()`."""

every_experiment = pytest.mark.parametrize("name", EXPERIMENTS)


def without_notebook(name: str) -> str:
    return name.removesuffix("-notebook")


def test_every_experiment_is_there_twice() -> None:
    assert list(EXPERIMENTS) == [
        name for each in INPUTS for name in (each, f"{each}-notebook")
    ]
    assert [make().name for make in EXPERIMENTS.values()] == list(EXPERIMENTS)


@every_experiment
def test_network_and_input_are_those_of_the_reference(name: str) -> None:
    recipe = EXPERIMENTS[name]()
    arch, head, size, batch_size, normalize = INPUTS[without_notebook(name)]
    windows = ("brain",)
    if name != without_notebook(name):
        windows = ("own",)
        normalize = "imagenet" if without_notebook(name) == "exp-30" else "none"
    data = recipe.data
    assert (recipe.model.arch, recipe.model.head) == (arch, head)
    assert (data.size, data.batch_size, data.level) == (size, batch_size, 512)
    assert (data.normalize, data.windows) == (normalize, windows)
    assert not data.neighbours
    assert not data.square_pixels
    from_imagenet = without_notebook(name) in ("exp-00", "exp-30")
    assert recipe.model.pretrained == ("try" if from_imagenet else "no")


@every_experiment
def test_augmentation_is_that_of_the_reference(name: str) -> None:
    wanted = AugmentConfig(**{**DEFAULTS, **NOTEBOOKS.get(without_notebook(name), {})})
    assert EXPERIMENTS[name]().augment == wanted


@every_experiment
def test_phases_are_those_of_the_reference(name: str) -> None:
    recipe = EXPERIMENTS[name]()
    experiment = without_notebook(name)
    expected = (README if name == experiment else NOTEBOOK)[experiment]
    for phase, (epochs, lr, start, kind, freeze) in zip(
        recipe.train.phases, expected, strict=True
    ):
        one_cycle = kind == "one-cycle"
        assert phase == Phase(
            epochs=epochs,
            lr=lr,
            start=start,
            schedule="one-cycle" if one_cycle else "flat-cosine",
            optimizer="adam" if one_cycle else "ranger",
            betas=(0.9 if one_cycle else float(kind), 0.99),
            eps=1e-8 if one_cycle else 1e-6,
            weight_decay=1e-2,
            freeze_body=freeze,
            mixup_alpha=0.4 if "mixup" in name else 0.0,
        )
    assert (recipe.train.any_weight, recipe.train.ema_decay) == (1.0, 0.0)


@every_experiment
def test_the_first_of_five_slice_folds_validates(name: str) -> None:
    folds = EXPERIMENTS[name]().folds
    assert (folds.kind, folds.num_folds, folds.fold, folds.seed) == ("slice", 5, 0, 42)
    assert (NUM_FOLDS, FOLD_SEED) == (5, 42)


@pytest.mark.parametrize("suffix", ["", "-notebook"])
def test_the_run_at_512_starts_where_the_run_at_224_ends(suffix: str) -> None:
    first = default_run_dir(EXPERIMENTS[f"exp-10{suffix}"]())
    second = EXPERIMENTS[f"exp-10-tfl{suffix}"]()
    assert Path(second.model.weights) == first / "best.pt"


def test_a_notebook_differs_in_nothing_else() -> None:
    for name in INPUTS:
        readme = to_dict(EXPERIMENTS[name]())
        notebook = to_dict(EXPERIMENTS[f"{name}-notebook"]())
        other = {key for key in readme if readme[key] != notebook[key]}
        assert other <= {"name", "data", "train"} | (
            {"model"} if name == "exp-10-tfl" else set()
        )


# --------------------------------------------------------------------------- curves


def half_cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


@every_experiment
def test_rate_and_momentum_follow_the_formulas_around_the_peak(name: str) -> None:
    for phase in EXPERIMENTS[name]().train.phases:
        num_steps = phase.epochs * BATCHES
        curve = Schedule(
            kind=phase.schedule, lr=phase.lr, num_steps=num_steps, start=phase.start
        )
        peak, last = int(num_steps * phase.start), num_steps - 1
        fallen = (last - peak) / (num_steps - peak)
        if phase.schedule == "one-cycle":
            assert curve.at(0) == pytest.approx((phase.lr / 25, 0.95))
            assert curve.at(peak) == pytest.approx((phase.lr, 0.85))
            before, after = curve.at(peak - 1), curve.at(peak + 1)
            assert before[0] < phase.lr > after[0]
            assert curve.at(last) == pytest.approx(
                (
                    half_cosine(phase.lr, phase.lr / 25e4, fallen),
                    half_cosine(0.85, 0.95, fallen),
                )
            )
        else:
            assert {curve.at(step) for step in range(peak + 1)} == {(phase.lr, None)}
            assert curve.at(peak + 1)[0] < phase.lr
            assert curve.at(last) == pytest.approx(
                (half_cosine(phase.lr, 0.0, fallen), None)
            )


@pytest.mark.parametrize("name", ["exp-00", "exp-30"])
def test_a_frozen_phase_trains_head_and_batch_norm_only(name: str) -> None:
    recipe = EXPERIMENTS[name]()
    model = build_model(recipe.model.arch, head=recipe.model.head)
    body, trained = body_and_head(model)
    assert recipe.train.phases[0].freeze_body
    convs = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    body_ids = {id(p) for p in body}
    assert all(id(conv.weight) in body_ids for conv in convs)
    assert sum(p.numel() for p in trained) < sum(p.numel() for p in body)
