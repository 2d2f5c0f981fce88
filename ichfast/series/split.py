"""The series that a head trains and validates on, from features and their store.

The leak rule: a backbone's features of its own training patients are like no others,
so nothing is judged on them.

1. With the features of one run, the head trains on the patients that the run trained
   on, and validates on the run's fold.
2. With the features of several runs, each slice has those of the run that held it out.
   The head of a fold trains on the patients of the other folds, and validates on it.
3. Folds are the runs' own. Slices that have no fold there, by `folds.only` or
   `folds.file`, keep their features and have no label.

Where only a study has a label, each of its series has it: they show the same head.

Shape letters: N slices of the store, S series, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from ichfast.errors import FoldError, PredictionError
from ichfast.loading.bags import bag_starts
from ichfast.loading.splits import FoldConfig
from ichfast.runs.patients import TrainingPatients, patients_of_slices
from ichfast.runs.trained import TrainedRun
from ichfast.series.batches import SeriesArrays
from ichfast.series.features import Features
from ichfast.series.record import SeriesCounts
from ichfast.store.store import Store
from ichfast.store.tables import BAG_LABELS, patients_N

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesSplit:
    """Series that train and that validate."""

    train: SeriesArrays
    valid: SeriesArrays
    patient_N: Integers
    """The patient of each slice of the store, a number from 0."""

    train_patients: TrainingPatients
    counts: SeriesCounts


def choose_fold(features: Features, fold: int | None) -> int:
    """Choose the fold that validates.

    Args:
        features: of the runs whose folds can validate.
        fold: the wanted one; None: the first.

    Raises:
        FoldError: no run of the features holds it out.
    """
    folds = [run.fold for run in features.header.runs]
    if fold is None:
        return folds[0]
    if fold not in folds:
        shown = ", ".join(map(str, folds))
        raise FoldError(
            f"{features.path} has features of runs that hold out fold {shown}, not "
            f"{fold}; choose another --fold, or make features with the run of that fold"
        )
    return fold


def split_series(
    features: Features, store: Store, runs: Sequence[TrainedRun], fold: int
) -> SeriesSplit:
    """Read labels and split the series of a store, as its backbones were split.

    Args:
        features: of this store.
        store: with labels.
        runs: the runs of the features, in the order of their header.
        fold: one of theirs, which validates.

    Raises:
        FoldError: the runs have no folds of patients on this store, or other folds than
            each other; or a part has no series.
        PredictionError: the folder's features are not those of the runs' folds.
    """
    fold_N = _folds(features, store, runs)
    first_S, _ = bag_starts(store, "series")
    fold_S = np.maximum.reduceat(fold_N, first_S)
    is_train_S = (fold_S >= 0) & (fold_S != fold)
    if len(runs) > 1:
        is_train_S &= np.isin(fold_S, [run.fold for run in features.header.runs])
    whole = _all_series(features, store, fold_N)
    train, valid = _chosen(whole, is_train_S), _chosen(whole, fold_S == fold)
    if not (len(train) and len(valid)):
        raise FoldError(
            f"{features.path} has no series to {'validate' if len(train) else 'train'} "
            f"on with fold {fold}; make features with the runs of two folds or more, "
            "or choose another --fold"
        )
    patient_N = pd.factorize(patients_N(store.table))[0].astype(np.int64)
    unit = "study" if runs[0].record.recipe.folds.unit == "study" else "patient"
    return SeriesSplit(
        train=train,
        valid=valid,
        patient_N=patient_N,
        train_patients=patients_of_slices(store, train.rows_M, unit=unit),
        counts=SeriesCounts(
            train_series=len(train),
            train_slices=len(train.rows_M),
            train_patients=len(np.unique(patient_N[train.rows_M])),
            valid_series=len(valid),
            valid_slices=len(valid.rows_M),
            valid_patients=len(np.unique(patient_N[valid.rows_M])),
            valid_patients_seen=_count_seen(features, store, runs, valid, patient_N),
        ),
    )


def _all_series(
    features: Features, store: Store, fold_N: npt.NDArray[np.int8]
) -> SeriesArrays:
    """All series of a store; those without features have no rows."""
    first_S, count_S = bag_starts(store, "series")
    has_features_N = features.run_N >= 0
    labels_NK = store.labels_NK()
    labels_NK[fold_N < 0] = np.nan
    return SeriesArrays(
        features_ND=features.features_ND,
        labels_NK=labels_NK,
        position_mm_N=store.table["position_mm"].to_numpy(np.float64),
        rows=[
            first + np.flatnonzero(has_features_N[first : first + count])
            for first, count in zip(first_S, count_S, strict=True)
        ],
        series_labels_SK=_series_labels(store, first_S),
    )


def _chosen(whole: SeriesArrays, is_chosen_S: npt.NDArray[np.bool_]) -> SeriesArrays:
    """Some of the series, without those that have no rows."""
    chosen = [s for s in np.flatnonzero(is_chosen_S).tolist() if len(whole.rows[s])]
    return replace(
        whole,
        rows=[whole.rows[s] for s in chosen],
        series_labels_SK=whole.series_labels_SK[chosen],
    )


def _folds(
    features: Features, store: Store, runs: Sequence[TrainedRun]
) -> npt.NDArray[np.int8]:
    """The fold of each slice of the store, the same for all runs; -1 for none."""
    splits = {_split_settings(run) for run in runs}
    if len(splits) > 1:
        raise FoldError(
            f"the runs of {features.path} split patients differently (folds.num_folds, "
            "folds.seed or folds.file); make features with the runs of one `ichfast "
            "train --fold all`"
        )
    for number, run in enumerate(runs):
        if not run.trained_on(store):
            raise FoldError(
                f"{run.path} was trained on another store than {store.path}; a head "
                "trains on the store of its backbones, split as theirs was"
            )
        if run.record.recipe.folds.unit == "slice":
            raise FoldError(
                f"{run.path} has folds by slice, which put patients on both sides; "
                "train it with --set folds.kind=patient"
            )
        if run.record.recipe.folds.fold != features.header.runs[number].fold:
            raise _other_folds(features)
    fold_N = runs[0].split(store).fold_N
    if len(runs) > 1:
        held_out = np.array([*(run.fold for run in features.header.runs), -1])
        by_run_N = held_out[features.run_N]
        if ((fold_N >= 0) & (by_run_N >= 0) & (fold_N != by_run_N)).any():
            raise _other_folds(features)
    return fold_N


def _split_settings(run: TrainedRun) -> tuple[FoldConfig, tuple[tuple[str, str], ...]]:
    """What decides the folds of a run; its digests stand for its files."""
    folds = replace(run.record.recipe.folds, fold=0, file="", only="")
    return folds, tuple(sorted(run.record.id_files.items()))


def _other_folds(features: Features) -> PredictionError:
    return PredictionError(
        f"{features.path} has features of other folds than its runs; make the features "
        "again with `ichfast features`"
    )


def _series_labels(store: Store, first_S: Integers) -> Floats:
    """The label of each series, or of its study where nothing else there has one."""
    series_NK, study_NK = (
        store.table[list(BAG_LABELS[bag])].to_numpy(np.float32, na_value=np.nan)
        for bag in ("series", "study")
    )
    first_D, count_D = bag_starts(store, "study")
    is_known_NK = ~(np.isnan(store.labels_NK()) & np.isnan(series_NK))
    is_known_DK = np.logical_or.reduceat(is_known_NK, first_D, axis=0)
    study_DK = np.where(is_known_DK, np.float32(np.nan), study_NK[first_D])
    study_NK = np.repeat(study_DK, count_D, axis=0)
    return np.where(np.isnan(series_NK), study_NK, series_NK)[first_S]


def _count_seen(
    features: Features,
    store: Store,
    runs: Sequence[TrainedRun],
    valid: SeriesArrays,
    patient_N: Integers,
) -> int:
    """Count patients who validate although a run before may have trained on them."""
    rows_M = valid.rows_M
    seen: set[int] = set()
    for number, run in enumerate(runs):
        read_M = rows_M[features.run_N[rows_M] == number]
        is_seen_M = run.patients.trained_on_N(store)[read_M] != 0
        seen.update(patient_N[read_M[is_seen_M]].tolist())
    if seen:
        logger.warning(
            "%d patient(s) validate on whom a backbone was trained before, or may have "
            "been: validation looks better than on new patients",
            len(seen),
        )
    return len(seen)
