"""ROC and precision-recall curves of a class, with bands from resampled patients.

A band says where 95 % of the replicates of `ichfast.evaluation.bootstrap` lie, each
point of the grid on its own. A replicate is a weight for each patient, so the slices
are sorted once; `tests/evaluation/test_curves.py` holds the bands to repeated slices
and scikit-learn.

Shape letters: N slices, T distinct probabilities, R replicates, G points of the grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import precision_recall_curve, roc_curve

from ichfast.evaluation.bootstrap import (
    PERCENTILES,
    Interval,
    Resampling,
    ranking_intervals,
)

Floats = npt.NDArray[np.float64]

GRID_G: Floats = np.linspace(0.0, 1.0, 101)
"""Where bands are known: 1 - specificity of a ROC, sensitivity of the other curve."""


@dataclass(frozen=True, slots=True)
class Band:
    """Between which values 95 % of the replicates lie, at each point of `GRID_G`."""

    low_G: Floats
    high_G: Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassCurves:
    """What is drawn of one class."""

    false_rate_T: Floats
    """1 - specificity, from 0 to 1."""
    true_rate_T: Floats
    """Sensitivity at the same thresholds."""
    recall_T: Floats
    """Sensitivity, from 1 down to the first positive slice found."""
    precision_T: Floats
    """Precision at the same thresholds."""
    roc_band: Band | None
    """Sensitivity over 1 - specificity; None as `curve_bands` says."""
    precision_band: Band | None
    """Precision over sensitivity."""
    intervals: dict[str, Interval | None]
    """By figure, as `evaluation.bootstrap.ranking_intervals` gives them."""


def class_curves(
    probs_N: Floats, labels_N: Floats, resampling: Resampling
) -> ClassCurves | None:
    """The curves of one class; None where its labels have one value only.

    Args:
        probs_N: probabilities of the class.
        labels_N: 0 or 1.
        resampling: of the same slices.
    """
    if labels_N.min() == labels_N.max():
        return None
    false_rate_T, true_rate_T, _ = roc_curve(labels_N, probs_N)
    precision_T, recall_T, _ = precision_recall_curve(
        labels_N, probs_N, drop_intermediate=True
    )
    finds_T = recall_T > 0  # before the first find, precision says nothing
    roc_band, precision_band = curve_bands(probs_N, labels_N, resampling)
    return ClassCurves(
        false_rate_T=false_rate_T,
        true_rate_T=true_rate_T,
        recall_T=recall_T[finds_T],
        precision_T=precision_T[finds_T],
        roc_band=roc_band,
        precision_band=precision_band,
        intervals=ranking_intervals(probs_N, labels_N, resampling),
    )


def curve_bands(
    probs_N: Floats, labels_N: Floats, resampling: Resampling
) -> tuple[Band | None, Band | None]:
    """The bands of sensitivity over 1 - specificity, and of precision over sensitivity.

    Precision at a sensitivity is that of the highest threshold that reaches it.

    Returns:
        Two bands; None where there are fewer than two patients, or where fewer than
        half of the replicates have both labels.
    """
    order_N = np.argsort(-probs_N, kind="stable")
    is_last_N = np.diff(probs_N[order_N], append=-np.inf) != 0
    last_T = np.flatnonzero(is_last_N)  # slices with equal probability go together
    patient_N = resampling.patient_N[order_N]
    positive_N = labels_N[order_N] > 0.5
    curves = []
    for count_P in resampling.counts_RP:
        weight_N = count_P[patient_N]
        true_T = np.cumsum(weight_N * positive_N)[last_T]
        false_T = np.cumsum(weight_N)[last_T] - true_T
        if true_T[-1] and false_T[-1]:
            curves.append((_roc_G(true_T, false_T), _precision_G(true_T, false_T)))
    num_replicates, num_patients = resampling.counts_RP.shape
    if num_patients < 2 or 2 * len(curves) < num_replicates:
        return None, None
    roc_RG, precision_RG = (np.array(each) for each in zip(*curves, strict=True))
    return _band(roc_RG), _band(precision_RG)


def _roc_G(true_T: npt.NDArray[np.int64], false_T: npt.NDArray[np.int64]) -> Floats:
    true_rate_T = np.concatenate([[0.0], true_T / true_T[-1]])
    false_rate_T = np.concatenate([[0.0], false_T / false_T[-1]])
    return np.interp(GRID_G, false_rate_T, true_rate_T)


def _precision_G(
    true_T: npt.NDArray[np.int64], false_T: npt.NDArray[np.int64]
) -> Floats:
    # From the first slice that is found; counts, so that 0.1 is 0.1.
    wanted_G = np.maximum(GRID_G * true_T[-1] - 1e-6, 1e-6)
    reached_G = np.searchsorted(true_T, wanted_G)
    precision_G: Floats = true_T[reached_G] / (true_T + false_T)[reached_G]
    return precision_G


def _band(curves_RG: Floats) -> Band:
    low_G, high_G = np.percentile(curves_RG, PERCENTILES, axis=0)
    return Band(low_G, high_G)
