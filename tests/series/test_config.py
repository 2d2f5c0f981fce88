"""Settings out of range are refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ichfast.errors import RecipeError
from ichfast.series.config import SMALL, SeriesConfig, resolve_series


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "lstm"),
        ("position", "mm"),
        ("width", 0),
        ("hidden", 0),
        ("layers", 0),
        ("layers", 17),
        ("batch_size", 0),
        ("epochs", 0),
        ("min_steps", -1),
        ("max_slices", 1),
        ("noise", -0.1),
        ("weight_decay", float("nan")),
        ("lr", 0.0),
        ("dropout", 1.0),
        ("slice_dropout", -0.1),
        ("element_dropout", 1.0),
        ("warm_up", 1.0),
        ("seed", -1),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=rf"series\.{name}\b"):
        SeriesConfig(**{name: value})


def test_a_transformer_needs_a_size_that_its_attention_heads_divide() -> None:
    with pytest.raises(RecipeError, match=r"series\.hidden .* multiple of 2, got 7"):
        SeriesConfig(kind="transformer", hidden=7)
    SeriesConfig(kind="gru", hidden=7)


def test_a_small_set_trains_more_epochs_to_reach_the_least_steps() -> None:
    config = SeriesConfig(batch_size=8, epochs=20, min_steps=300)
    assert config.num_epochs(76) == 30  # of 10 steps
    assert config.num_epochs(5) == 300
    assert config.num_epochs(10_000) == 20


def test_a_small_store_gets_a_small_head_unless_one_is_chosen() -> None:
    assert resolve_series([], num_slices=3000) == SMALL
    assert resolve_series([], num_slices=600_000) == SeriesConfig()
    assert resolve_series(["series=large"], num_slices=3000) == SeriesConfig()
    found = resolve_series(["series=small", "series.lr=1e-4"], num_slices=600_000)
    assert found == replace(SMALL, lr=1e-4)
    with pytest.raises(RecipeError, match=r"unknown series 'tiny'; .*large, small"):
        resolve_series(["series=tiny"], num_slices=3000)
