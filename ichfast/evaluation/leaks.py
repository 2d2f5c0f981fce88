"""Leaks: patients in a predictions table that the model was trained on.

Figures of such patients look better than the model is. `ichfast predict` finds them
while it has the run (`runs.patients`), and fills the column ``trained_on``. So an
evaluation needs neither the run nor the store. A patient for whom that is not known is
refused like one that the model was trained on.

Shape letters: N slices of the predicted store.
"""

from __future__ import annotations

import logging

import pandas as pd

from ichfast.errors import PredictionError
from ichfast.store.tables import patients_N

logger = logging.getLogger(__name__)


def check_leaks(table: pd.DataFrame, *, allow: bool) -> dict[str, int]:
    """Count the predicted patients that the model was trained on.

    Args:
        table: a predictions table.
        allow: accept such patients, and those for whom it is not known.

    Returns:
        ``slices`` and ``patients`` that were trained on, and ``unknown``: slices for
        which that is not known.

    Raises:
        PredictionError: the model was trained on a patient, or may have been, and
            `allow` is not set.
    """
    trained_N = table["trained_on"]
    is_leak_N = trained_N.fillna(value=False).to_numpy(dtype=bool)
    found = {
        "slices": int(is_leak_N.sum()),
        "patients": len(set(patients_N(table)[is_leak_N])),
        "unknown": int(trained_N.isna().sum()),
    }
    if allow:
        if found["slices"] or found["unknown"]:
            logger.warning(
                "%d slices are of patients that the model was trained on, of %d it is "
                "not known: the figures look better than on new patients",
                found["slices"],
                found["unknown"],
            )
        return found
    if found["slices"]:
        raise PredictionError(
            f"{found['slices']:,} of {len(table):,} slices are of "
            f"{found['patients']:,} patients that the model was trained on, perhaps in "
            "a run before, so every figure would look better than it is; predict other "
            "patients, train with --set folds.kind=patient and other --weights, or add "
            "--allow-leak"
        )
    if found["unknown"]:
        raise PredictionError(
            f"it is not known of {found['unknown']:,} of {len(table):,} slices whether "
            "the model was trained on their patients, so the figures may look better "
            "than they are; if you know that it was not, add --allow-leak"
        )
    return found
