"""A run is calibrated on patients that it was not trained on."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ichfast.errors import PredictionError
from ichfast.evaluation.calibration import fit_calibration
from ichfast.evaluation.curves import Aim
from ichfast.evaluation.predictions import labels_NK, probs_NK
from ichfast.labels import CLASSES, read_labels
from ichfast.predict.calibration import (
    CalibrateReport,
    calibrate_run,
    remove_calibration,
)
from ichfast.predict.ensemble import PredictConfig, predict_runs
from ichfast.predict.extract import extract_features
from ichfast.prepare.pseudonyms import KEY_BYTES, default_key_path
from ichfast.runs.record import read_record
from ichfast.runs.trained import open_run
from ichfast.series.record import read_series_record
from ichfast.store.header import read_header
from ichfast.store.store import Store
from ichfast.store.tables import patients_N
from ichfast.system.files import write_private_once
from ichfast.system.locks import locked_folder
from ichfast.training.checkpoint import BEST, PATIENTS, load_checkpoint, save_checkpoint
from tests.predict.many_patients import write_labels, write_patients
from tests.runs.trainedruns import write_run
from tests.series.seriesruns import train

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, a run on it, a store of others without labels, labels."""
    folder = tmp_path_factory.mktemp("calibrate")
    write_patients(folder / "store")
    write_run(folder / "run", folder / "store")
    write_patients(folder / "other", labelled=False, name="Q")
    table = predict_runs([folder / "run"], device=CPU, store_path=folder / "other")
    write_labels(folder / "labels.csv", table)
    table.to_parquet(folder / "other.parquet")
    return folder


@pytest.fixture
def run(place: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(place / "run", tmp_path / "run"))


def calibrate(run: Path, place: Path, *, aim: Aim | None = None) -> CalibrateReport:
    """On the other hospital's store."""
    return calibrate_run(
        run,
        device=CPU,
        store_path=place / "other",
        labels=read_labels(place / "labels.csv"),
        aim=aim,
    )


def test_a_run_is_calibrated_on_the_patients_it_held_out(
    run: Path, place: Path
) -> None:
    table = predict_runs([run], device=CPU, store_path=place / "store")
    report = calibrate_run(run, device=CPU, store_path=place / "store")
    assert 0 < len(table) < 144
    expected = fit_calibration(
        probs_NK(table),
        labels_NK(table),
        patients_N(table),
        store_digest=read_header(place / "store").digest,
        aim=Aim(),
    )
    assert report.calibration == expected
    assert read_record(run).calibration == expected
    assert open_run(run).record == read_record(run)
    assert report.former is None


def test_labels_of_another_hospital_recalibrate_and_tell_how_far(
    run: Path, place: Path
) -> None:
    first = calibrate(run, place).calibration
    table = pd.read_parquet(place / "other.parquet")
    labels = pd.read_csv(place / "labels.csv").set_index("slice_id")
    assert first == fit_calibration(
        probs_NK(table),
        labels.loc[table["slice_id"]].to_numpy(float),
        patients_N(table),
        store_digest=read_header(place / "other").digest,
        aim=Aim(),
    )
    assert first.loss_after < first.loss_crossfitted < first.loss_before
    again = calibrate(run, place, aim=Aim("specificity", 0.8))
    assert again.former == first
    assert set(again.moved.values()) == {0.0}
    assert again.loss_former == first.loss_after
    assert again.calibration.classes[1].temperature == first.classes[1].temperature
    assert read_record(run).calibration == again.calibration
    moved = calibrate_run(run, device=CPU, store_path=place / "store").moved
    assert min(moved.values()) > 0.01


def test_labels_of_a_file_replace_those_of_the_store(run: Path, place: Path) -> None:
    """Every label of the store is 0 or 1; this file has those of 12 patients."""
    table = predict_runs([run], device=CPU, store_path=place / "store")
    write_labels(place / "some.csv", table)
    report = calibrate_run(
        run,
        device=CPU,
        store_path=place / "store",
        labels=read_labels(place / "some.csv"),
    )
    labels = pd.read_csv(place / "some.csv")
    found = [each.positives for each in report.calibration.classes]
    assert found == labels[list(CLASSES)].sum().tolist()


def test_predict_applies_the_calibration_of_each_run_before_it_averages(
    run: Path, place: Path, tmp_path: Path
) -> None:
    """The second run has none."""
    other = write_run(tmp_path / "second", place / "store", seed=1)
    calibration = calibrate(run, place).calibration
    plain, second = (
        probs_NK(
            predict_runs(
                [each],
                device=CPU,
                store_path=place / "other",
                config=PredictConfig(calibrate=False),
            )
        )
        for each in (run, other)
    )
    assert np.abs(calibration.apply(plain) - plain).max() > 0.01
    for paths, expected in (
        ([run], calibration.apply(plain)),
        ([run, other], (calibration.apply(plain) + second) / 2),
    ):
        table = predict_runs(paths, device=CPU, store_path=place / "other")
        np.testing.assert_allclose(probs_NK(table), expected, atol=1e-6)


def test_a_series_run_is_calibrated_like_a_run(
    run: Path, place: Path, tmp_path: Path
) -> None:
    features = tmp_path / "features"
    extract_features([run], features, device=CPU, store_path=place / "store")
    series_run = tmp_path / "series"
    train(features, series_run)
    own = calibrate_run(series_run, device=CPU, store_path=place / "store").calibration
    assert own.patients == 12  # the validation fold
    report = calibrate(series_run, place)
    assert report.former == own
    found = read_series_record(series_run).calibration
    assert found == report.calibration
    plain, calibrated = (
        probs_NK(
            predict_runs(
                [series_run],
                device=CPU,
                store_path=place / "other",
                config=PredictConfig(calibrate=is_calibrated),
            )
        )
        for is_calibrated in (False, True)
    )
    np.testing.assert_array_equal(found.apply(plain), calibrated)
    assert np.abs(calibrated - plain).max() > 0.01
    assert remove_calibration(series_run) == found
    assert read_series_record(series_run).calibration is None


def write_by_study(path: Path) -> Path:
    rows = pd.DataFrame({"StudyInstanceUID": ["S1", "S2"], "any": [0, 1]})
    rows.to_csv(path, index=False)
    return path


def test_what_cannot_calibrate_is_refused_and_changes_nothing(
    run: Path, place: Path, tmp_path: Path
) -> None:
    before = read_record(run)

    def refused(message: str, *, store: str = "other", labels: Path | None) -> None:
        with pytest.raises(PredictionError, match=message):
            calibrate_run(
                run,
                device=CPU,
                store_path=place / store,
                labels=read_labels(labels) if labels else None,
            )
        assert read_record(run) == before

    refused("other has no label of a slice, so .* add --labels FILE", labels=None)
    refused(
        "--labels is by study; a calibration needs labels of slices",
        labels=write_by_study(tmp_path / "studies.csv"),
    )
    rows = pd.read_csv(place / "labels.csv")
    few, strange = tmp_path / "few.csv", tmp_path / "strange.csv"
    rows[rows["slice_id"].str.match(r"ID_Q\d_")].iloc[:54].to_csv(few, index=False)
    refused("9 patients have a label; .* at least 10; name a store", labels=few)
    rows.assign(slice_id="x" + rows["slice_id"]).to_csv(strange, index=False)
    refused("--labels has no label of a slice of .*other; give", labels=strange)
    with locked_folder(run):
        refused(r"process \d+ on .* is using .*run; wait for it to end", labels=None)
    (run / ".lock").unlink()
    (run / ".lock").mkdir()
    refused("cannot write the run's folder .*; calibrate a copy", labels=None)


def test_patients_that_the_run_was_trained_on_are_refused(
    place: Path, tmp_path: Path
) -> None:
    leaking = write_run(tmp_path / "leaking", place / "store", "folds.kind=slice")
    with pytest.raises(
        PredictionError,
        match=r"slices are of \d+ patients that .*leaking was trained on, .* certain "
        "than on others; name a store of other patients with --store, or train with",
    ):
        calibrate_run(
            leaking, device=CPU, store_path=place / "store", allow_unknown=True
        )
    assert read_record(leaking).calibration is None


def test_patients_of_whom_it_is_not_known_need_a_word(run: Path, place: Path) -> None:
    content = load_checkpoint(run / BEST)
    content[PATIENTS] = content[PATIENTS].replace("true", "false")
    save_checkpoint(run / BEST, content)
    with pytest.raises(PredictionError, match=r"144 of 144 slices .* --allow-unknown"):
        calibrate(run, place)
    calibrate_run(
        run,
        device=CPU,
        store_path=place / "other",
        labels=read_labels(place / "labels.csv"),
        allow_unknown=True,
    )


class HashedStore(Store):
    """A store whose header says that ids are hashed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.header = replace(self.header, keep_ids=False)


def test_labels_of_a_store_with_hashed_ids_need_its_key(
    run: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ichfast.predict.calibration.Store", HashedStore)
    key = bytes(range(KEY_BYTES))
    hashed = write_patients(tmp_path / "other", labelled=False, name="Q", key=key)

    def calibrate_hashed() -> CalibrateReport:
        return calibrate_run(
            run,
            device=CPU,
            store_path=hashed,
            labels=read_labels(place / "labels.csv"),
            allow_unknown=True,
        )

    with pytest.raises(
        PredictionError,
        match=r"the ids of .*other are hashed, and .* copy it to .*other\.key",
    ):
        calibrate_hashed()
    write_private_once(default_key_path(hashed), key)
    assert calibrate_hashed().calibration.slices == 144


def test_the_record_stays_as_it_was_if_it_cannot_be_written(
    run: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ichfast.predict.calibration.write_record", fail)
    with pytest.raises(PredictionError, match="No space left on device; calibrate a"):
        calibrate(run, place)
    assert read_record(run).calibration is None
