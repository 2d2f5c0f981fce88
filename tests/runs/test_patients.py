"""The patients that a run's weights were trained on, in every store they may be in."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from ichfast.errors import ModelError, PredictionError, RecipeError, StoreError
from ichfast.evaluation.leaks import check_leaks
from ichfast.export.card import format_card
from ichfast.labels import CLASSES, LabelTable
from ichfast.loading.splits import FoldConfig, split_slices
from ichfast.predict.ensemble import PredictConfig, predict_runs
from ichfast.prepare.prepare import prepare_store
from ichfast.recipes.recipe import Recipe
from ichfast.report.comparison import compare_runs
from ichfast.report.run_report import report_run
from ichfast.runs.crossvalidation import train_folds
from ichfast.runs.patients import (
    NOBODY,
    TrainingPatients,
    patients_from_text,
    patients_of_slices,
    patients_of_weights,
)
from ichfast.runs.run import train_run
from ichfast.runs.trained import open_run
from ichfast.store.store import Store
from ichfast.training.checkpoint import BEST, PATIENTS, load_checkpoint
from tests.conftest import random_hu, write_dicom, write_store
from tests.runs.trainedruns import tiny_recipe, write_run

CPU = torch.device("cpu")
SLICES_A_PATIENT = 3


def write_heads(folder: Path, patients: range) -> Path:
    """DICOM files of some patients, three slices each."""
    folder.mkdir()
    for patient in patients:
        for k in range(SLICES_A_PATIENT):
            number = SLICES_A_PATIENT * patient + k
            write_dicom(
                folder / f"{number:03d}.dcm",
                f"ID_{number}",
                hu_HW=random_hu(number),
                PatientID=f"MRN-{patient}",
                StudyInstanceUID=f"1.77.{patient}",
                SeriesInstanceUID=f"1.88.{patient}",
                ImagePositionPatient=[0, 0, 5.0 * k],
            )
    return folder


def labels_for(patients: range, *, positive: int = 2) -> LabelTable:
    """Every patient whose number divides by `positive` has a subdural bleed."""
    numbers = range(SLICES_A_PATIENT * patients.start, SLICES_A_PATIENT * patients.stop)
    labels_NK = np.zeros((len(numbers), len(CLASSES)), np.float32)
    is_positive_N = [k // SLICES_A_PATIENT % positive == 0 for k in numbers]
    labels_NK[is_positive_N, 0] = labels_NK[is_positive_N, -1] = 1
    ids = np.array([f"ID_{k}" for k in numbers], dtype=object)
    return LabelTable(ids=ids, labels_NK=labels_NK, num_duplicates=0)


@dataclass(frozen=True)
class Heads:
    """Two folders of DICOM files: patients 0 to 5, and 6 to 9; and two keys."""

    first: Path
    second: Path
    key: Path
    other_key: Path

    def prepare(
        self,
        store: Path,
        *parts: str,
        key: str | None = "key",
        append: bool = False,
        labels: LabelTable | None = None,
    ) -> Path:
        """Prepare some of the folders, with hashed ids, or plain ones without a key."""
        prepare_store(
            [getattr(self, part) for part in parts],
            store,
            labels=labels or labels_for(range(10)),
            workers=1,
            keep_ids=key is None,
            id_key=getattr(self, key) if key else None,
            append=append,
        )
        return store


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Heads:
    folder = tmp_path_factory.mktemp("heads")
    return Heads(
        first=write_heads(folder / "first", range(6)),
        second=write_heads(folder / "second", range(6, 10)),
        key=folder / "a.key",
        other_key=folder / "b.key",
    )


@pytest.fixture(scope="module")
def store_path(heads: Heads, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patients 0 to 5, hashed. Not to be changed."""
    return heads.prepare(tmp_path_factory.mktemp("first") / "store", "first")


@pytest.fixture(scope="module")
def run_dir(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on `store_path`; fold 0 of 2 validates."""
    return write_run(tmp_path_factory.mktemp("runs") / "run", store_path)


def trained_patients(store_path: Path, fold: int = 0) -> set[str]:
    with Store(store_path) as store:
        split = split_slices(store, FoldConfig(num_folds=2, fold=fold))
        return set(store.table["patient"].iloc[split.train_N])


def marks(runs: Sequence[Path], store_path: Path | None) -> dict[str, str]:
    """For each patient that runs predict, whether one of them was trained on it."""
    table = predict_runs(runs, device=CPU, store_path=store_path)
    found = {}
    for patient, trained_on in table.groupby("patient")["trained_on"]:
        (mark,) = trained_on.unique()
        is_known = mark is not pd.NA
        found[str(patient)] = ("trained" if mark else "new") if is_known else "unknown"
    return found


def with_mark(found: dict[str, str], mark: str) -> set[str]:
    return {patient for patient, each in found.items() if each == mark}


def one_epoch(weights: Path, *assignments: str) -> Recipe:
    return tiny_recipe(
        "train.epochs=1",
        "model.pretrained=no",
        f"model.weights={weights}",
        *assignments,
    )


train = partial(train_run, device=CPU)


class TestUnion:
    """Lists of several runs, as sets."""

    def test_patients_are_joined_by_kind(self) -> None:
        one = TrainingPatients(ids={"a": ("1", "2")}, is_complete=True)
        other = TrainingPatients(ids={"a": ("2", "3"), "b": ("9",)}, is_complete=True)
        both = TrainingPatients(
            ids={"a": ("1", "2", "3"), "b": ("9",)}, is_complete=True
        )
        assert one | other == other | one == both

    def test_one_incomplete_list_makes_the_union_incomplete(self) -> None:
        one = TrainingPatients(ids={}, is_complete=True)
        assert not (one | replace(one, is_complete=False)).is_complete

    def test_the_text_is_read_back(self) -> None:
        one = TrainingPatients(ids={"a": ("1", "2"), "b": ()}, is_complete=False)
        assert patients_from_text(one.to_text()) == one

    @pytest.mark.parametrize(
        "text",
        [
            *("", "[", "[]", "{}", '{"ids": 3}', "[" * 10**5),
            '{"ids": {"a": [1]}, "is_complete": true}',
            '{"ids": {}, "is_complete": 1}',
        ],
    )
    def test_another_text_is_refused(self, text: str) -> None:
        with pytest.raises(RecipeError):
            patients_from_text(text)


class TestStores:
    """One run, and the stores in which its patients may be."""

    def test_its_own_store(self, store_path: Path, run_dir: Path) -> None:
        found = marks([run_dir], None)
        assert set(found.values()) == {"new"}
        assert not found.keys() & trained_patients(store_path)

    def test_slice_folds_leak(self, store_path: Path, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", store_path, "folds.kind=slice")
        table = predict_runs([run], device=CPU)
        with pytest.raises(
            PredictionError, match="patients that the model was trained on"
        ):
            check_leaks(table, allow=False)

    @pytest.mark.slow
    def test_after_an_append_the_run_predicts_the_patients_it_has_not_seen(
        self, heads: Heads, store_path: Path, run_dir: Path, tmp_path: Path
    ) -> None:
        grown = Path(shutil.copytree(store_path, tmp_path / store_path.name))
        heads.prepare(grown, "second", append=True)
        found = marks([run_dir], grown)
        assert set(found.values()) == {"new"}
        with Store(grown) as store:
            everybody = set(store.table["patient"])
            again = heads.prepare(grown, "first", append=True)
        assert found.keys() == everybody - trained_patients(store_path)
        assert len(found) == 3 + 4
        check_leaks(predict_runs([run_dir], device=CPU, store_path=again), allow=False)
        every = PredictConfig(all_slices=True)
        table = predict_runs([run_dir], device=CPU, store_path=grown, config=every)
        assert set(table["patient"]) == everybody
        is_marked = table["patient"].isin(trained_patients(store_path))
        assert (table["trained_on"] == is_marked).all()

    @pytest.mark.slow
    def test_an_append_to_the_runs_own_store_needs_no_option(
        self, heads: Heads, tmp_path: Path
    ) -> None:
        store_path = heads.prepare(tmp_path / "store", "first")
        run = write_run(tmp_path / "run", store_path)
        trained = trained_patients(store_path)
        heads.prepare(store_path, "second", append=True)
        found = marks([run], None)
        assert len(found) == 3 + 4
        assert not found.keys() & trained
        check_leaks(predict_runs([run], device=CPU), allow=False)

    @pytest.mark.slow
    def test_other_labels_change_no_patient(self, heads: Heads, tmp_path: Path) -> None:
        one = labels_for(range(4))
        store_path = heads.prepare(tmp_path / "store", "first", labels=one)
        run = write_run(tmp_path / "run", store_path)
        trained = trained_patients(store_path)
        heads.prepare(store_path, "first", append=True, labels=labels_for(range(6)))
        found = marks([run], store_path)
        assert len(found) == 6 - 2
        assert not found.keys() & trained

    @pytest.mark.slow
    def test_the_same_files_prepared_again_with_the_same_key(
        self, heads: Heads, store_path: Path, run_dir: Path, tmp_path: Path
    ) -> None:
        again = heads.prepare(tmp_path / "again", "first")
        assert not marks([run_dir], again).keys() & trained_patients(store_path)
        more = heads.prepare(tmp_path / "more", "second", "first")
        found = marks([run_dir], more)
        assert with_mark(found, "trained") == trained_patients(store_path)
        assert len(with_mark(found, "new")) == 3 + 4

    @pytest.mark.slow
    @pytest.mark.parametrize("key", [None, "other_key"])
    def test_ids_of_another_kind_are_unknown_and_refused(
        self,
        heads: Heads,
        run_dir: Path,
        tmp_path: Path,
        key: str | None,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        other = heads.prepare(tmp_path / "other", "second", "first", key=key)
        table = predict_runs([run_dir], device=CPU, store_path=other)
        assert table["trained_on"].isna().all()
        assert "cannot tell for 30 of 30 slices" in caplog.text
        with pytest.raises(PredictionError, match="not known of 30 of 30"):
            check_leaks(table, allow=False)

    @pytest.mark.slow
    def test_plain_ids_are_compared_and_not_named_in_the_checkpoint(
        self, heads: Heads, tmp_path: Path
    ) -> None:
        plain = heads.prepare(tmp_path / "plain", "first", key=None)
        run = write_run(tmp_path / "run", plain)
        more = heads.prepare(tmp_path / "more", "second", "first", key=None)
        found = marks([run], more)
        assert with_mark(found, "trained") == trained_patients(plain)
        assert len(with_mark(found, "new")) == 3 + 4
        for file in run.iterdir():
            assert b"MRN-" not in file.read_bytes(), file.name

    def test_a_slice_without_a_patient_is_unknown(self, tmp_path: Path) -> None:
        write_store(tmp_path / "store")
        with Store(tmp_path / "store") as store:
            store.table.loc[:2, ["patient", "study"]] = ""
            everybody = patients_of_slices(store, np.arange(10))
            found_N = everybody.trained_on_N(store)
        assert np.isnan(found_N[:3]).all()
        assert (found_N[3:10] == 1).all()

    @pytest.mark.parametrize("keep_ids", [True, False])
    def test_studies_that_count_as_patients_are_compared_with_studies(
        self, tmp_path: Path, *, keep_ids: bool
    ) -> None:
        plan = {"ids": "kept" if keep_ids else "hashed with key 1"}
        write_store(tmp_path / "store", plan=plan)
        with Store(tmp_path / "store") as store:
            store.header = replace(store.header, keep_ids=keep_ids)
            store.table["patient"] = "HEAD"
            store.table.loc[20, "patient"] = "S1"  # a patient named like the study
            is_first_N = (store.table["study"] == "S1").to_numpy()
            first = patients_of_slices(store, np.flatnonzero(is_first_N), unit="study")
            patient = patients_of_slices(store, np.arange(21))
            found = [
                each.trained_on_N(store)
                for each in (first, patient, first | patient, NOBODY)
            ]
            store.table.loc[0, "study"] = ""
            assert np.isnan(first.trained_on_N(store)[0])
        assert found[0].tolist() == is_first_N.tolist()
        assert (found[1] == 1).all()
        assert (found[2] == 1).all()
        assert (found[3] == 0).all()

    @pytest.mark.parametrize("where", ["beside the run", "above the run", "here"])
    def test_a_store_that_moved_is_found(
        self,
        where: str,
        store_path: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        store = Path(shutil.copytree(store_path, tmp_path / "was" / "store"))
        run = write_run(tmp_path / "moved" / "runs" / "run", store)
        for folder in ("moved", "here"):
            (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / "here")
        to = {"beside the run": run.parent, "above the run": run.parents[1]}
        shutil.move(store, to.get(where, tmp_path / "here"))
        assert (
            open_run(run)
            .find_store()
            .samefile(to.get(where, tmp_path / "here") / "store")
        )
        assert len(marks([run], None)) == 3

    def test_a_store_that_is_gone_or_another_is_named_with_its_run(
        self, heads: Heads, store_path: Path, tmp_path: Path
    ) -> None:
        store = Path(shutil.copytree(store_path, tmp_path / "store"))
        run = write_run(tmp_path / "run", store)
        shutil.rmtree(store)
        with pytest.raises(StoreError, match=r"run was trained on .*--store$"):
            predict_runs([run], device=CPU)
        heads.prepare(store, "second")
        with pytest.raises(StoreError, match=r"is another store now; .*--store$"):
            predict_runs([run], device=CPU)


class TestChains:
    """Runs that start from the weights of runs."""

    @pytest.mark.slow
    def test_the_third_run_has_the_patients_of_the_first(
        self, heads: Heads, store_path: Path, run_dir: Path, tmp_path: Path
    ) -> None:
        # The first run trains on three of patients 0 to 5, the second on two of 6 to 9
        # and the third on three of 0 to 5 again, those that the first validated with.
        second = heads.prepare(tmp_path / "second", "second")
        train(second, one_epoch(run_dir / BEST), tmp_path / "b")
        recipe = one_epoch(tmp_path / "b" / BEST, "folds.fold=1")
        train(store_path, recipe, tmp_path / "c")
        both = heads.prepare(tmp_path / "both", "first", "second")
        found = marks([tmp_path / "c"], both)
        trained = (
            trained_patients(store_path)
            | trained_patients(second)
            | trained_patients(store_path, fold=1)
        )
        assert with_mark(found, "trained") == trained
        assert len(trained) == 3 + 2 + 3
        # Its own validation fold is what the first run trained on.
        with pytest.raises(PredictionError, match="9 of 9 slices are of 3 patients"):
            check_leaks(predict_runs([tmp_path / "c"], device=CPU), allow=False)
        # The checkpoint alone, elsewhere, is enough.
        shutil.copy(tmp_path / "c" / BEST, tmp_path / "alone.pt")
        ids = patients_of_weights(tmp_path / "alone.pt").ids
        assert {patient for ids_of_kind in ids.values() for patient in ids_of_kind} == (
            trained
        )

    @pytest.mark.slow
    @pytest.mark.usefixtures("unrendered")
    def test_all_folds_from_the_weights_of_one_run(
        self,
        store_path: Path,
        run_dir: Path,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def train_fold(recipe: Recipe, out: Path, *, resume: bool) -> object:
            return train(store_path, recipe, out, resume=resume)

        report = train_folds(one_epoch(run_dir / BEST), tmp_path / "f", train_fold)  # type: ignore[arg-type]
        assert len(report.folds) == 2
        # Fold 0 validates on what the run has not seen, fold 1 on its patients.
        assert caplog.text.count("3 patient(s) validate on whom the weights") == 1
        runs = [tmp_path / "f" / f"fold-{fold}" for fold in (0, 1)]
        seen = [open_run(run).record.counts.valid_patients_seen for run in runs]
        assert seen == [0, 3]
        for run, folds, is_told in zip(
            runs, ("patient", "patient, seen"), (False, True), strict=True
        ):
            assert compare_runs([run])[-1].folds == folds
            card = format_card(open_run(run), Path("m.pt2"))
            assert ("may have been trained on 3 of the" in card) is is_told
            page = tmp_path / "page.html"
            report_run(run, predict_runs([run], device=CPU), page, device=CPU)
            told = "9 of 9 slices are of patients on whom" in page.read_text()
            assert told is is_told
        table = predict_runs(runs, device=CPU)
        assert table.groupby("run")["trained_on"].mean().tolist() == [0, 1]
        with pytest.raises(PredictionError, match="9 of 18 slices are of 3 patients"):
            check_leaks(table, allow=False)

    @pytest.mark.slow
    def test_one_run_of_an_ensemble_is_enough(
        self, heads: Heads, store_path: Path, run_dir: Path, tmp_path: Path
    ) -> None:
        second = heads.prepare(tmp_path / "second", "second")
        plain = heads.prepare(tmp_path / "plain", "second", key=None)
        both = heads.prepare(tmp_path / "both", "first", "second")
        knowing = [run_dir, write_run(tmp_path / "b", second)]
        trained = trained_patients(store_path) | trained_patients(second)
        found = marks(knowing, both)
        assert with_mark(found, "trained") == trained
        assert len(with_mark(found, "new")) == 10 - len(trained)
        found = marks([*knowing, write_run(tmp_path / "c", plain)], both)
        assert with_mark(found, "trained") == trained
        assert len(with_mark(found, "unknown")) == 10 - len(trained)

    @pytest.mark.slow
    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    @pytest.mark.parametrize(("classes", "is_known"), [(6, False), (1000, True)])
    def test_weights_from_elsewhere_are_unknown_except_of_imagenet(
        self,
        store_path: Path,
        run_dir: Path,
        tmp_path: Path,
        suffix: str,
        classes: int,
        *,
        is_known: bool,
    ) -> None:
        state = dict(load_checkpoint(run_dir / BEST)["model"])
        state = {name: tensor.contiguous() for name, tensor in state.items()}
        num_features = state["classifier.weight"].shape[1]
        state["classifier.weight"] = torch.zeros(classes, num_features)
        state["classifier.bias"] = torch.zeros(classes)
        path = tmp_path / f"elsewhere{suffix}"
        if suffix == ".pt":
            torch.save(state, path)
        else:
            safetensors.torch.save_file(state, path)
        assert patients_of_weights(path).is_complete is is_known
        train(store_path, one_epoch(path), tmp_path / "run")
        table = predict_runs([tmp_path / "run"], device=CPU)
        assert set(table["trained_on"]) == {False if is_known else pd.NA}

    def test_a_damaged_list_is_refused(self, run_dir: Path, tmp_path: Path) -> None:
        content = {**load_checkpoint(run_dir / BEST), PATIENTS: '{"ids": 3}'}
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(ModelError, match=r"a\.pt is damaged: ids: expected dict"):
            patients_of_weights(tmp_path / "a.pt")
