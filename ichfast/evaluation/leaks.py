"""Patients that a run trained on and is judged by: figures that cannot be believed.

When slices are predicted, the run is at hand, and with it the store it trained on; so
that is when it is found out, and the predictions table remembers it in its column
``trained_on`` (`predict.training_patients`). Judging a table then needs neither the run
nor the store.

Shape letters: N slices of the predicted store.
"""

from __future__ import annotations

import logging

import pandas as pd

from ichfast.errors import PredictionError
from ichfast.store.tables import patients_N

logger = logging.getLogger(__name__)


def check_leaks(table: pd.DataFrame, *, allow: bool) -> dict[str, int]:
    """Look for predictions of patients that a run trained on.

    Args:
        table: a predictions table.
        allow: count them, and judge them nevertheless.

    Returns:
        ``slices`` and ``patients`` that were trained on, and ``unknown``, the slices
        of which nobody knows.

    Raises:
        PredictionError: there are some, and they are not allowed.
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
