"""Which slices of a store a run predicts.

1. On the store it was trained on, a run predicts the slices of its validation fold,
   which it has not seen. On that store after an append it predicts the slices of all
   patients on whom its weights were not trained. On any other store it predicts all.
2. For each slice it is told whether the run, or a run from whose weights it started,
   was trained on its patient.
3. A series run predicts its own fold with the backbones that held it out, and other
   slices with all its backbones. It was trained on a patient if its head was, or one of
   the backbones that it uses here. Its networks see whole series, also where only some
   slices of them are wanted.

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
from ichfast.runs.trained import TrainedRun, open_run
from ichfast.series.folder import SeriesRun, is_series_run, open_series_run
from ichfast.store.store import Store

logger = logging.getLogger(__name__)

Positions = npt.NDArray[np.int64]


Run = TrainedRun | SeriesRun


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """The slices of a store that a run predicts."""

    run: Run
    networks: tuple[TrainedRun, ...]
    """The run itself, or the backbones of a series run."""

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


def cover(run: Run, store: Store, *, only: Path | None, limit: int | None) -> Coverage:
    """Find the slices of a store that a run predicts.

    Args:
        run: the run.
        store: the store to predict.
        only: a file of ids (`ichfast.loading.id_files`) of the slices to choose from;
            None: all.
        limit: upper limit of slices, spread evenly over them; None: no limit.

    Raises:
        IchfastError: there are none, the file cannot be read, or a file of the run's
            folder was edited.
    """
    networks = _networks(run, store)
    trained_N = _trained_N(run, networks, store)
    positions_M, fold_N = _slices_to_predict(run, networks, store, trained_N)
    if only is not None:
        is_listed_N = read_id_file(only, store, has_folds=False).position_N(store) >= 0
        positions_M = positions_M[is_listed_N[positions_M]]
    if not positions_M.size:
        raise PredictionError(
            f"{only} has none of the slices that {run.path} predicts; name a store "
            "with --store to predict all of it"
        )
    if limit is not None and limit < len(positions_M):
        spread = np.linspace(0, len(positions_M) - 1, limit).astype(int)
        positions_M = positions_M[spread]
    return Coverage(
        run=run,
        networks=networks,
        seen_R=positions_M
        if isinstance(run, TrainedRun)
        else whole_series(store, positions_M),
        positions_M=positions_M,
        fold_M=fold_N[positions_M],
        trained_on_M=trained_N[positions_M],
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


def _networks(run: Run, store: Store) -> tuple[TrainedRun, ...]:
    """The networks that a run needs to predict a store."""
    if isinstance(run, TrainedRun):
        return (run,)
    if not run.trained_on(store):
        return run.backbones
    return tuple(
        backbone
        for backbone, described in zip(run.backbones, run.record.features, strict=True)
        if described.fold == run.record.fold
    )


def _trained_N(run: Run, networks: Sequence[TrainedRun], store: Store) -> Floats:
    """`TrainingPatients.trained_on_N`, with a warning where that is not known."""
    parts = [network.patients for network in networks]
    if isinstance(run, SeriesRun):
        parts.append(run.head_patients)
    patients = reduce(or_, parts)
    trained_N = patients.trained_on_N(store)
    num_unknown = int(np.isnan(trained_N).sum())
    if num_unknown:
        logger.warning(
            "cannot tell for %d of %d slices whether %s was trained on their patients: "
            "%s",
            num_unknown,
            len(store),
            run.name,
            "its store named patients in another way, or had a different key"
            if patients.is_complete
            else "it started from weights that do not name theirs",
        )
    return trained_N


def _slices_to_predict(
    run: Run, networks: Sequence[TrainedRun], store: Store, trained_N: Floats
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8]]:
    """Return the positions to predict, and the fold of every slice of the store."""
    if run.trained_on(store):
        split = networks[0].split(store)
        return split.valid_N, split.fold_N
    positions_N = np.arange(len(store), dtype=np.int64)
    if run.trained_before(store):
        positions_N = positions_N[trained_N != 1]
        if not positions_N.size:
            raise PredictionError(
                f"{run.path} was trained on every patient of {store.path}; append "
                "other patients, or name another store with --store"
            )
    return positions_N, np.full(len(store), -1, dtype=np.int8)


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
