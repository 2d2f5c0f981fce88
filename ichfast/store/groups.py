"""The slices of a store in groups, such as one for each manufacturer.

A text is its own group. Numbers are put into ranges, named by their ends, of which the
upper one belongs to the range.

Shape letters: N slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import pandas as pd

from ichfast.dicom.acquisition import MAX_AGE_DECADE
from ichfast.store.tables import ACQUISITION_COLUMNS

Groups: TypeAlias = "pd.Series[pd.CategoricalDtype[str]]"
"""The name of the group of each slice."""

UNKNOWN = "unknown"
"""The group of the slices whose value is not known."""

_THICKNESS_MM = (1.0, 2.5, 5.0)

_RANGES: dict[str, Sequence[float]] = {
    "kvp": (90, 110, 130),
    "exposure_mas": (100, 200, 300, 400),
    "slice_spacing_mm": _THICKNESS_MM,
    "thickness_mm": _THICKNESS_MM,
}
"""Where the ranges of a column of numbers meet."""

GROUP_COLUMNS = (
    *(name for name in ACQUISITION_COLUMNS if name != "series_number"),
    "thickness_mm",
)
"""Columns by which slices can be grouped."""


def groups_N(table: pd.DataFrame, column: str) -> Groups:
    """The group of each slice, with the index of the table.

    Args:
        table: of a store.
        column: one of `GROUP_COLUMNS`.

    Returns:
        Names of groups, categorical. The categories are in the order of the values,
        `UNKNOWN` last.
    """
    values = table[column]
    if column == "age_decade":
        decades = sorted(values.dropna().unique())
        named = values.map(_decade, na_action="ignore")
        names = [_decade(age) for age in decades]
    elif column in _RANGES:
        names = _range_names(_RANGES[column])
        ends = [-np.inf, *_RANGES[column], np.inf]
        named = pd.cut(values.astype(np.float64), ends, labels=names)
    else:
        named, names = values, sorted(values.dropna().unique())
    named = named.astype(object).fillna(UNKNOWN)
    return named.astype(pd.CategoricalDtype([*names, UNKNOWN], ordered=True))


def _decade(age: float) -> str:
    age = int(age)  # pandas 2 maps floats where a value is missing
    return f"{age}+" if age >= MAX_AGE_DECADE else f"{age}-{age + 9}"


def _range_names(ends: Sequence[float]) -> list[str]:
    between = (f"{a:g} to {b:g}" for a, b in pairwise(ends))
    return [f"up to {ends[0]:g}", *between, f"over {ends[-1]:g}"]
