"""A table of studies has one row each, and is never taken for one of slices."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ichfast.errors import PredictionError
from ichfast.evaluation.levels import split_levels
from ichfast.evaluation.predictions import (
    LABEL_COLUMNS,
    SERIES_PROB_COLUMNS,
    labels_NK,
    probs_NK,
    read_predictions,
    write_predictions,
)
from ichfast.evaluation.study_table import join_slices
from ichfast.labels import CLASSES
from tests.evaluation.test_evaluation import make_table


@pytest.fixture
def table() -> pd.DataFrame:
    """Three series of seven slices; the first two are one study."""
    table = make_table(21).assign(study=["S"] * 14 + ["T"] * 7)
    table["run"] = ["a"] * 7 + ["a+b"] * 7 + ["c"] * 7
    table["trained_on"] = pd.array([False] * 13 + [pd.NA] + [False] * 7, "boolean")
    table.loc[20, list(LABEL_COLUMNS)] = np.nan
    return table


def test_a_study_has_one_row(table: pd.DataFrame) -> None:
    joined = join_slices(table, "study")
    assert list(joined) == [
        *("study", "patient", "num_series", "num_slices", *CLASSES, "run"),
        *("trained_on", *LABEL_COLUMNS),
    ]
    assert joined["study"].tolist() == ["S", "T"]
    assert joined["patient"].tolist() == ["patient0", "patient1"]
    assert joined["num_series"].tolist() == [2, 1]
    assert joined["num_slices"].tolist() == [14, 7]
    assert joined["run"].tolist() == ["a+b", "c"]
    assert joined["trained_on"].tolist() == [pd.NA, False]
    expected = [probs_NK(table[:14]).max(axis=0), probs_NK(table[14:]).max(axis=0)]
    np.testing.assert_array_equal(probs_NK(joined), expected)
    np.testing.assert_array_equal(labels_NK(joined)[0], labels_NK(table[:14]).max(0))
    assert np.isnan(labels_NK(joined)[1]).all()


def test_a_series_has_one_row(table: pd.DataFrame) -> None:
    joined = join_slices(table, "series")
    assert list(joined)[:5] == ["series", "study", "patient", "num_slices", "any"]
    assert joined["series"].tolist() == ["series0", "series1", "series2"]
    assert joined["num_slices"].tolist() == [7, 7, 7]
    assert joined["run"].tolist() == ["a", "a+b", "c"]
    assert joined["trained_on"].tolist() == [False, pd.NA, False]


def test_a_patient_trained_on_is_named_before_one_that_is_not_known(
    table: pd.DataFrame,
) -> None:
    table.loc[0, "trained_on"] = True
    assert join_slices(table, "study")["trained_on"].tolist() == [True, False]


def test_slices_in_any_order_give_the_same_rows(table: pd.DataFrame) -> None:
    mixed = table.sample(frac=1, random_state=0).reset_index(drop=True)
    found, expected = (
        join_slices(each, "study").set_index("study").sort_index().drop(columns="run")
        for each in (mixed, table)
    )
    pd.testing.assert_frame_equal(found, expected)


def test_the_head_gives_the_probability_where_there_is_one(table: pd.DataFrame) -> None:
    number = pd.factorize(table["series"])[0]
    own = np.array([[0.2] * 6, [0.3] * 6, [0.1] * 6])
    table[list(SERIES_PROB_COLUMNS)] = own[number]
    np.testing.assert_array_equal(probs_NK(join_slices(table, "series")), own)
    np.testing.assert_array_equal(probs_NK(join_slices(table, "study")), own[[1, 2]])
    table.loc[2, "series_prob_any"] = 0.9
    with pytest.raises(PredictionError, match="differ from those of another row"):
        join_slices(table, "study")


@pytest.mark.parametrize("level", ["series", "study"])
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npz"])
def test_each_format_is_written_and_refused_as_predictions_of_slices(
    tmp_path: Path, table: pd.DataFrame, suffix: str, level: str
) -> None:
    table["patient"] = "=1+1"
    joined = join_slices(table, level)
    path = tmp_path / f"p{suffix}"
    write_predictions(path, joined)
    assert path.with_name(f"p{suffix}.sha256").is_file()
    found = _read(path)
    np.testing.assert_allclose(
        found[list(CLASSES)].astype(float), probs_NK(joined), rtol=1e-8
    )
    labels = found[list(LABEL_COLUMNS)].to_numpy(float, na_value=np.nan)
    np.testing.assert_array_equal(labels, split_levels(table).parts[level].labels_NK)
    assert found["num_slices"].tolist() == joined["num_slices"].tolist()
    is_escaped = suffix == ".csv"
    assert set(found["patient"]) == {"'=1+1" if is_escaped else "=1+1"}
    message = (
        f"{path} has one row a series or study, expected one row a slice; predict again"
        " without --level (`ichfast evaluate` has a --level of its own)"
    )
    with pytest.raises(PredictionError, match=f"^{re.escape(message)}$"):
        read_predictions(path)


def _read(path: Path) -> pd.DataFrame:
    if path.suffix == ".csv":
        return pd.read_csv(path)
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    with np.load(path, allow_pickle=False) as arrays:
        return pd.DataFrame({name: arrays[name] for name in arrays.files})
