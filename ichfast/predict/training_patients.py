"""The patients that a run trained on, among those of a store to predict.

They are those of the run's training split, dealt again from its settings. In the store
that the run was trained on they are known. In another store they are known by their
ids, if both stores keep them or hash them with the same key.

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
    """Whether a run trained on the patient of each slice of a store.

    Returns:
        Shape (N,), 1 or 0; None, with a warning, where that cannot be known.
    """
    trained = _training_patients(run, store)
    if trained is None:
        return None
    return pd.Series(patients_N(store.table)).isin(trained).to_numpy(np.float64)


def _training_patients(run: TrainedRun, store: Store) -> set[str] | None:
    if run.trained_on(store):
        return _dealt_again(run, store)
    path = Path(run.record.store)
    try:
        with Store(path) as trained_store:
            if run.trained_on(trained_store) and _ids_compare(trained_store, store):
                return _dealt_again(run, trained_store)
            reason = "its patient ids do not compare with those predicted"
            if not run.trained_on(trained_store):
                reason = "it has changed since"
    except IchfastError:
        reason = "it is not there any more"
    logger.warning(
        "not known whether %s trained on these patients: of its store %s, %s",
        run.name,
        path,
        reason,
    )
    return None


def _dealt_again(run: TrainedRun, store: Store) -> set[str]:
    record = run.record
    split = split_slices(
        store, record.recipe.folds, limit=record.counts["train_slices"]
    )
    return set(patients_N(store.table)[split.train_N])


def _ids_compare(one: Store, other: Store) -> bool:
    return one.header.plan.get("ids") == other.header.plan.get("ids")
