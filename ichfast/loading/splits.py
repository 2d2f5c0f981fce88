"""Folds: disjoint parts of a store's slices. One fold validates, the others train.

Slices with a label of any class take part, of their own or as a part of a bag
(`ichfast.loading.bags`). For a slice without a patient id, its study counts as the
patient.

Promises of `patient_folds`:

1. All slices of a patient are in one fold.
2. Positives of each class are spread as evenly as whole patients allow. A missing label
   counts as negative here.
3. The same slices and seed give the same folds, in any order of the slices.

`slice_folds` is the reference's own split. It puts slices of one patient on both sides,
so the validation loss looks about 8 % better than it is. It is there to compare with
the reference's figures.

Shape letters: N slices, K classes, P patients, F folds, C columns of counts (the
classes and all slices).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ichfast.errors import FoldError, RecipeError
from ichfast.labels import CLASSES, NUM_SHOWN
from ichfast.loading.bags import Bags, find_bags
from ichfast.loading.id_files import MAX_FOLD, IdFile, read_id_file
from ichfast.store.store import Store
from ichfast.store.tables import patients_N, studies_N, units_N

logger = logging.getLogger(__name__)

ID_FILES = {"file": "folds.csv", "only": "only.csv"}
"""Settings of `FoldConfig` that name a file, and the file's copy in a run's folder."""

NUM_FOLDS = 5
FOLD_SEED = 42
"""Number and seed of the folds by default, as in the experiments of the reference."""


def patient_folds(
    patients_N: npt.ArrayLike,
    labels_NK: npt.NDArray[np.number],
    *,
    num_folds: int = NUM_FOLDS,
    seed: int = FOLD_SEED,
) -> npt.NDArray[np.int8]:
    """Distribute whole patients over folds, the rarest class first.

    Patients with the rarest class come first, sorted by their number of its slices.
    Each goes to the fold where it adds least to the unevenness: the squared share of a
    class that a fold holds, summed over folds and classes. The next rarest class
    follows, and patients without any class come last.

    Args:
        patients_N: the patient of each slice.
        labels_NK: 0, 1 or NaN, shape (N, 6).
        num_folds: number of folds.
        seed: orders patients with equal counts.

    Returns:
        The fold of each slice, 0 to `num_folds` - 1, shape (N,), int8.

    Raises:
        FoldError: there are fewer patients than folds.

    Source:
        Rarest label first is the split of the competition's 11th place, which the
        reference's later experiments use. Distribution by counts is Sechidis,
        Tsoumakas, Vlahavas, "On the Stratification of Multi-label Data" (2011).
    """
    patient_N, patients_P = pd.factorize(np.asarray(patients_N), sort=True)
    num_patients = len(patients_P)
    if num_patients < num_folds:
        raise FoldError(f"{num_patients} patient(s) cannot make {num_folds} folds")
    counts_PC = _count_by_patient(patient_N, labels_NK, num_patients)
    tie_P = np.random.default_rng(seed).permutation(num_patients)

    fold_P = np.full(num_patients, -1, dtype=np.int8)
    weight_C = 1.0 / np.maximum(counts_PC.sum(axis=0), 1) ** 2
    totals_FC = np.zeros((num_folds, counts_PC.shape[1]), dtype=np.int64)
    for column in _rarest_first(counts_PC):
        open_P = np.flatnonzero((fold_P < 0) & (counts_PC[:, column] > 0))
        order = np.lexsort((tie_P[open_P], -counts_PC[open_P, column]))
        for patient in open_P[order]:
            # Growth of the squared unevenness, summed over the classes.
            growth_F = totals_FC @ (counts_PC[patient] * weight_C)
            emptiest = np.argmin(growth_F)
            fold_P[patient] = emptiest
            totals_FC[emptiest] += counts_PC[patient]
    folds_N: npt.NDArray[np.int8] = fold_P[patient_N]
    return folds_N


def slice_folds(
    labels_NK: npt.NDArray[np.number],
    *,
    num_folds: int = NUM_FOLDS,
    seed: int = FOLD_SEED,
) -> npt.NDArray[np.int8]:
    """Distribute slices over folds by their combination of positive labels.

    Slices of one patient get into several folds, so a warning is logged.

    Args:
        labels_NK: 0, 1 or NaN, shape (N, 6).
        num_folds: number of folds.
        seed: shuffles the slices of each combination.

    Returns:
        The fold of each slice, shape (N,), int8.

    Source:
        The reference calls scikit-learn's StratifiedKFold on the label string. This has
        the same distribution, not the same draws.
    """
    logger.warning(
        "slice folds put slices of one patient on both sides; "
        "validation looks about 8 percent better than it is"
    )
    powers_K = 1 << np.arange(len(CLASSES))
    kind_N = (np.asarray(labels_NK) == 1) @ powers_K
    shuffled_N = np.random.default_rng(seed).permutation(len(kind_N))
    by_kind_N = shuffled_N[np.argsort(kind_N[shuffled_N], kind="stable")]
    folds_N = np.empty(len(kind_N), dtype=np.int8)
    folds_N[by_kind_N] = np.arange(len(kind_N)) % num_folds
    return folds_N


def _count_by_patient(
    patient_N: npt.NDArray[np.intp],
    labels_NK: npt.NDArray[np.number],
    num_patients: int,
) -> npt.NDArray[np.int64]:
    """Count each patient's slices of each class, and all slices in the last column."""
    labels_and_one_NC = np.column_stack([labels_NK == 1, np.ones(len(labels_NK))])
    return np.stack(
        [
            np.bincount(patient_N, weights=column_N, minlength=num_patients)
            for column_N in labels_and_one_NC.T
        ],
        axis=1,
    ).astype(np.int64)


def _rarest_first(counts_PC: npt.NDArray[np.int64]) -> list[int]:
    """Columns by increasing number of slices; the column of all slices is last."""
    return [int(c) for c in np.argsort(counts_PC.sum(axis=0), kind="stable")]


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldConfig:
    """Settings that decide which slices validate."""

    kind: str = "patient"
    """``patient``: whole patients; ``slice``: the reference's split, which leaks."""

    group: str = "patient"
    """With the kind ``patient``, whose slices stay together: those of a ``patient``, or
    of a ``study``, where all files have one patient's id."""

    num_folds: int = NUM_FOLDS
    """Number of folds."""

    fold: int = 0
    """The fold that validates."""

    seed: int = FOLD_SEED
    """Seed of the folds."""

    file: str = ""
    """A file with the fold of each slice, series, study or patient, which replaces
    `num_folds` and `seed` (`ichfast.loading.id_files`); empty for none."""

    only: str = ""
    """A file with the ids of the slices, series, studies or patients that take part;
    empty for all."""

    def __post_init__(self) -> None:
        if self.kind not in ("patient", "slice"):
            raise RecipeError(f"folds.kind is patient or slice, got {self.kind!r}")
        if self.group not in ("patient", "study"):
            raise RecipeError(f"folds.group is patient or study, got {self.group!r}")
        if self.file and not 0 <= self.fold <= MAX_FOLD:
            raise RecipeError(f"folds.fold is in 0 to {MAX_FOLD}, got {self.fold}")
        if self.num_folds < 2 or not (self.file or 0 <= self.fold < self.num_folds):
            raise RecipeError(
                f"folds.fold is in 0 to {self.num_folds - 1} with {self.num_folds} "
                f"folds of at least 2, got {self.fold}"
            )
        if self.seed < 0:
            raise RecipeError(f"folds.seed must be at least 0, got {self.seed}")

    @property
    def unit(self) -> str:
        """What a fold has all slices of: a ``patient``, a ``study`` or a ``slice``."""
        return self.group if self.kind == "patient" else "slice"


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Training and validation slices of a store, in store order."""

    fold_N: npt.NDArray[np.int8]
    """The fold of each slice of the store; -1 if it has no labels."""

    bags: Bags
    """All bags of the store."""

    train_N: npt.NDArray[np.int64]
    valid_N: npt.NDArray[np.int64]

    files: Mapping[str, IdFile] = field(default_factory=dict)
    """The content of the files of ids, by setting (`ID_FILES`)."""

    num_left_out: int = 0
    """Labelled slices that have no fold in `FoldConfig.file`."""

    def counts(self, store: Store) -> dict[str, Any]:
        """Number of slices and patients of both parts, and of labels to train on."""
        patients = patients_N(store.table)
        bags = self.bags.within(self.train_N)
        return {
            "train_slices": len(self.train_N),
            "train_patients": len(set(patients[self.train_N])),
            "train_labels": _count_known(store.labels_NK()[self.train_N]),
            "train_bag_labels": _count_known(bags.labels_DK) if len(bags) else {},
            "valid_slices": len(self.valid_N),
            "valid_patients": len(set(patients[self.valid_N])),
        }


def _count_known(labels_NK: npt.NDArray[np.float32]) -> dict[str, int]:
    known_K = (~np.isnan(labels_NK)).sum(axis=0)
    return dict(zip(CLASSES, known_K.tolist(), strict=True))


def split_slices(store: Store, folds: FoldConfig, *, limit: int | None = None) -> Split:
    """Split a store's labelled slices into folds, and choose the one that validates.

    Args:
        store: with labels.
        folds: kind, number, seed and the fold that validates.
        limit: number of training slices to keep, spread evenly, with a quarter as many
            for validation; None keeps all.

    Raises:
        FoldError: no slice has a label, there are too few patients, a part is empty, or
            folds by slice would cut bags; a file of ids cannot be read or has no id of
            the store, or it puts a patient in two folds.
    """
    labels_NK, bags = store.labels_NK(), find_bags(store)
    is_labelled_N = np.logical_or.reduce(~np.isnan(labels_NK), axis=1)
    if len(bags):
        is_labelled_N[bags.slices_M] = True
        # The label of a bag counts once, as one of its first slice.
        first_D = bags.slices_M[bags.first_D]
        np.fmax.at(labels_NK, first_D, bags.labels_DK)
    labelled_N = np.flatnonzero(is_labelled_N)
    if labelled_N.size == 0:
        raise FoldError(
            f"{store.path} has no labels; add them with `ichfast prepare SOURCE... "
            f"--store {store.path} --append --labels CSV`"
        )
    if folds.kind == "slice" and len(bags):
        raise FoldError(
            f"{store.path} has labels of studies or series, which folds by slice would "
            "cut; use --set folds.kind=patient"
        )
    files = _read_id_files(store, folds)
    if "only" in files:
        labelled_N = labelled_N[files["only"].position_N(store)[labelled_N] >= 0]
        if labelled_N.size == 0:
            raise FoldError(f"no slice with labels is in {folds.only}")
    if "file" in files:
        labelled_folds_N = _folds_of_file(store, folds, labelled_N, files["file"])
    elif folds.kind == "patient":
        labelled_folds_N = patient_folds(
            _enough_groups(store.table.iloc[labelled_N], folds),
            labels_NK[labelled_N],
            num_folds=folds.num_folds,
            seed=folds.seed,
        )
    else:
        labelled_folds_N = slice_folds(
            labels_NK[labelled_N], num_folds=folds.num_folds, seed=folds.seed
        )
    fold_N = np.full(len(store), -1, dtype=np.int8)
    fold_N[labelled_N] = labelled_folds_N
    valid_N = np.flatnonzero(fold_N == folds.fold)
    train_N = np.flatnonzero((fold_N >= 0) & (fold_N != folds.fold))
    if limit is not None:
        train_N = _evenly(train_N, limit)
        valid_N = _evenly(valid_N, max(1, limit // 4))
    if not train_N.size or not valid_N.size:
        raise FoldError(
            _empty_part(folds, fold_N, "validate with" if train_N.size else "train on")
        )
    return Split(
        fold_N=fold_N,
        bags=bags,
        train_N=train_N,
        valid_N=valid_N,
        files=files,
        num_left_out=int((fold_N[labelled_N] < 0).sum()),
    )


def _read_id_files(store: Store, folds: FoldConfig) -> dict[str, IdFile]:
    paths = {"file": folds.file, "only": folds.only}
    return {
        setting: read_id_file(Path(path), store, has_folds=setting == "file")
        for setting, path in paths.items()
        if path
    }


def in_run_folder(
    folds: FoldConfig, run_dir: Path, *, only_missing: bool = False
) -> FoldConfig:
    """The same folds, with the copies of their files in a run's folder.

    Args:
        folds: as in the run's record.
        run_dir: the run's folder.
        only_missing: take a copy only where the file is not there any more.
    """

    def copy_of(setting: str, path: str) -> str:
        if not path or (only_missing and Path(path).exists()):
            return path
        return str(run_dir / ID_FILES[setting])

    return replace(
        folds, file=copy_of("file", folds.file), only=copy_of("only", folds.only)
    )


def _folds_of_file(
    store: Store, folds: FoldConfig, labelled_N: npt.NDArray[np.int64], file: IdFile
) -> npt.NDArray[np.int8]:
    """The fold of each labelled slice, or -1.

    Raises:
        FoldError: a patient is in two folds.
    """
    if folds.kind == "slice":
        raise FoldError(
            f"folds.kind=slice puts patients in several folds, and {folds.file} does "
            "not; add --set folds.kind=patient"
        )
    fold_of = np.array([*file.folds, -1], dtype=np.int8)
    folds_N = fold_of[file.position_N(store)[labelled_N]]
    group_N = units_N(store.table.iloc[labelled_N], folds.group)
    table = pd.DataFrame({"group": group_N, "fold": folds_N})
    pairs = table[(folds_N >= 0) & (table["group"] != "")].drop_duplicates()
    of_two = pairs[pairs.duplicated("group")]["group"].unique()
    if len(of_two):
        raise FoldError(
            f"{folds.file} puts {len(of_two):,} {folds.group}(s) in more than one "
            f"fold, first {', '.join(of_two[:NUM_SHOWN])}: the model would be judged "
            f"on patients it was trained on; give a {folds.group} one fold"
        )
    return folds_N


def _empty_part(folds: FoldConfig, fold_N: npt.NDArray[np.int8], purpose: str) -> str:
    if folds.file:
        shown = ", ".join(map(str, np.unique(fold_N[fold_N >= 0]))) or "none"
        return (
            f"no slices to {purpose} in fold {folds.fold}: the slices with labels have "
            f"the folds {shown} in {folds.file}; choose another --fold"
        )
    return (
        f"no slices to {purpose} in fold {folds.fold} of {folds.num_folds}; choose "
        "another --fold, or fewer with --set folds.num_folds=2"
    )


def _enough_groups(table: pd.DataFrame, folds: FoldConfig) -> npt.NDArray[np.object_]:
    """`units_N` of the labelled slices, at least as many as there are folds."""
    group_N = units_N(table, folds.group)
    num_groups = len(set(group_N))
    if num_groups < folds.num_folds:
        num_studies = len(set(studies_N(table)))
        advice = _advice(num_groups, num_studies, folds.num_folds)
        raise FoldError(
            f"{num_groups} {folds.group}(s) with labels cannot make {folds.num_folds} "
            f"folds; {advice}"
        )
    return group_N


def _advice(num_groups: int, num_studies: int, num_folds: int) -> str:
    """How to get folds that the slices are enough for."""
    if num_groups > 1:
        return f"train with --set folds.num_folds={num_groups}, or prepare more"
    if num_studies < 2:
        return "prepare more patients"
    fewer = f" --set folds.num_folds={num_studies}" if num_studies < num_folds else ""
    return (
        f"if that id stands for several patients, train by study, of which there are "
        f"{num_studies}, with --set folds.group=study{fewer}"
    )


def _evenly(slices_N: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    if count >= slices_N.size:
        return slices_N
    return slices_N[np.linspace(0, slices_N.size - 1, count).astype(int)]
