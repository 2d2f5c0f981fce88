"""Which slices of a store a run predicts.

1. On the store it was trained on, a run predicts the slices of its validation fold,
   which it has not seen. On that store after an append it predicts the slices of all
   patients on whom its weights were not trained. On any other store, or where all
   slices are asked for, it predicts all.
2. For each slice it is told whether the run, or a run from whose weights it started,
   was trained on its patient.
3. A series run predicts the series of its own fold with the backbones that held it
   out, and other series with all its backbones. It was trained on a patient if its head
   was, or one of the backbones that it uses here. Its networks see whole series, also
   where only some slices of them are wanted.

Shape letters: N slices of the store, M slices that a run predicts, R slices that its
networks see.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ichfast.errors import PredictionError
from ichfast.evaluation.logits import Floats
from ichfast.loading.bags import bag_starts
from ichfast.loading.id_files import read_id_file
from ichfast.loading.splits import Split
from ichfast.runs.patients import TrainingPatients
from ichfast.runs.trained import TrainedRun, open_run
from ichfast.series.folder import SeriesRun, is_series_run, open_series_run
from ichfast.store.store import Store

logger = logging.getLogger(__name__)

Positions = npt.NDArray[np.int64]


Run = TrainedRun | SeriesRun


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """Slices of a store that a run predicts with the same networks."""

    run: Run
    networks: tuple[TrainedRun, ...]
    """The run itself, or backbones of a series run."""

    seen_R: Positions
    """Store positions of the slices that the networks see, rising: those of the series
    for a series run."""

    positions_M: Positions
    """Store positions, rising."""

    fold_M: npt.NDArray[np.int8]
    """Fold of each slice; -1 for none."""

    trained_on_M: Floats
    """Whether the run was trained on the patient: 1 or 0; NaN where it is not known."""


def open_runs(paths: Sequence[Path]) -> list[Run]:
    """Open runs and series runs whose predictions are averaged.

    Raises:
        CheckpointError: there is no run, or one is not finished.
        PredictionError: the same run twice.
        RecipeError: the record of a run is damaged.
    """
    counts = Counter(path.resolve() for path in paths)
    repeated = [path for path, count in counts.items() if count > 1]
    if repeated:
        raise PredictionError(f"{repeated[0]} is named twice; name each run once")
    return [
        open_series_run(path) if is_series_run(path) else open_run(path)
        for path in paths
    ]


def cover(
    run: Run, store: Store, *, all_slices: bool, only: Path | None, limit: int | None
) -> list[Coverage]:
    """Find the slices of a store that a run predicts.

    Args:
        run: the run.
        store: the store to predict.
        all_slices: also predict slices that the run was trained on.
        only: a file of ids (`ichfast.loading.id_files`) of the slices to choose from;
            None: all.
        limit: upper limit of slices, spread evenly over them; None: no limit.

    Returns:
        One coverage; or two without a common series, of a series run that predicts all
        slices of its own store.

    Raises:
        IchfastError: there are no slices, the file cannot be read, or a file of the
            run's folder was edited.
    """
    split = _held_out(run)[0].split(store) if run.trained_on(store) else None
    parts = _parts(run, store, split, all_slices=all_slices)
    chosen_M = np.sort(np.concatenate([positions_M for _, positions_M in parts]))
    if only is not None:
        is_listed_N = read_id_file(only, store, has_folds=False).position_N(store) >= 0
        chosen_M = chosen_M[is_listed_N[chosen_M]]
    if not chosen_M.size:
        raise PredictionError(
            f"{only} has none of the slices that {run.path} predicts; add --all to "
            "predict those that it was trained on too"
        )
    if limit is not None and limit < len(chosen_M):
        chosen_M = chosen_M[np.linspace(0, len(chosen_M) - 1, limit).astype(int)]
    fold_N = np.full(len(store), -1, np.int8) if split is None else split.fold_N
    coverages = [
        _coverage(run, networks, store, part_M, fold_N)
        for networks, positions_M in parts
        if (part_M := np.intersect1d(positions_M, chosen_M)).size
    ]
    _warn_if_unknown(run, coverages)
    return coverages


def _coverage(
    run: Run,
    networks: tuple[TrainedRun, ...],
    store: Store,
    positions_M: Positions,
    fold_N: npt.NDArray[np.int8],
) -> Coverage:
    return Coverage(
        run=run,
        networks=networks,
        seen_R=positions_M
        if isinstance(run, TrainedRun)
        else whole_series(store, positions_M),
        positions_M=positions_M,
        fold_M=fold_N[positions_M],
        trained_on_M=_patients(run, networks).trained_on_N(store)[positions_M],
    )


def common_store(runs: Sequence[Run]) -> Path:
    """Find the store that all of some runs trained on.

    Raises:
        PredictionError: they trained on different ones.
        StoreError: a store is not found.
    """
    stores = {run.find_store().resolve(): run for run in runs}
    if len(stores) > 1:
        shown = ", ".join(f"{run.path} on {store}" for store, run in stores.items())
        raise PredictionError(
            f"the runs trained on different stores ({shown}); "
            "name the one to predict with --store"
        )
    return next(iter(stores))


def all_networks(run: Run) -> tuple[TrainedRun, ...]:
    """The run itself, or the backbones of a series run."""
    return (run,) if isinstance(run, TrainedRun) else run.backbones


def _held_out(run: Run) -> tuple[TrainedRun, ...]:
    """The networks that held out the validation fold of a run."""
    if isinstance(run, TrainedRun):
        return (run,)
    return tuple(
        backbone
        for backbone, described in zip(run.backbones, run.record.features, strict=True)
        if described.fold == run.record.fold
    )


def _parts(
    run: Run, store: Store, split: Split | None, *, all_slices: bool
) -> list[tuple[tuple[TrainedRun, ...], Positions]]:
    """The slices to predict, divided by the networks that predict them.

    Args:
        run: the run.
        store: the store to predict.
        split: of the run, if it was trained on the store.
        all_slices: also predict slices that the run was trained on.
    """
    everything_N = np.arange(len(store), dtype=np.int64)
    if split is None:
        if run.trained_before(store) and not all_slices:
            everything_N = _not_trained_on(run, store)
        return [(all_networks(run), everything_N)]
    if not all_slices:
        return [(_held_out(run), split.valid_N)]
    if isinstance(run, TrainedRun):
        return [((run,), everything_N)]
    # Whole series, since the probability of a series is of all its slices.
    own_M = whole_series(store, split.valid_N)
    return [
        (_held_out(run), own_M),
        (all_networks(run), np.setdiff1d(everything_N, own_M)),
    ]


def _not_trained_on(run: Run, store: Store) -> Positions:
    """Slices of patients on whom a run was not trained, or not as far as is known."""
    trained_N = _patients(run, all_networks(run)).trained_on_N(store)
    positions_M = np.flatnonzero(trained_N != 1)
    if not positions_M.size:
        raise PredictionError(
            f"{run.path} was trained on every patient of {store.path}; append other "
            "patients, name another store with --store, or predict all slices with "
            "--all"
        )
    return positions_M


def _patients(run: Run, networks: Sequence[TrainedRun]) -> TrainingPatients:
    """The patients that a run was trained on, if it predicts with some networks."""
    parts = [network.patients for network in networks]
    if isinstance(run, SeriesRun):
        parts.append(run.head_patients)
    return reduce(or_, parts)


def _warn_if_unknown(run: Run, coverages: Sequence[Coverage]) -> None:
    """Warn if it is not known whether a run was trained on some of the patients."""
    trained_M = np.concatenate([each.trained_on_M for each in coverages])
    num_unknown = int(np.isnan(trained_M).sum())
    if num_unknown:
        logger.warning(
            "cannot tell for %d of %d slices whether %s was trained on their patients: "
            "%s",
            num_unknown,
            len(trained_M),
            run.name,
            "its store named patients in another way, or had a different key"
            if _patients(run, all_networks(run)).is_complete
            else "it started from weights that do not name theirs",
        )


def series_numbers(store: Store) -> Positions:
    """The series of each slice of a store, numbered from 0, shape (N,)."""
    first_S, count_S = bag_starts(store, "series")
    return np.repeat(np.arange(len(first_S)), count_S)


def whole_series(store: Store, positions_M: Positions) -> Positions:
    """All slices of the series that have some slices.

    Args:
        store: its slices are sorted by series.
        positions_M: store positions.

    Returns:
        Rising store positions.
    """
    series_N = series_numbers(store)
    return np.flatnonzero(np.isin(series_N, series_N[positions_M]))
