"""What a reader is shown of the recipes is what the recipes are."""

from __future__ import annotations

import pytest

from ichfast.catalogue import format_recipe, format_recipes
from ichfast.errors import RecipeError
from ichfast.published import PUBLISHED
from ichfast.recipes.resolve import RECIPES, resolve_recipe
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
def test_a_recipes_text_gives_the_published_figures(name: str) -> None:
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
