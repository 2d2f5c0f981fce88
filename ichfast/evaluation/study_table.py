"""A predictions table with one row a series or study, for people and other programs.

Columns, in this order:

    series                             in a table of series only
    study, patient                     as in the store
    num_series                         predicted series; in a table of studies only
    num_slices                         predicted slices
    any ... subdural                   six probabilities, as `ichfast.evaluation.levels`
                                       joins those of slices
    run                                names of the runs that predicted a slice of it,
                                       joined by +
    trained_on                         whether one of these runs trained on this
                                       patient; missing where that is not known
    label_any ... label_subdural       six labels, 0 or 1, each missing where unknown

ichfast writes such a table and never reads it: evaluation starts from slices.

Shape letters: M rows of the table of slices, N series or studies.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from ichfast.evaluation.levels import Integers, numbers_of_rows, split_levels
from ichfast.evaluation.predictions import COUNT_COLUMN, LABEL_COLUMNS
from ichfast.labels import CLASSES


def join_slices(table: pd.DataFrame, level: str) -> pd.DataFrame:
    """Join the slices of a predictions table to one row a series or study.

    Args:
        table: a predictions table, columns as in `ichfast.evaluation.predictions`.
        level: ``series`` or ``study``.

    Returns:
        The columns of this module's docstring, in the order of the first slices.

    Raises:
        PredictionError: rows of a series or study give it different labels or
            probabilities.
    """
    parts = split_levels(table).parts
    numbers, wanted = numbers_of_rows(table), parts[level]
    number_M = numbers[level]
    keys = ["series", "study", "patient"] if level == "series" else ["study", "patient"]
    joined = table[keys].iloc[wanted.row_N].reset_index(drop=True)
    if level == "study":
        joined["num_series"] = np.bincount(number_M[parts["series"].row_N])
    joined[COUNT_COLUMN] = np.bincount(number_M)
    joined[list(CLASSES)] = wanted.probs_NK
    joined["run"] = _names_N(table["run"], number_M)
    joined["trained_on"] = _trained_on_N(table["trained_on"], number_M)
    labels = pd.DataFrame(wanted.labels_NK, columns=list(LABEL_COLUMNS))
    joined[list(LABEL_COLUMNS)] = labels.astype("Int8")
    return joined


def _names_N(run_M: pd.Series[str], number_M: Integers) -> pd.Series[str]:
    """Each run of the slices of each series or study once, joined by +."""

    def joined(names: Iterable[str]) -> str:
        return "+".join(dict.fromkeys("+".join(names).split("+")))

    return run_M.groupby(number_M).unique().map(joined)


def _trained_on_N(trained_on_M: pd.Series[bool], number_M: Integers) -> pd.Series[bool]:
    """True where one slice has true; else missing where that of one is missing."""
    is_true = trained_on_M.fillna(value=False).astype(bool).groupby(number_M).any()
    is_missing = trained_on_M.isna().groupby(number_M).any()
    return is_true.astype("boolean").mask(is_missing & ~is_true)
