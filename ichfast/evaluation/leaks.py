"""Leaks: patients in a predictions table that the run trained on.

Figures of such patients look better than the model is. `predict.training_patients`
finds them while it has the run and its store, and fills the column ``trained_on``. So
an evaluation needs neither the run nor the store.

Shape letters: N slices of the predicted store.
"""

from __future__ import annotations

import logging

import pandas as pd

from ichfast.errors import PredictionError
from ichfast.store.tables import patients_N

logger = logging.getLogger(__name__)


def check_leaks(table: pd.DataFrame, *, allow: bool) -> dict[str, int]:
    """Count the predicted patients that the run trained on.

    Args:
        table: a predictions table.
        allow: accept such patients.

    Returns:
        ``slices`` and ``patients`` that were trained on, and ``unknown``: slices for
        which that is not known.

    Raises:
        PredictionError: the run trained on a patient, and `allow` is not set.
    """
    trained_N = table["trained_on"]
    is_leak_N = trained_N.fillna(value=False).to_numpy(dtype=bool)
    found = {
        "slices": int(is_leak_N.sum()),
        "patients": len(set(patients_N(table)[is_leak_N])),
        "unknown": int(trained_N.isna().sum()),
    }
    if found["unknown"]:
        logger.warning(
            "not known of %d slices whether the run trained on their patients",
            found["unknown"],
        )
    if found["slices"] and not allow:
        raise PredictionError(
            f"{found['slices']:,} of {len(table):,} slices are of "
            f"{found['patients']:,} patients that the run trained on, so every figure "
            "would look better than it is; predict other patients, train with --set "
            "folds.kind=patient, or add --allow-leak"
        )
    return found
