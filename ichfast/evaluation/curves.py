"""ROC and precision-recall curves of a class, with bands from resampled patients.

A band says where 95 % of the replicates of `ichfast.evaluation.bootstrap` lie, each
point of the grid on its own. A replicate is a weight for each patient, so the slices
are sorted once; `tests/evaluation/test_curves.py` holds the bands to repeated slices
and scikit-learn.

Shape letters: N slices, T distinct probabilities, R replicates, G points of the grid.

The operating point of a class: the threshold that finds the wanted share.

Shape letters: N slices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import precision_recall_curve, roc_curve

from ichfast.errors import PredictionError
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


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatingPoint:
    """Slices of one class, called positive from a threshold on."""

    threshold: float
    """A slice is called positive if its probability is at least this."""
    found: int
    """True positives."""
    missed: int
    """False negatives."""
    false_alarms: int
    """False positives."""
    left_alone: int
    """True negatives."""

    @property
    def sensitivity(self) -> float:
        """Share of the positive slices that is found."""
        return self.found / (self.found + self.missed)

    @property
    def specificity(self) -> float | None:
        """Share of the negative slices that is left alone; None without any."""
        return _share(self.left_alone, self.false_alarms)

    @property
    def precision(self) -> float | None:
        """Share of the calls that is right; the positive predictive value."""
        return _share(self.found, self.false_alarms)

    @property
    def negative_predictive_value(self) -> float | None:
        """Share of the slices not called that is negative; None without any."""
        return _share(self.left_alone, self.missed)


def operating_point(
    probs_N: Floats, labels_N: Floats, *, sensitivity: float
) -> OperatingPoint | None:
    """Choose the highest threshold whose sensitivity is at least that wanted.

    Args:
        probs_N: probabilities of one class.
        labels_N: 0 or 1.
        sensitivity: in (0, 1].

    Returns:
        None where no slice is positive.

    Raises:
        PredictionError: a sensitivity outside (0, 1].
    """
    if not 0.0 < sensitivity <= 1.0:
        raise PredictionError(
            f"a sensitivity is above 0 and at most 1, got {sensitivity:g}"
        )
    is_positive_N = labels_N > 0.5
    rising = np.sort(probs_N[is_positive_N])
    if not rising.size:
        return None
    wanted = math.ceil(sensitivity * rising.size - 1e-9)  # counts, so 0.9 is 0.9
    threshold = float(rising[rising.size - wanted])
    is_called_N = probs_N >= threshold
    return OperatingPoint(
        threshold=threshold,
        found=int((is_called_N & is_positive_N).sum()),
        missed=int((~is_called_N & is_positive_N).sum()),
        false_alarms=int((is_called_N & ~is_positive_N).sum()),
        left_alone=int((~is_called_N & ~is_positive_N).sum()),
    )


def _share(part: int, rest: int) -> float | None:
    return part / (part + rest) if part + rest else None
