"""Patients that a run trained on are known where they can be, and refused."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ichfast.errors import PredictionError
from ichfast.evaluation.leaks import check_leaks, trained_on_N
from ichfast.loading.splits import FoldConfig, split_slices
from ichfast.runs.trained import open_run
from ichfast.store.store import Store
from tests.conftest import write_store
from tests.evaluation.test_evaluation import make_table
from tests.runs.trainedruns import write_run


def test_the_training_patients_are_those_of_the_split(
    tiny_store_path: Path, tiny_store: Store, tmp_path: Path
) -> None:
    run = open_run(write_run(tmp_path / "run", tiny_store_path))
    trained_N = trained_on_N(run, tiny_store)
    split = split_slices(tiny_store, FoldConfig(num_folds=2))
    assert trained_N is not None
    assert set(np.flatnonzero(trained_N)) >= set(split.train_N)
    assert not trained_N[split.valid_N].any()


def test_the_same_patients_are_found_in_another_store(
    tiny_store_path: Path, tiny_store: Store, tmp_path: Path
) -> None:
    run = open_run(write_run(tmp_path / "run", tiny_store_path))
    write_store(tmp_path / "other", plan={"listing": "another"})
    with Store(tmp_path / "other") as other:
        found_N = trained_on_N(run, other)
    assert found_N is not None
    np.testing.assert_array_equal(found_N, trained_on_N(run, tiny_store))


def test_slice_folds_leak(
    tiny_store_path: Path, tiny_store: Store, tmp_path: Path
) -> None:
    run = open_run(write_run(tmp_path / "run", tiny_store_path, "folds.kind=slice"))
    trained_N = trained_on_N(run, tiny_store)
    split = split_slices(tiny_store, FoldConfig(kind="slice", num_folds=2))
    assert trained_N is not None
    assert trained_N[split.valid_N].all()


@pytest.mark.parametrize(
    ("happens", "reason"),
    [("moved", "not there any more"), ("hashed", "do not compare")],
)
def test_where_nobody_knows_a_warning_says_why(
    happens: str, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_store(tmp_path / "store", plan={"ids": "kept"})
    run = open_run(write_run(tmp_path / "run", tmp_path / "store"))
    write_store(tmp_path / "other", plan={"ids": "hashed with key 1"})
    if happens == "moved":
        shutil.move(tmp_path / "store", tmp_path / "moved")
    with Store(tmp_path / "other") as other, caplog.at_level(logging.WARNING):
        assert trained_on_N(run, other) is None
    assert reason in caplog.text


def with_trained_on(values: list[object]) -> pd.DataFrame:
    """Seven slices a study, two studies a patient; a value a patient."""
    table = make_table(14 * len(values))
    trained_N = pd.array(np.repeat(np.array(values, dtype=object), 14), dtype="boolean")
    return table.assign(trained_on=trained_N)


def test_leaks_are_counted_and_refused() -> None:
    table = with_trained_on([True, False, pd.NA, True])
    with pytest.raises(PredictionError, match=r"28 of 56 slices are of 2 .*allow-leak"):
        check_leaks(table, allow=False)
    found = check_leaks(table, allow=True)
    assert found == {"slices": 28, "patients": 2, "unknown": 14}


def test_what_nobody_knows_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = check_leaks(with_trained_on([False, pd.NA]), allow=False)
    assert found == {"slices": 0, "patients": 0, "unknown": 14}
    assert "not known of 14 slices" in caplog.text
