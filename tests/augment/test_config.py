"""Settings of the augmentation: presets equal fastai's, invalid ones are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ichfast.augment.config import PRESETS, AugmentConfig
from ichfast.errors import RecipeError

GET_TRANSFORMS: dict[str, Any] = {
    "flip_probability": 0.5,
    "dihedral_probability": 0.0,
    "affine_probability": 0.75,
    "max_rotation_deg": 10.0,
    "zoom_probability": 0.75,
    "min_zoom": 1.0,
    "max_zoom": 1.1,
    "max_warp": 0.2,
    "max_shift": 0.0,
    "max_lighting": 0.2,
    "lighting_probability": 0.75,
    "window_jitter": (0.0, 0.0),
    "cutout_probability": 0.0,
}
"""The defaults of fastai v1's `get_transforms`, by our names."""

NOTEBOOKS: dict[str, dict[str, Any]] = {
    "fastai": {},
    "exp-10-mixup": {
        "max_rotation_deg": 30.0,
        "zoom_probability": 1.0,
        "min_zoom": 1.05,
        "max_zoom": 1.4,
    },
    "exp-30": {
        "max_rotation_deg": 30.0,
        "max_zoom": 1.4,
        "max_warp": 0.0,
        "cutout_probability": 0.5,
        "cutout_holes": (4, 20),
        "cutout_side": (2, 30),
    },
}
"""Settings in the reference's notebooks that differ from the defaults."""


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_preset_has_the_settings_of_the_references_notebook(name: str) -> None:
    for setting, value in (GET_TRANSFORMS | NOTEBOOKS[name]).items():
        assert getattr(PRESETS[name], setting) == value, setting


def test_no_augmentation_is_the_default() -> None:
    assert PRESETS["none"] == AugmentConfig()
    assert list(PRESETS) == ["none", "light", "fastai", "exp-10-mixup", "exp-30"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"flip_probability": 1.5},
        {"dihedral_probability": -0.1},
        {"zoom_probability": float("nan")},
        {"max_rotation_deg": 400.0},
        {"min_zoom": 1.2, "max_zoom": 1.1},
        {"min_zoom": 0.0},
        {"zoom_focus": (0.5, 1.5)},
        {"max_warp": 0.5},
        {"max_shift": 1.0},
        {"max_shift": -0.1},
        {"max_lighting": 0.99},
        {"window_jitter": (7.0, -1.0)},
        {"cutout_holes": (4, 21)},
        {"cutout_holes": (0, 4)},
        {"cutout_side": (5, 4)},
    ],
)
def test_invalid_settings_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=rf"augment\.{next(iter(wrong))}.*expected"):
        replace(AugmentConfig(), **wrong)
