"""The results of a run: all that the report computes from its predictions.

They are by slice; where no slice has a label of its own, by study.

Shape letters: N labelled slices or studies, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from ichfast.evaluation.bootstrap import (
    REPLICATES,
    Interval,
    Resampling,
    draw_patients,
    mean_interval,
)
from ichfast.evaluation.curves import (
    ClassCurves,
    OperatingPoint,
    class_curves,
    operating_point,
)
from ichfast.evaluation.evaluation import Evaluation, evaluate
from ichfast.evaluation.levels import rows_of_level
from ichfast.evaluation.metrics import known_weight_N, slice_log_loss_N
from ichfast.evaluation.predictions import labels_NK as labels_of
from ichfast.evaluation.predictions import probs_NK as probs_of
from ichfast.labels import CLASSES
from ichfast.store.tables import patients_N


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResults:
    """Predictions and all that is computed from them."""

    rows: pd.DataFrame
    """Rows of a predictions table, as `rows_of_level` gives them."""
    probs_NK: npt.NDArray[np.float64]
    labels_NK: npt.NDArray[np.float64]
    """0, 1 or NaN; each row has a label."""
    num_studies: int
    num_patients: int
    """Studies and patients of these rows."""
    evaluation: Evaluation
    loss_interval: Interval | None
    """95 % interval of the weighted log loss."""
    curves: dict[str, ClassCurves]
    """Curves by class, without the classes that have no label or only one."""
    points: dict[str, OperatingPoint]
    """Operating points by class, without the classes without a positive."""


def compute_results(predictions: pd.DataFrame, *, sensitivity: float) -> RunResults:
    """Compute all that the page shows of the predictions.

    Args:
        predictions: a predictions table, columns as in
            `ichfast.evaluation.predictions`.
        sensitivity: sensitivity of the operating points, in (0, 1].

    Raises:
        PredictionError: predictions that `evaluation.evaluation.evaluate` refuses, or
            a sensitivity outside (0, 1].
    """
    evaluation = evaluate(predictions)
    rows = rows_of_level(predictions, evaluation.first_name)
    probs_NK, labels_NK = probs_of(rows), labels_of(rows)
    patient_N, patients = pd.factorize(patients_N(rows))
    counts_RP = draw_patients(len(patients), replicates=REPLICATES)
    resampling = Resampling(counts_RP, patient_N)
    points, curves = {}, {}
    for k, name in enumerate(CLASSES):
        is_known_N = ~np.isnan(labels_NK[:, k])
        known = probs_NK[is_known_N, k], labels_NK[is_known_N, k]
        points[name] = operating_point(*known, sensitivity=sensitivity)
        curves[name] = class_curves(*known, resampling.of(is_known_N))
    return RunResults(
        rows=rows,
        probs_NK=probs_NK,
        labels_NK=labels_NK,
        num_studies=len(rows[["patient", "study"]].drop_duplicates()),
        num_patients=len(patients),
        evaluation=evaluation,
        loss_interval=mean_interval(
            slice_log_loss_N(probs_NK, labels_NK),
            known_weight_N(labels_NK),
            resampling,
        ),
        curves={name: each for name, each in curves.items() if each},
        points={name: point for name, point in points.items() if point},
    )
