"""Settings are changed by name, checked by type, and survive JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ichfast.errors import IchfastError, RecipeError
from ichfast.recipes.recipe import Recipe
from ichfast.recipes.resolve import RECIPES, fast, resolve_recipe
from ichfast.recipes.settings import describe, from_dict, override, to_dict


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json(name: str) -> None:
    recipe = resolve_recipe(name)
    assert from_dict(Recipe, json.loads(json.dumps(to_dict(recipe)))) == recipe


def test_settings_change_by_name_and_nothing_else_does() -> None:
    recipe = override(
        fast(),
        [
            "train.epochs=3",
            "train.phases.0.lr=1e-4",
            "data.windows=brain",
            "data.level=512",
            "augment.zoom_focus=[0.5, 1]",
            "augment.window_jitter=7,15",
            "model.weights=12",
        ],
    )
    assert recipe.train.phases == (replace(fast().train.phases[0], lr=1e-4),)
    assert recipe.data == replace(fast().data, windows=("brain",), level=512)
    assert recipe.augment.zoom_focus == (0.5, 1.0)
    assert recipe.augment.window_jitter == (7.0, 15.0)
    assert recipe.model.weights == "12"
    assert override(recipe, ["train.epochs=null"]).train.epochs is None


def test_override_takes_the_lines_that_describe_prints() -> None:
    lines = [line.replace(" = ", "=", 1) for line in describe(fast()).splitlines()]
    assert override(resolve_recipe("exp-30"), lines[:7]).data.size == fast().data.size
    assert "train.phases.0.lr = 0.002" in describe(fast()).splitlines()


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.epohs=1", r"no such setting; did you mean train\.epochs or "),
        ("epochs=1", r"did you mean train\.epochs or train\.phases\.0\.epochs\?"),
        ("lr=1", r"did you mean train\.phases\.0\.lr\?"),
        ("batchsize=8", r"did you mean data\.batch_size\?"),
        ("colour=red", "no such setting; `ichfast recipes NAME` prints all"),
        ("train.phases.0.lr=NaN", "train.phases.0.lr: expected float, found 'NaN'"),
        ("data.neighbours=yes", "expected int, found 'yes'"),
        ("train.phases.0.betas=0.9", r"expected tuple\[float, float\], found '0.9'"),
        ("train.epochs=many", "train.epochs: expected int or null, found 'many'"),
        ("train.compile=yes", "train.compile: expected true or false, found 'yes'"),
        (
            "train.sync_batch_norm=no",
            "train.sync_batch_norm: expected true or false or null, found 'no'",
        ),
        ("train.epochs=1.5", "expected int"),
        ("train.epochs=0", "train.epochs must be at least 1"),
        (
            "model=1",
            "name one of them: model.arch, model.head, model.pretrained, ...",
        ),
        ("train.phases.0=1", r"name one of them: train\.phases\.0\.epochs"),
        ("data.size.x=3", r"did you mean data\.size"),
        ("train.phases.7.lr=3", r"did you mean train\.phases\.0\.lr\?"),
        ("model.arch=resnet", "unknown architecture 'resnet'; did you mean"),
        ("data.windows=brian", "unknown window 'brian'"),
        ("data.size", "NAME=VALUE"),
        ("model.pretrained=maybe", "yes, try or no"),
        ("folds.fold=5", "folds.fold is in 0 to 4"),
    ],
)
def test_a_wrong_assignment_is_refused_with_what_is_known(
    assignment: str, message: str
) -> None:
    with pytest.raises(IchfastError, match=message):
        override(fast(), [assignment])


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"name": 3}, "name: expected str, found 3"),
        ({"train": {"compile": 1}}, "compile: expected true or false, found 1"),
        ({"nam": "x"}, "unknown setting 'nam'; did you mean name"),
        ({"name": "x"}, "not all of Recipe"),
        ({"model": {"arch": "resnext50", "evil": 1}}, "unknown setting 'evil'"),
    ],
)
def test_settings_from_a_file_are_not_trusted(
    found: dict[str, object], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        from_dict(Recipe, found)
