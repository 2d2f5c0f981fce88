"""The patients of a store that a run trained on.

The training split is computed again from the settings of the run. In another store than
that of the run its patients are found by their ids, if both stores keep ids, or hash
them with the same key.

Shape letters: N slices of the predicted store.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from ichfast.errors import IchfastError
from ichfast.loading.splits import split_slices
from ichfast.runs.trained import TrainedRun
from ichfast.store.store import Store
from ichfast.store.tables import patients_N

logger = logging.getLogger(__name__)


def trained_on_N(run: TrainedRun, store: Store) -> npt.NDArray[np.float64] | None:
    """Find the slices of a store whose patient a run trained on.

    Args:
        run: the run.
        store: the store to predict.

    Returns:
        Shape (N,), 1 or 0; None, with a warning, where that cannot be known.
    """
    trained = _training_patients(run, store)
    if trained is None:
        return None
    return pd.Series(patients_N(store.table)).isin(trained).to_numpy(np.float64)


def _training_patients(run: TrainedRun, store: Store) -> set[str] | None:
    if run.trained_on(store):
        return _training_split_patients(run, store)
    path = Path(run.record.store)
    try:
        with Store(path) as trained_store:
            if run.trained_on(trained_store) and _same_ids(trained_store, store):
                return _training_split_patients(run, trained_store)
            reason = "its patient ids cannot be compared with these"
            if not run.trained_on(trained_store):
                reason = "it has changed"
    except IchfastError:
        reason = "it is gone"
    logger.warning(
        "cannot tell whether %s trained on these patients: its store was %s, and %s",
        run.name,
        path,
        reason,
    )
    return None


def _training_split_patients(run: TrainedRun, store: Store) -> set[str]:
    record = run.record
    split = split_slices(
        store, record.recipe.folds, limit=record.counts["train_slices"]
    )
    return set(patients_N(store.table)[split.train_N])


def _same_ids(one: Store, other: Store) -> bool:
    return one.header.plan.get("ids") == other.header.plan.get("ids")
