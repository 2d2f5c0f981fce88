"""The slices of a predictions table, joined to series, studies and patients.

The probability of a series is its own where the table has one, from a head that read
all of it; else the maximum over its slices. That of a study or patient is the maximum
over its series.

The label of a series or study is its own where the table has one; else the maximum over
its parts. That is missing if the label of one part is, even if another is 1: negatives
could not be told in the same way, so the studies with a label would be the positive
ones.

Shape letters: N parts of a level, M rows of the table, P patients, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from ichfast.errors import PredictionError
from ichfast.evaluation.predictions import (
    LABEL_COLUMNS,
    bag_labels_NK,
    labels_NK,
    probs_NK,
    series_probs_NK,
)
from ichfast.labels import CLASSES
from ichfast.store.tables import patients_N

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.intp]

LEVELS = ("slice", "series", "study", "patient")
"""Names of the levels, each within the next one."""

PLURALS = {
    "slice": "slices",
    "series": "series",
    "study": "studies",
    "patient": "patients",
}
"""The plural of each of `LEVELS`."""

_MISSING = 2.0
"""Stands for a missing label: above all others, so that it is the maximum."""


@dataclass(frozen=True, slots=True)
class Parts:
    """All slices, series, studies or patients of a table."""

    row_N: Integers
    """A row of the table that belongs to each."""
    probs_NK: Floats
    labels_NK: Floats
    """0, 1 or NaN."""

    @property
    def is_labelled_N(self) -> npt.NDArray[np.bool_]:
        """Whether each has a label of any class."""
        is_known_NK = ~np.isnan(self.labels_NK)
        return np.logical_or.reduce(is_known_NK, axis=1)


@dataclass(frozen=True, slots=True)
class Levels:
    """A table by level."""

    parts: dict[str, Parts]
    """By a name of `LEVELS`, in that order. Parts are in the order of their first rows.
    """
    patient_M: Integers
    """Number of the patient of each row, from 0, in the order of the rows. Patients
    without any label have none of their own."""
    num_patients: int
    """Patients with a label."""


def split_levels(table: pd.DataFrame) -> Levels:
    """Join the slices of a predictions table to series, studies and patients.

    Slices without a patient id count as one patient a study.

    Raises:
        PredictionError: rows of a series or study give it different labels or
            probabilities.
    """
    numbers = numbers_of_rows(table)
    parts = Parts(np.arange(len(table)), probs_NK(table), labels_NK(table))
    by_level = {"slice": parts}
    for level in LEVELS[1:]:
        parts = _joined(parts, numbers[level][parts.row_N])
        if level != "patient":
            parts = _with_own_labels(parts, table, level, numbers[level])
        if level == "series":
            parts = _with_own_probs(parts, table, numbers[level])
        by_level[level] = parts
    patient_M = numbers["patient"]
    is_labelled_P = np.zeros(len(parts.row_N), dtype=bool)
    for each in by_level.values():
        is_labelled_P[patient_M[each.row_N[each.is_labelled_N]]] = True
    number_P = np.cumsum(is_labelled_P) - 1
    return Levels(by_level, number_P[patient_M], int(is_labelled_P.sum()))


def rows_of_level(table: pd.DataFrame, level: str) -> pd.DataFrame:
    """Return the labelled slices, series, studies or patients as rows of a table.

    A series, study or patient has the row of its slice with the highest probability of
    any, and the probabilities and labels that are its own.

    Args:
        table: a predictions table.
        level: one of `LEVELS`.
    """
    parts = split_levels(table).parts[level]
    chosen_N = parts.is_labelled_N
    if level == "slice":
        return table.iloc[np.flatnonzero(chosen_N)]
    number_M = numbers_of_rows(table)[level]
    highest_first = np.lexsort((-probs_NK(table)[:, 0], number_M))
    _, first_N = np.unique(number_M[highest_first], return_index=True)
    rows = table.iloc[highest_first[first_N][chosen_N]].copy()
    rows[list(CLASSES)] = parts.probs_NK[chosen_N]
    rows[list(LABEL_COLUMNS)] = parts.labels_NK[chosen_N]
    return rows


def numbers_of_rows(table: pd.DataFrame) -> dict[str, Integers]:
    """The number of the series, study and patient of each row, by level, shape (M,).

    Each level counts from 0 in the order of the rows, as `Levels.parts` does.
    """
    numbers: dict[str, Integers] = {}
    number_M = np.zeros(len(table), dtype=np.intp)
    for level in reversed(LEVELS[1:]):
        ids = patients_N(table) if level == "patient" else table[level]
        # An id counts within its study and patient only.
        inner_M, _ = pd.factorize(ids, use_na_sentinel=False)
        number_M, _ = pd.factorize(number_M * len(table) + inner_M)
        numbers[level] = number_M
    return numbers


def _joined(parts: Parts, number_N: Integers) -> Parts:
    """Join parts that have the same number.

    Args:
        parts: of the finer level.
        number_N: the number of each, from 0 in their order.
    """
    filled_NK = np.where(np.isnan(parts.labels_NK), _MISSING, parts.labels_NK)
    values = pd.DataFrame(np.column_stack([parts.probs_NK, filled_NK]))
    highest = values.groupby(number_N, sort=False).max().to_numpy()
    probs, labels = np.split(highest, 2, axis=1)
    labels = np.where(labels == _MISSING, np.nan, labels)
    row_N = parts.row_N[~pd.Series(number_N).duplicated().to_numpy()]
    return Parts(row_N, probs, labels)


def _with_own_labels(
    parts: Parts, table: pd.DataFrame, level: str, number_M: Integers
) -> Parts:
    """Replace labels that series or studies have from their slices by their own.

    Args:
        parts: the series or studies.
        table: a predictions table.
        level: ``series`` or ``study``.
        number_M: the number of the series or study of each row.
    """
    own_MK = bag_labels_NK(table, level)
    if own_MK is None:
        return parts
    own_NK = _shared(own_MK, parts, number_M, f"labels {level}_...", level)
    labels_NK = np.where(np.isnan(own_NK), parts.labels_NK, own_NK)
    return replace(parts, labels_NK=labels_NK)


def _with_own_probs(parts: Parts, table: pd.DataFrame, number_M: Integers) -> Parts:
    """Replace the maxima over slices by the probabilities of a series head.

    Args:
        parts: the series.
        table: a predictions table.
        number_M: the number of the series of each row.
    """
    own_MK = series_probs_NK(table)
    if own_MK is None:
        return parts
    what = "probabilities series_prob_..."
    return replace(parts, probs_NK=_shared(own_MK, parts, number_M, what, "series"))


def _shared(
    own_MK: Floats, parts: Parts, number_M: Integers, what: str, level: str
) -> Floats:
    """The values that all rows of each series or study have, shape (N, 6).

    Args:
        own_MK: the values in each row; NaN where missing.
        parts: the series or studies.
        number_M: the number of the series or study of each row.
        what: the values in words, for the error.
        level: ``series`` or ``study``.

    Raises:
        PredictionError: rows of a series or study have different values.
    """
    own_NK = own_MK[parts.row_N]
    num_others = np.count_nonzero(
        (own_MK != own_NK[number_M]) & ~(np.isnan(own_MK) & np.isnan(own_NK[number_M]))
    )
    if num_others:
        raise PredictionError(
            f"{num_others:,} {what} differ from those of another row of the same "
            f"{level}; expected the same in all of them"
        )
    return own_NK
