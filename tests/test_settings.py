"""Settings are changed by name, checked by type, and survive JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ichfast.augment import PRESETS
from ichfast.errors import IchfastError, RecipeError
from ichfast.recipes import (
    RECIPES,
    Recipe,
    fast,
    fitting_batch_size,
    format_recipes,
    resolve_recipe,
)
from ichfast.settings import describe, from_dict, override, to_dict


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
            "model.weights=12",
        ],
    )
    assert recipe.train.phases == (replace(fast().train.phases[0], lr=1e-4),)
    assert recipe.data == replace(fast().data, windows=("brain",), level=512)
    assert recipe.augment.zoom_focus == (0.5, 1.0)
    assert recipe.model.weights == "12"
    assert override(recipe, ["train.epochs=null"]).train.epochs is None


def test_what_describe_prints_is_what_override_takes() -> None:
    lines = [line.replace(" = ", "=", 1) for line in describe(fast()).splitlines()]
    assert override(resolve_recipe("exp-30"), lines[:7]).data.size == fast().data.size
    assert "train.phases.0.lr = 0.002" in describe(fast()).splitlines()


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.epohs=1", "unknown setting 'epohs'; did you mean epochs"),
        ("train.epochs=many", "train.epochs: expected int .*, found 'many'"),
        ("train.epochs=1.5", "expected int"),
        ("train.epochs=0", "train.epochs must be at least 1"),
        ("train=1", "train has settings of its own"),
        ("data.size.x=3", "size has no parts"),
        ("train.phases.7.lr=3", "a number from 0 to 0, found '7'"),
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


@pytest.mark.parametrize("name", ["none", "light", "fastai", "exp-10-mixup", "exp-30"])
def test_an_augmentation_is_chosen_by_name_and_changed_from_there(name: str) -> None:
    recipe = resolve_recipe(
        "fast", assignments=[f"augment={name}", "augment.max_shift=0.1"]
    )
    assert recipe.augment == replace(PRESETS[name], max_shift=0.1)


def test_the_reference_recipes_augment_as_the_preset_of_their_name_does() -> None:
    for recipe, name in (
        ("exp-00", "fastai"),
        ("exp-10-mixup", "exp-10-mixup"),
        ("exp-30", "exp-30"),
    ):
        assert resolve_recipe(recipe).augment == PRESETS[name]


def test_an_unknown_augmentation_is_refused_with_those_there_are() -> None:
    with pytest.raises(RecipeError, match=r"did you mean exp-30\? known are none, "):
        resolve_recipe("fast", assignments=["augment=exp-3"])


def test_unknown_recipes_list_the_known() -> None:
    with pytest.raises(RecipeError, match=r"did you mean exp-30\? known are exp-00, "):
        resolve_recipe("exp-3")


def test_fast_fits_the_arch_the_size_and_the_device() -> None:
    on_gpu = resolve_recipe(None, arch="res2net50", size=512)
    on_cpu = resolve_recipe(None, arch="res2net50", size=512, device_type="cpu")
    assert on_gpu.model.arch == "res2net50"
    assert (on_gpu.data.size, on_gpu.data.batch_size) == (512, 24)
    assert on_cpu.data.batch_size < 8
    assert on_cpu.train.phases[0].lr < on_gpu.train.phases[0].lr


def test_a_batch_shrinks_with_the_square_of_the_size() -> None:
    fitted = fitting_batch_size(384, made_for=224, size=512, device_type="cuda")
    assert fitted == 384 * 224**2 // 512**2
    unchanged = fitting_batch_size(64, made_for=512, size=224, device_type="cuda")
    assert unchanged == 64


def test_epochs_altogether_keep_the_proportion_of_the_phases() -> None:
    def epochs(recipe: str, count: int) -> list[int]:
        changed = resolve_recipe(recipe, assignments=[f"train.epochs={count}"])
        return [phase.epochs for phase in changed.train.planned_phases()]

    assert epochs("exp-00", 25) == [5, 20]
    assert epochs("exp-00", 50) == [10, 40]
    assert epochs("exp-00", 5) == [1, 4]
    assert epochs("exp-00", 1) == [1]
    assert epochs("exp-10-mixup", 11) == [5, 6]


def test_the_table_shows_the_published_results_beside_each_recipe() -> None:
    table = format_recipes().splitlines()
    (exp_30,) = [line for line in table if line.startswith("exp-30")]
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
    assert [line.split()[0] for line in table[1:8]] == list(RECIPES)
