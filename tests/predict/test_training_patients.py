"""The patients that a run trained on are found in its store and in others."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from ichfast.loading.splits import FoldConfig, split_slices
from ichfast.predict.training_patients import trained_on_N
from ichfast.runs.trained import open_run
from ichfast.store.store import Store
from tests.conftest import write_store
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("happens", "reason"),
    [("moved", "it is gone"), ("hashed", "cannot be compared")],
)
def test_unknown_training_patients_are_a_warning_with_the_reason(
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
