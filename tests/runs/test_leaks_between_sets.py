"""Volumes made of RSNA's slices are recognized as RSNA's patients by their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ichfast.cli.main import cli
from ichfast.dicom.slices import read_slices
from ichfast.errors import PredictionError
from ichfast.evaluation.leaks import check_leaks
from ichfast.labels import CLASSES, LabelTable
from ichfast.nifti.volume import patient_and_study
from ichfast.predict.ensemble import predict_runs
from ichfast.prepare.masks import read_masks
from ichfast.prepare.prepare import prepare_store
from ichfast.store.store import Store
from tests.conftest import random_hu, write_dicom
from tests.dicom.real_files import DATA, needs_data
from tests.nifti.volumes import head_hu, nifti, packed
from tests.runs.test_patients import marks, trained_patients, with_mark
from tests.runs.trainedruns import write_run

CPU = torch.device("cpu")

PATIENTS = tuple(f"ID_0237f3c{digit}" for digit in range(8))
"""The first six are in the DICOM files, the last six have volumes."""


def study_of(patient: str) -> str:
    return f"{patient}aa"


def write_dicom_files(folder: Path) -> LabelTable:
    """Three slices of each of the first six patients, every second one with a bleed."""
    folder.mkdir()
    labels_NK = np.zeros((18, len(CLASSES)), np.float32)
    for number in range(18):
        patient = PATIENTS[number // 3]
        write_dicom(
            folder / f"{number:02d}.dcm",
            f"ID_{number}",
            hu_HW=random_hu(number),
            PatientID=patient,
            StudyInstanceUID=study_of(patient),
            SeriesInstanceUID=f"ID_{number // 3}",
            ImagePositionPatient=[0, 0, 5.0 * number],
        )
        labels_NK[number, [0, -1]] = number // 3 % 2
    ids = np.array([f"ID_{number}" for number in range(18)], dtype=object)
    return LabelTable(ids=ids, labels_NK=labels_NK, num_duplicates=0)


def write_volumes(folder: Path) -> None:
    """Volumes of four slices of the last six patients, with their masks."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for seed, patient in enumerate(PATIENTS[2:]):
        file = f"{patient}_{study_of(patient)}.nii.gz"
        volume = nifti(head_hu((24, 32, 4), seed))
        (folder / "images" / file).write_bytes(packed(volume))
        mask = np.zeros((24, 32, 4), np.uint8)
        mask[3, 5, 1] = 1 + seed % 5
        (folder / "masks" / file).write_bytes(packed(nifti(mask)))


class Sets:
    """RSNA's slices, and volumes made of some of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._labels = write_dicom_files(folder / "dicom")
        write_volumes(folder / "volumes")

    def prepare_dicom(self, key: str | None) -> Path:
        return self._prepare("dicom", self._labels, key)

    def prepare_volumes(self, key: str | None) -> Path:
        volumes = self._folder / "volumes"
        masks = read_masks(volumes / "masks", [volumes / "images"])
        return self._prepare("volumes/images", masks.table, key)

    def _prepare(self, source: str, labels: LabelTable, key: str | None) -> Path:
        store = self._folder / f"store-{source.partition('/')[0]}-{key}"
        if not store.exists():
            prepare_store(
                [self._folder / source],
                store,
                labels=labels,
                workers=1,
                keep_ids=key is None,
                id_key=self._folder / key if key else None,
            )
        return store


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    return Sets(tmp_path_factory.mktemp("sets"))


@pytest.mark.slow
@pytest.mark.parametrize("key", [None, "a.key"])
def test_the_volumes_of_patients_that_a_run_has_seen_are_marked_and_refused(
    sets: Sets, tmp_path: Path, key: str | None
) -> None:
    rsna, volumes = sets.prepare_dicom(key), sets.prepare_volumes(key)
    run = write_run(tmp_path / "run", rsna)
    with Store(volumes) as store:
        in_volumes = set(store.table["patient"].astype(str))
    assert len(in_volumes) == 6
    seen = trained_patients(rsna) & in_volumes
    assert 1 <= len(seen) <= 4
    found = marks([run], volumes)
    assert with_mark(found, "trained") == seen
    assert with_mark(found, "new") == in_volumes - seen
    table = predict_runs([run], device=CPU, store_path=volumes)
    with pytest.raises(PredictionError, match="patients that the model was trained on"):
        check_leaks(table, allow=False)


@pytest.mark.slow
def test_the_commands_refuse_to_evaluate_them(sets: Sets, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", sets.prepare_dicom(None))
    volumes, out = sets.prepare_volumes(None), tmp_path / "predictions.parquet"
    arguments = ["predict", str(run), str(out), "--store", str(volumes)]
    result = CliRunner().invoke(cli, [*arguments, "--device", "cpu"])
    assert result.exit_code == 0, result.stderr
    result = CliRunner().invoke(cli, ["evaluate", str(out)])
    assert result.exit_code == 1
    assert "patients that the model was trained on" in result.stderr


@pytest.mark.slow
def test_with_another_key_it_is_not_known(sets: Sets, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", sets.prepare_dicom("a.key"))
    volumes = sets.prepare_volumes("b.key")
    table = predict_runs([run], device=CPU, store_path=volumes)
    assert table["trained_on"].isna().all()
    with pytest.raises(PredictionError, match="not known of 24 of 24 slices"):
        check_leaks(table, allow=False)


@pytest.mark.slow
def test_one_key_gives_a_patient_one_hash_in_both_sets(sets: Sets) -> None:
    stores = [sets.prepare_dicom("a.key"), sets.prepare_volumes("a.key")]
    ids = []
    for path in stores:
        with Store(path) as store:
            table = store.table
            ids.append(set(zip(table["patient"], table["study"], strict=True)))
    assert len(ids[0]) == len(ids[1]) == 6
    assert len(ids[0] & ids[1]) == 4
    assert not any("ID_" in patient for patient, _ in ids[0] | ids[1])


@needs_data
def test_the_patients_of_rsna_are_named_as_those_of_the_volumes() -> None:
    [one] = read_slices((DATA / "rsna_slices" / "ID_2008dd408.dcm").read_bytes())
    header = one.series_header
    name = f"{header.patient_id}_{header.study_uid}"
    assert patient_and_study(name) == (header.patient_id, header.study_uid)
