"""Which slices of a store a run predicts.

1. On the store it was trained on, a run predicts the slices of its validation fold,
   which it has not seen. On that store after an append it predicts the slices of all
   patients on whom its weights were not trained. On any other store it predicts all.
2. For each slice it is told whether the run, or a run from whose weights it started,
   was trained on its patient.

Shape letters: N slices of the store, M slices that a run predicts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ichfast.errors import PredictionError
from ichfast.evaluation.logits import Floats
from ichfast.loading.bags import bag_starts
from ichfast.loading.id_files import read_id_file
from ichfast.runs.trained import TrainedRun
from ichfast.store.store import Store

logger = logging.getLogger(__name__)

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """The slices of a store that a run predicts."""

    run: TrainedRun
    positions_M: Positions
    """Store positions, rising."""

    fold_M: npt.NDArray[np.int8]
    """Fold of each slice; -1 for none."""

    trained_on_M: Floats
    """Whether the run was trained on the patient: 1 or 0; NaN where it is not known."""


def cover(
    run: TrainedRun, store: Store, *, only: Path | None, limit: int | None
) -> Coverage:
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
    trained_N = _trained_N(run, store)
    positions_M, fold_N = _slices_to_predict(run, store, trained_N)
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
        positions_M=positions_M,
        fold_M=fold_N[positions_M],
        trained_on_M=trained_N[positions_M],
    )


def common_store(runs: Sequence[TrainedRun]) -> Path:
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


def _trained_N(run: TrainedRun, store: Store) -> Floats:
    """`TrainingPatients.trained_on_N`, with a warning where that is not known."""
    trained_N = run.patients.trained_on_N(store)
    num_unknown = int(np.isnan(trained_N).sum())
    if num_unknown:
        logger.warning(
            "cannot tell for %d of %d slices whether %s was trained on their patients: "
            "%s",
            num_unknown,
            len(store),
            run.name,
            "its store named patients in another way, or had a different key"
            if run.patients.is_complete
            else "it started from weights that do not name theirs",
        )
    return trained_N


def _slices_to_predict(
    run: TrainedRun, store: Store, trained_N: Floats
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8]]:
    """Return the positions to predict, and the fold of every slice of the store."""
    if run.trained_on(store):
        split = run.split(store)
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


def whole_series(store: Store, positions_M: Positions) -> Positions:
    """All slices of the series that have some slices.

    Args:
        store: its slices are sorted by series.
        positions_M: store positions.

    Returns:
        Rising store positions.
    """
    first_S, count_S = bag_starts(store, "series")
    series_N = np.repeat(np.arange(len(first_S)), count_S)
    return np.flatnonzero(np.isin(series_N, series_N[positions_M]))
