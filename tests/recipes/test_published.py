"""The recipes after published work have its settings, and tell its results."""

from __future__ import annotations

import pytest
import timm

from ichfast.recipes.resolve import format_recipe, resolve_recipe
from ichfast.training.config import TrainConfig
from ichfast.training.step import Stepper
from tests.training.tiny_trainer import CPU, TinyNet

PUBLISHED = {
    "slab-maxvit-512": ("AUROC of any of .9808", ".9828", ".954 to .923", ".9762"),
    "wsl-resnext101-480": ("2nd place", ".04607", ".04732", ".06336", ".05780"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_text_gives_the_source_and_its_results(name: str) -> None:
    text = " ".join(format_recipe(name).replace("#", "").split())
    for words in ("Source: ", *PUBLISHED[name]):
        assert words in text


def rates(train: TrainConfig, num_steps: int) -> list[float]:
    """Learning rates of the optimizer in each step of the only phase."""
    (phase,) = train.phases
    stepper = Stepper(TinyNet(), train, amp=CPU)
    stepper.start_phase(phase, num_steps=num_steps)
    found = []
    for step in range(num_steps):
        stepper.update(step)
        found.append(stepper.learning_rate)
    return found


def test_the_slabs_have_nine_channels_and_a_warm_up() -> None:
    recipe = resolve_recipe("slab-maxvit-512")
    assert (recipe.data.num_channels, recipe.data.size) == (9, 512)
    assert (recipe.data.batch_size, recipe.train.phases[0].epochs) == (64, 3)
    rate_T = rates(recipe.train, 1000)
    assert rate_T[50] == max(rate_T) == 3e-4
    assert rate_T[24] == pytest.approx(25 / 51 * 3e-4)
    assert 1e-6 < rate_T[-1] < 1.01e-6


def test_the_2nd_places_rate_is_constant() -> None:
    recipe = resolve_recipe("wsl-resnext101-480")
    assert recipe.data.windows == ("brain", "subdural", "soft")
    assert (recipe.data.batch_size, recipe.train.phases[0].epochs) == (64, 3)
    assert set(rates(recipe.train, 30)) == {2e-5}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_weights_are_published_by_timm(name: str) -> None:
    arch = resolve_recipe(name).model.arch.removeprefix("timm:")
    assert arch in timm.list_pretrained()
