"""One or more runs predict a store: which slices, which average, which columns."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from ichfast.errors import PredictionError
from ichfast.evaluation.calibration import fit_calibration
from ichfast.evaluation.curves import Aim
from ichfast.evaluation.leaks import check_leaks
from ichfast.evaluation.logits import logit, sigmoid
from ichfast.evaluation.predictions import (
    COLUMNS,
    ENTROPY_COLUMNS,
    STD_COLUMNS,
    probs_NK,
)
from ichfast.labels import CLASSES
from ichfast.predict.averages import average, binary_entropy, deviation
from ichfast.predict.ensemble import PredictConfig, predict_runs
from ichfast.predict.journal import Journal, Part, Rows
from ichfast.runs.record import read_record, write_record
from ichfast.runs.trained import open_run
from ichfast.series.smoothing import smooth_over_z
from ichfast.store.store import Store
from ichfast.training.checkpoint import BEST, load_checkpoint, save_checkpoint
from tests.conftest import write_store
from tests.runs.trainedruns import write_folds, write_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folds(
    tiny_store_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Two runs, one a fold."""
    return write_folds(tmp_path_factory.mktemp("folds"), tiny_store_path)


@pytest.fixture(scope="module")
def other_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("other") / "store"
    write_store(path, plan={"listing": "another"})
    return path


def test_an_average_is_over_the_runs_that_predicted_the_slice() -> None:
    first = np.array([2, 5]), np.array([[0.2], [0.4]])
    second = np.array([5, 3]), np.array([[0.8], [0.9]])
    positions, probs = average([first, second], how="probs")
    assert positions.tolist() == [2, 3, 5]
    np.testing.assert_allclose(probs, [[0.2], [0.9], [0.6]], atol=1e-12)
    _, probs = average([first, second], how="logits")
    middle = float(sigmoid(logit(np.array([0.4, 0.8])).mean(keepdims=True))[0])
    np.testing.assert_allclose(probs[:, 0], [0.2, 0.9, middle], atol=1e-12)


@pytest.mark.slow
def test_all_folds_predict_their_store_out_of_fold(
    folds: list[Path], tiny_store: Store
) -> None:
    table = predict_runs(folds, device=CPU)
    labelled = tiny_store.table["any"].notna()
    assert table["slice_id"].tolist() == tiny_store.table["slice_id"][labelled].tolist()
    assert tuple(table.columns) == COLUMNS
    assert table["run"].tolist() == [f"fold{fold}" for fold in table["fold"]]
    assert not table["trained_on"].any()
    for fold, run in enumerate(folds):
        alone = predict_runs([run], device=CPU)
        there = table[table["fold"] == fold]
        np.testing.assert_allclose(probs_NK(there), probs_NK(alone), atol=1e-6)


@pytest.mark.slow
def test_all_slices_are_predicted_and_those_of_patients_trained_on_are_marked(
    folds: list[Path], tiny_store: Store
) -> None:
    table = predict_runs(folds[:1], device=CPU, config=PredictConfig(all_slices=True))
    assert table["slice_id"].tolist() == tiny_store.table["slice_id"].tolist()
    split = open_run(folds[0]).split(tiny_store)
    assert table["fold"].tolist() == split.fold_N.tolist()
    trained = set(table["patient"].iloc[split.train_N])
    assert (table["trained_on"] == table["patient"].isin(trained)).all()
    own = predict_runs(folds[:1], device=CPU)
    there = table[table["slice_id"].isin(own["slice_id"])]
    np.testing.assert_allclose(probs_NK(there), probs_NK(own), atol=1e-6)
    with pytest.raises(PredictionError, match="trained on"):
        check_leaks(table, allow=False)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["probs", "logits"])
def test_another_store_is_predicted_by_all_runs(
    how: str, folds: list[Path], other_store: Path
) -> None:
    config = PredictConfig(average=how)
    both = predict_runs(folds, device=CPU, store_path=other_store, config=config)
    alone = [
        probs_NK(predict_runs([run], device=CPU, store_path=other_store))
        for run in folds
    ]
    expected = (
        np.mean(alone, axis=0)
        if how == "probs"
        else sigmoid(np.mean([logit(probs) for probs in alone], axis=0))
    )
    np.testing.assert_allclose(probs_NK(both), expected, atol=1e-6)
    assert set(both["run"]) == {"fold0+fold1"}
    assert (both["fold"] == -1).all()


@pytest.mark.slow
def test_smoothing_comes_after_the_average(
    folds: list[Path], other_store: Path
) -> None:
    plain = predict_runs(folds, device=CPU, store_path=other_store)
    smooth = predict_runs(
        folds, device=CPU, store_path=other_store, config=PredictConfig(smooth=True)
    )
    expected = smooth_over_z(
        probs_NK(plain), plain["series"].to_numpy(dtype=object), np.arange(len(plain))
    )
    np.testing.assert_allclose(probs_NK(smooth), expected, atol=1e-6)
    assert np.abs(expected - probs_NK(plain)).max() > 1e-3


@pytest.mark.slow
def test_the_batch_size_changes_nothing(folds: list[Path]) -> None:
    tables = [
        predict_runs(folds, device=CPU, config=PredictConfig(batch_size=size))
        for size in (None, 3, 1000)
    ]
    for table in tables[1:]:
        np.testing.assert_allclose(probs_NK(table), probs_NK(tables[0]), atol=1e-5)


@pytest.mark.slow
def test_cached_slices_are_read_once_for_all_passes(
    folds: list[Path],
    tiny_store_path: Path,
    packed_store_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store is packed where they are, which changes nothing."""
    reads = []

    def count(name: str) -> None:
        read = getattr(Store, name)

        def count_and_read(store: Store, position: int, *rest: Any, **how: Any) -> None:
            reads.append(position)
            read(store, position, *rest, **how)

        monkeypatch.setattr(Store, name, count_and_read)

    count("read_into")
    count("read_record_into")
    tables = []
    for store_path, kept, num_reads in (
        (tiny_store_path, "none", 9),
        (packed_store_path, "host", 1),
    ):
        reads.clear()
        config = PredictConfig(tta="reference", cache=kept)
        table = predict_runs(
            folds[:1], device=CPU, store_path=store_path, config=config
        )
        assert len(reads) == num_reads * len(table)
        tables.append(table)
    np.testing.assert_array_equal(probs_NK(tables[0]), probs_NK(tables[1]))


@pytest.mark.slow
def test_runs_that_do_not_fit_together_are_refused(
    folds: list[Path], other_store: Path, tmp_path: Path
) -> None:
    with pytest.raises(PredictionError, match="named twice"):
        predict_runs([folds[0], folds[0] / ".." / "fold0"], device=CPU)
    elsewhere = write_run(tmp_path / "elsewhere", other_store)
    with pytest.raises(PredictionError, match=r"different stores.*--store"):
        predict_runs([folds[0], elsewhere], device=CPU)
    with pytest.raises(PredictionError, match="probs or as logits, got 'median'"):
        PredictConfig(average="median")


@pytest.mark.slow
def test_runs_of_other_sizes_windows_and_archs_are_averaged(
    folds: list[Path], tiny_store_path: Path, other_store: Path, tmp_path: Path
) -> None:
    other = write_run(
        tmp_path / "other",
        tiny_store_path,
        "data.windows=subdural",
        size=48,
        arch="efficientnet-b0",
    )
    runs = [folds[0], other]
    alone = [
        probs_NK(predict_runs([run], device=CPU, store_path=other_store))
        for run in runs
    ]
    table = predict_runs(runs, device=CPU, store_path=other_store)
    assert set(table["run"]) == {"fold0+other"}
    np.testing.assert_allclose(probs_NK(table), np.mean(alone, axis=0), atol=1e-12)
    assert tuple(table.columns) == (*COLUMNS, *STD_COLUMNS, *ENTROPY_COLUMNS)
    std_NK = table[list(STD_COLUMNS)].to_numpy()
    np.testing.assert_allclose(std_NK, np.abs(alone[0] - alone[1]) / 2, atol=1e-12)
    entropy_NK = table[list(ENTROPY_COLUMNS)].to_numpy()
    np.testing.assert_array_equal(entropy_NK, binary_entropy(probs_NK(table)))


def test_a_slice_of_a_single_run_has_no_deviation() -> None:
    first = np.array([2, 5]), np.array([[0.2], [0.4]])
    second = np.array([5, 3]), np.array([[0.8], [0.9]])
    std_NK = deviation([first, second])
    np.testing.assert_allclose(std_NK, [[np.nan], [np.nan], [0.2]], atol=1e-12)


def test_entropy_is_in_bits() -> None:
    entropy = binary_entropy(np.array([0.0, 0.25, 0.5, 1.0]))
    np.testing.assert_allclose(entropy, [0, 2 - 0.75 * np.log2(3), 1, 0], atol=1e-12)


@pytest.mark.slow
def test_a_network_that_runs_share_computes_once(
    folds: list[Path],
    other_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = Path(shutil.copytree(folds[0], tmp_path / "copy"))
    alone = predict_runs(folds[:1], device=CPU, store_path=other_store)
    shown = []
    write = Journal.write

    def note(journal: Journal, part: Part, rows_R: Rows) -> None:
        shown.append(len(rows_R))
        write(journal, part, rows_R)

    monkeypatch.setattr(Journal, "write", note)
    both = predict_runs([folds[0], copy], device=CPU, store_path=other_store)
    assert sum(shown) == len(alone)
    assert set(both["run"]) == {"fold0+copy"}
    np.testing.assert_array_equal(probs_NK(both), probs_NK(alone))
    assert (both[list(STD_COLUMNS)] == 0).all(axis=None)


@pytest.mark.slow
def test_a_run_is_calibrated_after_its_passes_and_before_the_average(
    folds: list[Path], other_store: Path, tmp_path: Path
) -> None:
    calibrated = Path(shutil.copytree(folds[1], tmp_path / "fold1"))
    rng = np.random.default_rng(0)
    calibration = fit_calibration(
        rng.random((40, len(CLASSES))),
        rng.integers(0, 2, (40, len(CLASSES))).astype(np.float64),
        np.arange(40) // 2,
        store_digest="",
        aim=Aim(),
    )
    record = replace(read_record(calibrated), calibration=calibration)
    write_record(calibrated, record)
    runs = [folds[0], calibrated]

    def predict(paths: list[Path], *, calibrate: bool = True) -> Any:
        config = PredictConfig(tta="flips", calibrate=calibrate)
        return probs_NK(
            predict_runs(paths, device=CPU, store_path=other_store, config=config)
        )

    first, second = (predict([run], calibrate=False) for run in runs)
    np.testing.assert_array_equal(second, predict(folds[1:]))
    expected = np.mean([first, calibration.apply(second)], axis=0)
    np.testing.assert_allclose(predict(runs), expected, atol=1e-12)
    uncalibrated = predict(runs, calibrate=False)
    np.testing.assert_allclose(uncalibrated, np.mean([first, second], 0), atol=1e-12)


def test_weights_that_predict_nan_are_refused(
    folds: list[Path], tmp_path: Path
) -> None:
    damaged = Path(shutil.copytree(folds[0], tmp_path / "damaged"))
    content = load_checkpoint(damaged / BEST)
    content["model"]["classifier.bias"].fill_(torch.nan)
    save_checkpoint(damaged / BEST, content)
    with pytest.raises(PredictionError, match=r"predicts NaN for \d+ of \d+ slices"):
        predict_runs([damaged], device=CPU)


@pytest.mark.slow
def test_a_run_with_own_folds_predicts_its_fold_also_when_the_file_is_gone(
    tmp_path: Path, tiny_store_path: Path
) -> None:
    file = tmp_path / "own.csv"
    file.write_text("PatientID,fold,name\nP1,0,x\nP2,1,x\nP3,1,x\nP5,0,x\n")
    run = write_run(tmp_path / "run", tiny_store_path, f"folds.file={file}")
    file.unlink()
    table = predict_runs([run], device=CPU)
    assert set(table["patient"]) == {"P1", "P5"}
    assert set(table["fold"]) == {0}
    copy = run / "folds.csv"
    assert copy.read_text() == "patient,fold\nP1,0\nP2,1\nP3,1\nP5,0\n"
    copy.write_text(copy.read_text().replace("P2,1", "P2,0"))
    with pytest.raises(PredictionError, match=r"folds\.csv was edited; copy back"):
        predict_runs([run], device=CPU)


@pytest.mark.slow
def test_only_the_slices_of_a_list_are_predicted(
    folds: list[Path], other_store: Path, tmp_path: Path
) -> None:
    (tmp_path / "only.csv").write_text("study\nS2\nS5\n")
    config = PredictConfig(only=tmp_path / "only.csv")
    table = predict_runs(folds, device=CPU, store_path=other_store, config=config)
    assert set(table["study"]) == {"S2", "S5"}
    (tmp_path / "only.csv").write_text("study\nS5\n")
    with pytest.raises(PredictionError, match=r"only\.csv has none of .* add --all to"):
        predict_runs(folds, device=CPU, config=config)
    config = replace(config, all_slices=True)
    assert set(predict_runs(folds, device=CPU, config=config)["study"]) == {"S5"}


def test_a_limit_spreads_over_the_slices(folds: list[Path], other_store: Path) -> None:
    config = PredictConfig(limit=4)
    table = predict_runs(folds, device=CPU, store_path=other_store, config=config)
    assert isinstance(table, pd.DataFrame)
    assert table["series"].nunique() == 4
