"""Recipes resolve to settings that fit arch, size and device, and are shown truly."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ichfast.augment.config import PRESETS
from ichfast.errors import RecipeError
from ichfast.recipes.reference import PUBLISHED
from ichfast.recipes.resolve import (
    RECIPES,
    fast,
    fitting_batch_size,
    format_recipe,
    format_recipes,
    resolve_recipe,
)
from ichfast.recipes.settings import override


def test_the_table_shows_the_published_results_beside_each_recipe() -> None:
    table = format_recipes().splitlines()
    (exp_30,) = [line for line in table if line.startswith("exp-30 ")]
    for figure in (
        "resnext50",
        "224",
        "0.04505",
        "0.05493",
        "0.9806",
        "0.095",
        "0.079",
    ):
        assert figure in exp_30
    assert [line.split()[0] for line in table[1 : len(RECIPES) + 1]] == list(RECIPES)


def test_a_notebook_has_the_results_of_its_experiment() -> None:
    table = format_recipes().splitlines()
    results = {line.split()[0]: line.split()[5:] for line in table[1:14]}
    assert results["exp-20-notebook"] == results["exp-20"] != results["exp-10"]
    assert set(results["fast"]) == {"-"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_text_of_a_recipe_gives_the_published_results(name: str) -> None:
    text = " ".join(format_recipe(name).replace("#", "").split())
    published = PUBLISHED[name]
    for label, value, digits in (
        ("train loss", published.train_loss, 6),
        ("valid loss", published.valid_loss, 6),
        ("accuracy", published.accuracy, 6),
        ("leaderboard", published.leaderboard, 3),
        ("with TTA", published.leaderboard_tta, 3),
    ):
        figure = f"{value:.{digits}f}".removeprefix("0")
        assert f"{label} {figure}" in text


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_in_full_is_comments_and_then_its_settings(name: str) -> None:
    comments, _, settings = format_recipe(name).partition("\n\n")
    assert all(line.startswith("#") for line in comments.splitlines())
    lines = [line.replace(" = ", "=", 1) for line in settings.splitlines()]
    assert override(resolve_recipe(name), lines) == resolve_recipe(name)
    assert lines[0] == f'name="{name}"'


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(RecipeError, match="unknown recipe"):
        format_recipe("exp-99")


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"did you mean exp-30\? known are exp-00, "):
        resolve_recipe("exp-3")


def test_fast_fits_the_arch_the_size_and_the_device() -> None:
    on_gpu = resolve_recipe(None, arch="res2net50", size=512)
    on_cpu = resolve_recipe(None, arch="res2net50", size=512, device_type="cpu")
    assert on_gpu.model.arch == "res2net50"
    assert (on_gpu.data.size, on_gpu.data.batch_size) == (512, 24)
    assert on_cpu.data.batch_size < 8
    assert on_cpu.train.phases[0].lr < on_gpu.train.phases[0].lr


def test_fast_starts_from_imagenet_where_there_are_weights_and_a_gpu() -> None:
    assert fast("resnext50").model.pretrained == "try"
    assert fast("xresnet50-attn").model.pretrained == "no"
    assert fast("resnext50", device_type="cpu").model.pretrained == "no"


def test_another_arch_keeps_the_model_settings_that_fit_it() -> None:
    other = resolve_recipe("exp-30", arch="efficientnet-b0").model
    assert (other.arch, other.head, other.pretrained) == (
        "efficientnet-b0", "linear", "try"
    )  # fmt: skip
    assert resolve_recipe("exp-30", arch="xresnet50-attn").model.pretrained == "no"
    assert resolve_recipe("exp-10-tfl", arch="res2net50").model.weights == ""
    with pytest.raises(RecipeError, match="did you mean resnext50"):
        resolve_recipe("exp-30", arch="resnext")


def test_a_batch_shrinks_with_the_square_of_the_size() -> None:
    fitted = fitting_batch_size(384, made_for=224, size=512, device_type="cuda")
    assert fitted == 384 * 224**2 // 512**2
    unchanged = fitting_batch_size(64, made_for=512, size=224, device_type="cuda")
    assert unchanged == 64


def test_the_phases_keep_their_proportion_when_the_epochs_change() -> None:
    def epochs(recipe: str, count: int) -> list[int]:
        changed = resolve_recipe(recipe, assignments=[f"train.epochs={count}"])
        return [phase.epochs for phase in changed.train.planned_phases()]

    assert epochs("exp-00", 25) == [5, 20]
    assert epochs("exp-00", 50) == [10, 40]
    assert epochs("exp-00", 5) == [1, 4]
    assert epochs("exp-00", 1) == [1]
    assert epochs("exp-10-mixup", 11) == [5, 6]


@pytest.mark.parametrize("name", ["none", "light", "fastai", "exp-10-mixup", "exp-30"])
def test_an_augmentation_is_chosen_by_name_and_changed_from_there(name: str) -> None:
    recipe = resolve_recipe(
        "fast", assignments=[f"augment={name}", "augment.max_shift=0.1"]
    )
    assert recipe.augment == replace(PRESETS[name], max_shift=0.1)


def test_a_reference_recipe_augments_as_the_preset_of_its_name() -> None:
    for recipe, name in (
        ("exp-00", "fastai"),
        ("exp-10-mixup", "exp-10-mixup"),
        ("exp-30", "exp-30"),
    ):
        assert resolve_recipe(recipe).augment == PRESETS[name]


def test_an_unknown_augmentation_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"did you mean exp-30\? known are none, "):
        resolve_recipe("fast", assignments=["augment=exp-3"])


@pytest.mark.parametrize("seed", ["train.seed", "folds.seed"])
def test_a_negative_seed_is_refused(seed: str) -> None:
    resolve_recipe("fast", assignments=[f"{seed}=0"])
    with pytest.raises(RecipeError, match=rf"{seed} .* got -1"):
        resolve_recipe("fast", assignments=[f"{seed}=-1"])
