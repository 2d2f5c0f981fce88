"""Predicting DICOM files equals preparing and predicting, and leaves no files."""

from __future__ import annotations

import signal
import tempfile
from multiprocessing import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ichfast.errors import (
    CheckpointError,
    InterruptionError,
    PredictionError,
    SourceError,
    StoreError,
)
from ichfast.evaluation.predictions import probs_NK
from ichfast.predict import from_dicom
from ichfast.predict.ensemble import PredictConfig, predict_runs
from ichfast.predict.from_dicom import predict_dicom
from ichfast.prepare.prepare import prepare_store
from ichfast.system.signals import STOPPING
from tests.conftest import write_dicom
from tests.nifti.volumes import head_hu, nifti, packed
from tests.runs.trainedruns import write_run
from tests.system.killed_process import held_elsewhere

CPU = torch.device("cpu")
DEFAULT = PredictConfig()


@pytest.fixture(scope="module")
def run_dir(tiny_store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", tiny_store_path)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files; a test must leave no store in it."""
    util.get_temp_dir()  # of worker processes: a socket's path may have 107 letters
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """The csv of the files that are left out."""
    return tmp_path / "out.csv.rejected.csv"


@pytest.fixture
def options(listed: Path) -> dict[str, Any]:
    return {"device": CPU, "config": DEFAULT, "workers": 1, "rejected_file": listed}


@pytest.mark.slow
def test_the_probabilities_are_those_of_the_two_steps(
    run_dir: Path,
    source: Path,
    tmp_path: Path,
    temporary: Path,
    options: dict[str, Any],
) -> None:
    (source / "notes.txt").write_text("not a slice")
    config = PredictConfig(tta="flips", smooth=True)
    direct = predict_dicom([run_dir], [source], **options | {"config": config})
    assert list(temporary.glob("ichfast-*")) == []
    assert direct.rejected == {"not-dicom": 1}
    prepare_store([source], tmp_path / "store", labels=None, workers=1, keep_ids=True)
    steps = predict_runs(
        [run_dir], device=CPU, store_path=tmp_path / "store", config=config
    )
    same = ["slice_id", "series", "study", "position_mm"]
    assert direct.table[same].equals(steps[same])
    np.testing.assert_allclose(probs_NK(direct.table), probs_NK(steps), atol=1e-6)


@pytest.mark.slow
def test_volumes_are_predicted_like_their_store(
    run_dir: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    folder = tmp_path / "volumes"
    folder.mkdir()
    for seed in range(2):
        volume = nifti(head_hu((32, 24, 3), seed))
        (folder / f"{seed}.nii.gz").write_bytes(packed(volume))
    direct = predict_dicom([run_dir], [folder], **options)
    ids = [f"{seed}/{index}" for seed in range(2) for index in range(3)]
    assert sorted(direct.table["slice_id"].astype(str)) == ids
    assert not set(direct.table["patient"]) & {"0", "1"}
    prepare_store([folder], tmp_path / "store", labels=None, workers=1, keep_ids=True)
    steps = predict_runs([run_dir], device=CPU, store_path=tmp_path / "store")
    np.testing.assert_allclose(probs_NK(direct.table), probs_NK(steps), atol=1e-6)


@pytest.mark.slow
def test_patient_ids_are_hashed_unless_kept(
    run_dir: Path, source: Path, options: dict[str, Any]
) -> None:
    hashed = predict_dicom([run_dir], [source], **options).table
    kept = predict_dicom([run_dir], [source], keep_ids=True, **options).table
    assert set(kept["patient"]) == {"MRN-0", "MRN-1"}
    assert hashed["patient"].nunique() == 2
    assert not hashed["patient"].str.contains("MRN").any()
    assert hashed["slice_id"].str.startswith("ID_").all()


@pytest.mark.slow
def test_accepted_images_are_predicted_too(
    run_dir: Path, source: Path, options: dict[str, Any]
) -> None:
    scout = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write_dicom(source / "scout", "ID_scout", ImageType=scout)
    strict = predict_dicom([run_dir], [source], **options)
    assert strict.rejected == {"localizer": 1}
    lenient = predict_dicom([run_dir], [source], accept=("localizer",), **options)
    assert lenient.rejected == {}
    assert len(lenient.table) == len(strict.table) + 1


@pytest.mark.slow
@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_leaves_no_files(
    run_dir: Path,
    source: Path,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    options: dict[str, Any],
) -> None:
    def interrupted(*_args: object, **_options: object) -> None:
        assert list(temporary.glob("ichfast-*/store/store.json"))
        signal.raise_signal(number)

    monkeypatch.setattr(from_dicom, "predict_store", interrupted)
    with pytest.raises(InterruptionError, match="the same command starts again"):
        predict_dicom([run_dir], [source], **options)
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_an_error_leaves_no_files(
    run_dir: Path,
    source: Path,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    def failing(*_args: object, **_options: object) -> None:
        assert list(temporary.glob("ichfast-*/store/store.json"))
        raise ZeroDivisionError

    monkeypatch.setattr(from_dicom, "predict_store", failing)
    with pytest.raises(ZeroDivisionError):
        predict_dicom([run_dir], [source], **options)
    assert list(temporary.iterdir()) == []


def test_the_store_of_a_process_that_was_killed_goes_at_the_next_start(
    run_dir: Path,
    source: Path,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    killed, alive = (temporary / f"ichfast-dicom-{name}" for name in ("a", "b"))
    for folder in (killed, alive):
        (folder / "store").mkdir(parents=True)
        (folder / "store" / "slices.parquet").write_text("patients")
    monkeypatch.setattr(from_dicom, "prepare_store", lambda *_, **__: 1 / 0)
    with held_elsewhere("locked_folder", killed):
        pass
    with held_elsewhere("locked_folder", alive), pytest.raises(ZeroDivisionError):
        predict_dicom([run_dir], [source], **options)
    assert list(temporary.iterdir()) == [alive]


@pytest.mark.parametrize(
    ("cause", "kind", "message"),
    [
        (KeyboardInterrupt(), InterruptionError, "temporary store is removed"),
        (OSError(28, "No space left on device"), PredictionError, "set TMPDIR"),
        (None, StoreError, "it said"),
    ],
)
def test_a_failed_decoding_says_what_to_do(
    cause: BaseException | None,
    kind: type[Exception],
    message: str,
    run_dir: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    def stopped(*_args: object, **_options: object) -> None:
        raise StoreError("it said that the same command continues") from cause

    monkeypatch.setattr(from_dicom, "prepare_store", stopped)
    with pytest.raises(kind, match=message):
        predict_dicom([run_dir], [source], **options)


def test_a_missing_run_or_source_is_an_error(
    run_dir: Path,
    source: Path,
    tmp_path: Path,
    temporary: Path,
    options: dict[str, Any],
) -> None:
    with pytest.raises(CheckpointError, match="no run in"):
        predict_dicom([tmp_path / "none"], [source], **options)
    with pytest.raises(SourceError):
        predict_dicom([run_dir], [tmp_path / "none"], **options)
    assert list(temporary.glob("ichfast-*")) == []


# ---- files that are left out ----


@pytest.mark.slow
def test_files_that_are_left_out_are_listed_without_their_names(
    run_dir: Path, source: Path, listed: Path, options: dict[str, Any]
) -> None:
    (source / "Somebody.txt").write_text("not a slice")
    found = predict_dicom([run_dir], [source], **options)
    assert (found.rejected, found.is_listed) == ({"not-dicom": 1}, True)
    assert listed.read_text() == (
        "path,reason,detail\n"
        "entry 23 of source 0,not-dicom,11 bytes without DICM at byte 128\n"
    )
    predict_dicom([run_dir], [source], keep_ids=True, **options)
    assert "\nSomebody.txt,not-dicom," in listed.read_text()
    (source / "Somebody.txt").unlink()
    assert not predict_dicom([run_dir], [source], **options).is_listed
    assert not listed.exists()


def test_where_nothing_can_be_predicted_the_list_is_beside_the_predictions(
    run_dir: Path,
    tmp_path: Path,
    temporary: Path,
    listed: Path,
    options: dict[str, Any],
) -> None:
    (tmp_path / "Somebody.txt").write_text("not a slice")
    with pytest.raises(SourceError) as caught:
        predict_dicom([run_dir], [tmp_path / "Somebody.txt"], **options)
    assert str(caught.value) == (
        "none of 1 files is an axial CT slice: 1 not-dicom (11 bytes without DICM at "
        f"byte 128); {listed} lists them; mend what is named there, or name a folder "
        "or an archive of head CT DICOM files"
    )
    assert "entry 0 of source 0,not-dicom" in listed.read_text()
    assert list(temporary.glob("ichfast-*")) == []
