"""Folds keep patients together and classes even."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import pytest

from ichfast.errors import FoldError, RecipeError
from ichfast.labels import CLASSES
from ichfast.loading.splits import (
    FoldConfig,
    patient_folds,
    slice_folds,
    split_slices,
)
from ichfast.store.store import Store

REAL = Path(__file__).parents[3] / "shared" / "data" / "labels"


def made_up(num_patients: int = 211) -> tuple[list[str], np.ndarray]:
    """Patients of 1 to 40 slices with labels as rare as RSNA's."""
    rng = np.random.default_rng(3)
    slices_P = rng.integers(1, 41, num_patients)
    patients = [f"P{k}" for k, count in enumerate(slices_P) for _ in range(count)]
    subtypes_NK = rng.random((len(patients), 5)) < [0.01, 0.05, 0.04, 0.05, 0.06]
    labels_NK = np.column_stack([subtypes_NK.any(axis=1), subtypes_NK]).astype(np.uint8)
    return patients, labels_NK


def test_no_patient_is_in_two_folds_and_every_fold_has_slices() -> None:
    patients, labels_NK = made_up()
    folds_N = patient_folds(patients, labels_NK)
    table = pd.DataFrame({"patient": patients, "fold": folds_N})
    assert (table.groupby("patient")["fold"].nunique() == 1).all()
    assert sorted(set(folds_N)) == [0, 1, 2, 3, 4]


def test_folds_are_the_same_for_the_same_seed_in_any_order() -> None:
    patients, labels_NK = made_up()
    folds_N = patient_folds(patients, labels_NK)
    shuffled = np.random.default_rng(0).permutation(len(patients))
    again = patient_folds(np.array(patients)[shuffled], labels_NK[shuffled])
    np.testing.assert_array_equal(again, folds_N[shuffled])
    assert (patient_folds(patients, labels_NK, seed=1) != folds_N).any()


def test_a_missing_label_counts_as_negative() -> None:
    patients, labels_NK = made_up()
    missing_NK = np.where(labels_NK == 1, 1.0, np.nan)
    missing_NK[::2] = labels_NK[::2]
    for deal in (partial(patient_folds, patients), slice_folds):
        np.testing.assert_array_equal(deal(missing_NK), deal(labels_NK))


def test_complete_labels_have_the_folds_of_version_0_1() -> None:
    patients, labels_NK = made_up()
    digests = [
        crc32(deal(labels_NK).tobytes())
        for deal in (partial(patient_folds, patients), slice_folds)
    ]
    assert digests == [484_227_027, 3_262_275_683]


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(FoldError, match=r"2 patient\(s\) cannot make 5 folds"):
        patient_folds(["a", "b", "b"], np.zeros((3, 6)))


def test_real_studies_spread_every_class_within_two_percent() -> None:
    path = REAL / "train_studies_patients_folds.csv.xz"
    if not path.is_file():
        pytest.skip("needs the real studies beside the repository")
    studies = pd.read_csv(path)
    labels_NK = studies[list(CLASSES)].to_numpy()
    folds_N = patient_folds(studies["PatientID"].to_numpy(), labels_NK)
    assert (
        studies.assign(fold=folds_N).groupby("PatientID")["fold"].nunique() == 1
    ).all()
    counts_FK = np.array([labels_NK[folds_N == fold].sum(axis=0) for fold in range(5)])
    assert (abs(counts_FK / counts_FK.mean(axis=0) - 1) < 0.02).all()
    assert np.bincount(folds_N).tolist() == [3906] * 5


def test_slice_folds_are_even_and_warn_that_they_leak(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, labels_NK = made_up()
    folds_N = slice_folds(labels_NK)
    counts_FK = np.array([labels_NK[folds_N == fold].sum(axis=0) for fold in range(5)])
    assert (np.ptp(counts_FK, axis=0) <= 32).all()  # one per combination of labels
    assert np.ptp(np.bincount(folds_N)) <= 1
    assert "both sides" in caplog.text


# ---- what stays together ----


def refusal(store: Store, **settings: Any) -> str:
    with pytest.raises(FoldError) as caught:
        split_slices(store, FoldConfig(**settings))
    return str(caught.value)


def test_studies_of_one_patient_can_be_in_several_folds(tiny_store: Store) -> None:
    tiny_store.table["patient"] = "HEAD"
    split = split_slices(tiny_store, FoldConfig(group="study"))
    labelled = tiny_store.table.assign(fold=split.fold_N)[split.fold_N >= 0]
    assert (labelled.groupby("study")["fold"].nunique() == 1).all()
    assert labelled["fold"].nunique() == 5


def test_a_slice_without_a_patient_is_grouped_by_study(tiny_store: Store) -> None:
    tiny_store.table["patient"] = ""
    split = split_slices(tiny_store, FoldConfig())
    by_study = split_slices(tiny_store, FoldConfig(group="study"))
    assert split.fold_N.tolist() == by_study.fold_N.tolist()
    assert split.counts(tiny_store)["train_patients"] == 4


def test_the_group_does_not_change_folds_by_slice(tiny_store: Store) -> None:
    folds = [
        split_slices(tiny_store, FoldConfig(kind="slice", group=group)).fold_N.tolist()
        for group in ("patient", "study")
    ]
    assert folds[0] == folds[1]
    assert FoldConfig(kind="slice", group="study").unit == "slice"


def test_one_patient_with_several_studies_is_advised_to_group_by_study(
    tiny_store: Store,
) -> None:
    tiny_store.table["patient"] = "HEAD"
    assert refusal(tiny_store) == (
        "1 patient(s) with labels cannot make 5 folds; if that id stands for several "
        "patients, train by study, of which there are 5, with --set folds.group=study"
    )
    assert refusal(tiny_store, num_folds=7).endswith(
        "with --set folds.group=study --set folds.num_folds=5"
    )


def test_the_advice_for_too_few_patients_can_be_followed(tiny_store: Store) -> None:
    assert refusal(tiny_store) == (
        "4 patient(s) with labels cannot make 5 folds; train with --set "
        "folds.num_folds=4, or prepare more"
    )
    split_slices(tiny_store, FoldConfig(num_folds=4))
    assert refusal(tiny_store, group="study", num_folds=6) == (
        "5 study(s) with labels cannot make 6 folds; train with --set "
        "folds.num_folds=5, or prepare more"
    )
    tiny_store.table[["patient", "study"]] = "HEAD"
    assert refusal(tiny_store) == (
        "1 patient(s) with labels cannot make 5 folds; prepare more patients"
    )


def test_a_store_without_labels_is_advised_to_add_them(tiny_store: Store) -> None:
    missing = pd.array([pd.NA] * len(tiny_store), dtype="Int8")
    tiny_store.table[list(CLASSES)] = pd.DataFrame(dict.fromkeys(CLASSES, missing))
    path = tiny_store.path
    assert refusal(tiny_store) == (
        f"{path} has no labels; add them with `ichfast prepare SOURCE... --store "
        f"{path} --append --labels CSV`"
    )


def test_another_group_is_refused() -> None:
    with pytest.raises(RecipeError, match="group is patient or study, got 'series'"):
        FoldConfig(group="series")
