"""The studies that a model is most wrong about, with the series to look at.

1. A study is called positive from the threshold on that finds a wanted share of the
   positive studies. Labels and probabilities are those of any, by study
   (`ichfast.evaluation.levels`).
2. Positive studies are listed from the lowest probability on, so that the missed ones
   come first; negative ones from the highest on, so that false alarms come first.
3. The series shown is the one with the most positive slices; of several, or where no
   slice is labelled, the one with the highest probability.
4. The slice shown is the positive one with the highest probability; where there is
   none, the one with the highest probability.

Shape letters: N studies, Z slices of a series, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from ichfast.evaluation.along_series import places_N
from ichfast.evaluation.curves import OperatingPoint, operating_point
from ichfast.evaluation.levels import Parts, numbers_of_rows, split_levels
from ichfast.evaluation.predictions import labels_NK, probs_NK

Floats = npt.NDArray[np.float64]

MAX_POSITIVE, MAX_NEGATIVE = 9, 3
"""Upper limits of the studies with and without the label."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesOfCase:
    """Labels and probabilities of any along one series, from its lowest slice on."""

    place_Z: Floats
    """From 0, the lowest slice, to 1; equal steps where positions are not known."""
    probs_Z: Floats
    labels_Z: Floats
    """0, 1 or NaN."""
    prob: float
    """Probability of the series: that of its head, or the highest of its slices."""
    shown: int
    """Index of the slice to look at."""
    number: int
    """Number of the series in its study, from 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyCase:
    """A study, and the series in it to look at."""

    row: pd.Series[str]
    """Row of the predictions table of the slice to look at."""
    probs_K: Floats
    labels_K: Floats
    """Probabilities and labels of the study; 0, 1 or NaN."""
    is_called: bool
    num_series: int
    series: SeriesOfCase


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyCases:
    """The studies to look at, and how all of them were called."""

    point: OperatingPoint
    positive: list[StudyCase]
    negative: list[StudyCase]


def choose_studies(table: pd.DataFrame, *, sensitivity: float) -> StudyCases | None:
    """Choose the studies that a model is most wrong about.

    Args:
        table: a predictions table, columns as in `ichfast.evaluation.predictions`.
        sensitivity: share of the positive studies to find, in (0, 1].

    Returns:
        None where no study is positive.

    Raises:
        PredictionError: a sensitivity outside (0, 1], or rows that give their series or
            study different labels or probabilities.
    """
    parts = split_levels(table).parts
    probs_N, labels_N = parts["study"].probs_NK[:, 0], parts["study"].labels_NK[:, 0]
    is_known_N = ~np.isnan(labels_N)
    point = operating_point(
        probs_N[is_known_N], labels_N[is_known_N], sensitivity=sensitivity
    )
    if point is None:
        return None
    rising_N = np.argsort(probs_N, kind="stable")
    positive_N = rising_N[labels_N[rising_N] == 1][:MAX_POSITIVE]
    negative_N = rising_N[labels_N[rising_N] == 0][::-1][:MAX_NEGATIVE]
    numbers = numbers_of_rows(table)

    def case_of(study: int) -> StudyCase:
        rows_Z = np.flatnonzero(numbers["study"] == study)
        return _case(
            table.iloc[rows_Z],
            *(numbers["series"][rows_Z], parts["series"], parts["study"], study),
            is_called=bool(probs_N[study] >= point.threshold),
        )

    return StudyCases(
        point=point,
        positive=[case_of(study) for study in positive_N],
        negative=[case_of(study) for study in negative_N],
    )


def _case(
    rows: pd.DataFrame,
    series_Z: npt.NDArray[np.intp],
    all_series: Parts,
    studies: Parts,
    study: int,
    *,
    is_called: bool,
) -> StudyCase:
    """Choose the series and the slice of a study.

    Args:
        rows: slices of the study.
        series_Z: number of the series of each.
        all_series: the series of the table.
        studies: the studies of the table.
        study: number of the study.
        is_called: whether it is called positive.
    """
    series_of_study = np.unique(series_Z)
    is_positive_Z = labels_NK(rows)[:, 0] == 1
    num_positive = [is_positive_Z[series_Z == each].sum() for each in series_of_study]
    highest_last = np.lexsort((all_series.probs_NK[series_of_study, 0], num_positive))
    chosen = series_of_study[highest_last[-1]]
    rows = _from_lowest(rows[series_Z == chosen])
    probs_Z, labels_Z = probs_NK(rows)[:, 0], labels_NK(rows)[:, 0]
    shown = int(np.lexsort((probs_Z, labels_Z == 1))[-1])
    return StudyCase(
        row=rows.iloc[shown],
        probs_K=studies.probs_NK[study],
        labels_K=studies.labels_NK[study],
        is_called=is_called,
        num_series=len(series_of_study),
        series=SeriesOfCase(
            place_Z=rows["place"].to_numpy(np.float64),
            probs_Z=probs_Z,
            labels_Z=labels_Z,
            prob=float(all_series.probs_NK[chosen, 0]),
            shown=shown,
            number=int(np.searchsorted(series_of_study, chosen)) + 1,
        ),
    )


def _from_lowest(rows: pd.DataFrame) -> pd.DataFrame:
    """Sort the slices of a series by their place, which becomes a column."""
    place_Z = places_N(rows)
    if not np.isfinite(place_Z).all():
        place_Z = (np.arange(len(rows)) + 0.5) / len(rows)
    return rows.assign(place=place_Z).sort_values("place", kind="stable")
