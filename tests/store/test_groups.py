"""Slices are put into groups by what is known of their acquisition."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from ichfast.store.groups import GROUP_COLUMNS, groups_N
from ichfast.store.tables import table_schema


@pytest.mark.parametrize(
    ("column", "values", "groups"),
    [
        ("manufacturer", ["GE", None, "GE"], ["GE", "unknown", "GE"]),
        ("age_decade", [0, 40, 90, pd.NA], ["0-9", "40-49", "90+", "unknown"]),
        ("age_decade", [40.0, math.nan], ["40-49", "unknown"]),  # as pandas 2 has it
        (
            "thickness_mm",
            [0.6, 1.0, 2.5, 5.0, 5.1, math.nan],
            ["up to 1", "up to 1", "1 to 2.5", "2.5 to 5", "over 5", "unknown"],
        ),
        ("kvp", [80.0, 100.0, 120.0, 140.0], ["up to 90", "90 to 110"]),
    ],
)
def test_each_slice_is_in_one_group(
    column: str, values: list[Any], groups: list[str]
) -> None:
    table = pd.DataFrame({column: values}, index=list("abcdef")[: len(values)])
    found = groups_N(table, column)
    assert list(found.index) == list(table.index)
    assert found.astype(str).tolist()[: len(groups)] == groups


def test_groups_are_in_the_order_of_their_values() -> None:
    table = pd.DataFrame({"age_decade": pd.array([90, 0, None, 10], dtype="Int8")})
    categories = groups_N(table, "age_decade").cat.categories
    assert list(categories) == ["0-9", "10-19", "90+", "unknown"]


def test_groups_are_made_of_columns_of_the_table() -> None:
    assert set(GROUP_COLUMNS) <= set(table_schema((512,)).names)
