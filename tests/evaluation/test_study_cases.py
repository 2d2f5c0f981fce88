"""The studies to look at are the missed ones and the false alarms, worst first."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ichfast.errors import PredictionError
from ichfast.evaluation.levels import split_levels
from ichfast.evaluation.predictions import LABEL_COLUMNS, SERIES_PROB_COLUMNS
from ichfast.evaluation.study_cases import (
    MAX_NEGATIVE,
    MAX_POSITIVE,
    StudyCases,
    choose_studies,
)
from ichfast.labels import CLASSES
from tests.evaluation.test_evaluation import make_table
from tests.evaluation.test_missing_labels import of_studies


def chosen(table: pd.DataFrame, sensitivity: float = 0.9) -> StudyCases:
    cases = choose_studies(table, sensitivity=sensitivity)
    assert cases is not None
    return cases


def one_study() -> pd.DataFrame:
    """Two series of four slices, the second upside down, and a study without."""
    table = make_table(10).assign(patient="P", study=["S"] * 8 + ["T"] * 2)
    table["series"] = ["first"] * 4 + ["second"] * 4 + ["third"] * 2
    table["position_mm"] = [0, 5, 10, 20, 30, 20, 10, 0, 0, 5]
    table[list(CLASSES)] = 0.01
    table["any"] = [0.1, 0.2, 0.95, 0.1, 0.1, 0.8, 0.6, 0.3, 0.4, 0.2]
    table[list(LABEL_COLUMNS)] = 0.0
    table.loc[[1, 6, 7], ["label_any", "label_subdural"]] = 1.0
    return table


def test_missed_studies_come_first_and_then_the_least_certain() -> None:
    table = make_table(700)
    table.loc[:139, list(LABEL_COLUMNS)] = 0.0  # the first 20 studies
    study = split_levels(table).parts["study"]
    probs_N, labels_N = study.probs_NK[:, 0], study.labels_NK[:, 0]
    cases = chosen(table, 0.9)
    found = [case.probs_K[0] for case in cases.positive]
    assert found == sorted(probs_N[labels_N == 1])[:MAX_POSITIVE]
    found = [case.probs_K[0] for case in cases.negative]
    assert found == sorted(probs_N[labels_N == 0], reverse=True)[:MAX_NEGATIVE]
    num_missed = sum(not case.is_called for case in cases.positive)
    assert num_missed == min(cases.point.missed, MAX_POSITIVE) > 0
    assert not cases.positive[0].is_called
    assert all(case.labels_K[0] == 1 for case in cases.positive)


def test_the_series_with_most_positive_slices_is_shown_from_its_lowest_slice() -> None:
    (case,) = chosen(one_study()).positive
    series = case.series
    assert (case.num_series, series.number) == (2, 2)
    np.testing.assert_allclose(series.place_Z, [0, 1 / 3, 2 / 3, 1])
    assert series.probs_Z.tolist() == [0.3, 0.6, 0.8, 0.1]
    assert series.labels_Z.tolist() == [1, 1, 0, 0]
    assert series.shown == 1  # of the positive ones the highest
    assert case.row["slice_id"] == "ID_000000006"
    assert (case.probs_K[0], series.prob) == (0.95, 0.8)
    assert case.labels_K.tolist() == [1, 0, 0, 0, 0, 1]


def test_a_negative_study_shows_its_highest_slice() -> None:
    (case,) = chosen(one_study()).negative
    assert case.row["slice_id"] == "ID_000000008"
    assert not case.is_called
    assert case.num_series == 1


def test_the_head_decides_where_there_is_one() -> None:
    table = one_study()
    own = {"first": 0.3, "second": 0.2, "third": 0.35}
    for name in SERIES_PROB_COLUMNS:
        table[name] = table["series"].map(own)
    cases = chosen(table, 1.0)
    (positive,), (negative,) = cases.positive, cases.negative
    assert cases.point.threshold == 0.3
    assert (positive.probs_K[0], positive.series.prob) == (0.3, 0.2)
    assert negative.is_called
    assert (cases.point.found, cases.point.false_alarms) == (1, 1)


def test_studies_whose_slices_have_no_labels_show_the_highest_series() -> None:
    (case,) = chosen(of_studies(one_study())).positive
    assert case.series.number == 1
    assert case.series.prob == 0.95
    assert np.isnan(case.series.labels_Z).all()
    assert float(case.row["any"]) == 0.95


def test_slices_without_positions_keep_their_order() -> None:
    table = one_study()
    table.loc[5, "position_mm"] = np.nan
    (case,) = chosen(table).positive
    np.testing.assert_allclose(case.series.place_Z, [0.125, 0.375, 0.625, 0.875])
    assert case.series.probs_Z.tolist() == [0.1, 0.8, 0.6, 0.3]


def test_without_a_positive_study_there_is_nothing_to_miss() -> None:
    negative = make_table(21).assign(**dict.fromkeys(LABEL_COLUMNS, 0.0))
    assert choose_studies(negative, sensitivity=0.9) is None
    unknown = make_table(21).assign(label_any=np.nan)
    assert choose_studies(unknown, sensitivity=0.9) is None
    with pytest.raises(PredictionError, match="a sensitivity is above 0"):
        choose_studies(make_table(21), sensitivity=0.0)
