"""Where many patients share a placeholder as PatientID, a study counts as a patient."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from ichfast.labels import read_labels
from ichfast.loading.splits import FoldConfig, split_slices
from ichfast.prepare.prepare import prepare_store
from ichfast.report.overview import describe_store
from ichfast.store.store import Store
from tests.conftest import random_hu, write_dicom
from tests.dicom.real_files import HUNT, needs_hunt

run = partial(prepare_store, labels=None, workers=1, keep_ids=True)


def write_study(folder: Path, study: int, patient: str) -> None:
    """Two slices of a study."""
    for number in (2 * study, 2 * study + 1):
        write_dicom(
            folder / f"{number}.dcm",
            f"ID_{number}",
            hu_HW=random_hu(number),
            PatientID=patient,
            StudyInstanceUID=f"1.77.{study}",
        )


@pytest.fixture
def heads(tmp_path: Path) -> Path:
    """Two studies of nobody, one without a patient, two of one patient."""
    folder = tmp_path / "heads"
    folder.mkdir()
    patients = ("ANONYMOUS", "ANONYMOUS", "", "MRN-1", "MRN-1")
    for study, patient in enumerate(patients):
        write_study(folder, study, patient)
    return folder


@pytest.mark.parametrize("keep_ids", [True, False])
def test_each_study_without_a_patient_is_counted_as_one(
    heads: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    *,
    keep_ids: bool,
) -> None:
    report = run([heads], tmp_path / "store", keep_ids=keep_ids)
    assert report.patients == 4
    (message,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert message == (
        "4 slices have a placeholder as PatientID, such as ANONYMOUS: their study "
        "counts as the patient, also if several studies are of one (docs/leaks.md)"
    )
    with Store(tmp_path / "store") as store:
        overview = describe_store(store)
        patients = store.table["patient"].tolist()
    assert (patients.count(""), overview.patients) == (6, 4)
    assert overview.quirks == {"placeholder_patient": 4}


def test_ids_of_patients_are_no_reason_to_warn(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run([source], tmp_path / "store")
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


@needs_hunt
@pytest.mark.slow
def test_four_studies_of_nobody_make_four_folds(tmp_path: Path) -> None:
    labels = read_labels(HUNT / "labels" / "all_anonymous.csv")
    report = run([HUNT / "all_anonymous"], tmp_path / "store", labels=labels)
    assert (report.slices, report.labelled, report.patients) == (16, 16, 4)
    with Store(tmp_path / "store") as store:
        split = split_slices(store, FoldConfig(num_folds=4))
        studies = store.table["study"].iloc[split.valid_N].unique()
    assert len(split.valid_N) == 4
    assert len(studies) == 1
