"""Probabilities of series and the runs' disagreement: read, checked, evaluated."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ichfast.errors import PredictionError
from ichfast.evaluation.evaluation import evaluate
from ichfast.evaluation.levels import LEVELS, rows_of_level, split_levels
from ichfast.evaluation.predictions import (
    ALL_COLUMNS,
    BAG_COLUMNS,
    ENTROPY_COLUMNS,
    SERIES_PROB_COLUMNS,
    STD_COLUMNS,
    probs_NK,
    read_predictions,
    series_probs_NK,
    std_NK,
    write_predictions,
)
from ichfast.evaluation.scoretable import format_evaluation
from ichfast.evaluation.subgroups import evaluate_subgroups
from ichfast.labels import CLASSES
from ichfast.predict.submission import write_submission
from tests.evaluation.foreign_tables import write_as_is
from tests.evaluation.test_evaluation import make_table

ADDED = (*SERIES_PROB_COLUMNS, *STD_COLUMNS, *ENTROPY_COLUMNS)


def with_added(table: pd.DataFrame, *, seed: int = 1) -> pd.DataFrame:
    """The table with all optional columns; the first slice had a single run."""
    rng = np.random.default_rng(seed)
    number_N, series = pd.factorize(table["series"])
    table = table.assign(**dict.fromkeys(BAG_COLUMNS, np.nan))
    table[list(SERIES_PROB_COLUMNS)] = rng.random((len(series), 6))[number_N]
    table[list(STD_COLUMNS)] = rng.random((len(table), 6)) / 2
    table[list(ENTROPY_COLUMNS)] = rng.random((len(table), 6))
    table.loc[0, list(STD_COLUMNS)] = np.nan
    return table


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npz"])
def test_optional_columns_come_back_in_each_format(tmp_path: Path, suffix: str) -> None:
    table = with_added(make_table(21))
    write_predictions(tmp_path / f"p{suffix}", table)
    found = read_predictions(tmp_path / f"p{suffix}")
    assert tuple(found) == ALL_COLUMNS == tuple(table)
    for name in ADDED:
        np.testing.assert_allclose(found[name], table[name], rtol=1e-8)
    assert found["std_any"].isna().tolist() == [True, *[False] * 20]
    for parts in (split_levels(each).parts["series"] for each in (found, table)):
        np.testing.assert_allclose(
            parts.probs_NK, table.loc[::7, list(SERIES_PROB_COLUMNS)], rtol=1e-8
        )


def test_a_table_without_them_has_none() -> None:
    assert series_probs_NK(make_table(7)) is None
    assert std_NK(make_table(7)) is None


WRONG = [
    ("series_prob_any", -0.01, "probabilities, in [0, 1], such as -0.01"),
    ("series_prob_subdural", 1.5, "probabilities, in [0, 1], such as 1.5"),
    ("series_prob_any", np.nan, "probabilities, in [0, 1], such as nan"),
    ("std_any", -0.25, "numbers in [0, 1], such as -0.25"),
    ("std_subdural", np.inf, "numbers in [0, 1], such as inf"),
    ("entropy_any", -1.0, "numbers in [0, 1], such as -1"),
    ("entropy_subdural", 1.01, "numbers in [0, 1], such as 1.01"),
]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npz"])
@pytest.mark.parametrize(("name", "value", "problem"), WRONG)
def test_a_value_that_cannot_be_is_refused(
    tmp_path: Path, suffix: str, name: str, value: float, problem: str
) -> None:
    table = with_added(make_table(21))
    table.loc[3, name] = value
    write_predictions(tmp_path / f"p{suffix}", table)
    message = f"has 1 values in the column {name} that are not {problem}; write it with"
    with pytest.raises(PredictionError, match=re.escape(message)):
        read_predictions(tmp_path / f"p{suffix}")


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npz"])
@pytest.mark.parametrize("name", ["series_prob_epidural", "std_any", "entropy_any"])
def test_five_of_six_and_words_are_refused(
    tmp_path: Path, suffix: str, name: str
) -> None:
    table = with_added(make_table(21))
    path = tmp_path / f"p{suffix}"
    write_as_is(path, table.drop(columns=name))
    with pytest.raises(PredictionError, match=f"lacks the columns {name}; write"):
        read_predictions(path)
    write_as_is(path, table.assign(**{name: "high"}))
    with pytest.raises(PredictionError, match=f"column {name}"):
        read_predictions(path)


def test_a_series_has_the_probability_of_its_head() -> None:
    table = with_added(make_table())
    parts = split_levels(table).parts
    own = table.drop_duplicates("series")
    np.testing.assert_array_equal(
        parts["series"].probs_NK, own[list(SERIES_PROB_COLUMNS)]
    )
    np.testing.assert_array_equal(parts["slice"].probs_NK, probs_NK(table))
    by_patient = own.groupby("patient", sort=False)[list(SERIES_PROB_COLUMNS)].max()
    np.testing.assert_array_equal(parts["patient"].probs_NK, by_patient)


def test_series_are_evaluated_too_where_a_head_read_them() -> None:
    table = with_added(make_table())
    evaluation = evaluate(table)
    assert list(evaluation.levels) == list(LEVELS)
    assert evaluation.to_json()["has_head"] is True
    counts = "211 slices of 31 series, 31 studies and 16 patients"
    assert format_evaluation(evaluation).splitlines()[0] == counts
    told = "a series has the probability that a head gives it"
    assert told in format_evaluation(evaluation).splitlines()
    without = evaluate(make_table())
    assert "series" not in without.levels
    assert not without.has_head
    assert told not in format_evaluation(without)


def test_a_study_has_the_maximum_of_its_series() -> None:
    table = with_added(make_table(28)).assign(study=["S"] * 14 + ["T"] * 14)
    study = split_levels(table).parts["study"].probs_NK
    for row, first in zip(study, (0, 14), strict=True):
        names = list(SERIES_PROB_COLUMNS)
        two = table.loc[[first, first + 7], names].to_numpy()
        np.testing.assert_array_equal(row, two.max(axis=0))
    rows = rows_of_level(table, "study")
    np.testing.assert_array_equal(rows[list(CLASSES)], study)


def test_slices_and_submissions_do_not_depend_on_them(tmp_path: Path) -> None:
    plain = make_table()
    added = with_added(plain)
    slices = [evaluate(each, level="slice").first for each in (added, plain)]
    assert slices[0] == slices[1]
    for name, table in (("plain", plain), ("added", added)):
        write_submission(table, tmp_path / f"{name}.csv", sample=None)
    contents = [(tmp_path / f"{name}.csv").read_bytes() for name in ("plain", "added")]
    assert contents[0] == contents[1]


def test_groups_of_slices_take_the_probability_of_the_head() -> None:
    table = with_added(make_table())
    groups = pd.Series(["all"] * len(table), dtype="category")
    (group,) = evaluate_subgroups(table, groups, level="study", replicates=0)
    assert group.scores == evaluate(table, level="study").first
    without = table.drop(columns=list(SERIES_PROB_COLUMNS))
    assert group.scores != evaluate(without, level="study").first


def test_rows_that_disagree_about_their_series_are_refused() -> None:
    table = with_added(make_table(14))
    table.loc[3, "series_prob_subdural"] = 0.123
    message = (
        "1 probabilities series_prob_... differ from those of another row of the same "
        "series; expected the same in all of them"
    )
    with pytest.raises(PredictionError, match=re.escape(message)):
        evaluate(table)


def test_logits_of_a_series_are_refused() -> None:
    table = with_added(make_table(14)).assign(series_prob_any=-4.2)
    with pytest.raises(PredictionError, match=r"14 predictions lie outside \[0, 1\]"):
        evaluate(table)
