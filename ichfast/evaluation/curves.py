"""What is drawn and called for a class: ROC, precision-recall, an operating point.

Shape letters: N slices, M slices that decide a threshold, T points and V corners of a
curve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ichfast.errors import PredictionError
from ichfast.evaluation.bootstrap import Interval, Resampling, percentile_interval
from ichfast.evaluation.metrics import has_both
from ichfast.evaluation.ranking import (
    COUNT_TOLERANCE,
    Integers,
    Ranking,
    Spread,
    spread_of,
)

Floats = npt.NDArray[np.float64]
Number = TypeVar("Number", np.float64, np.intp)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassCurves:
    """The curves of one class, and how far its replicates spread."""

    false_rate_V: Floats
    """1 - specificity at the corners of the ROC curve, from 0 to 1."""
    true_rate_V: Floats
    """Sensitivity at these corners."""
    recall_T: Floats
    """Sensitivity, from 1 down to the first positive slice found."""
    precision_T: Floats
    """Precision at the same thresholds."""
    spread: Spread


def class_curves(
    probs_N: Floats, labels_N: Floats, resampling: Resampling
) -> ClassCurves | None:
    """The curves of one class; None where its labels have one value only, or none.

    Args:
        probs_N: probabilities of the class.
        labels_N: 0 or 1.
        resampling: replicates of the patients of the same slices.
    """
    if not has_both(labels_N):
        return None
    ranking = Ranking(probs_N, labels_N)
    false_T, true_T = ranking.counts().roc_points()
    corner_V = _corners(false_T, true_T)
    # Precision says nothing before the first find.
    found_T, alarms_T = true_T[true_T > 0][::-1], false_T[true_T > 0][::-1]
    return ClassCurves(
        false_rate_V=false_T[corner_V] / false_T[-1],
        true_rate_V=true_T[corner_V] / true_T[-1],
        recall_T=found_T / found_T[0],
        precision_T=found_T / (found_T + alarms_T),
        spread=spread_of(ranking, resampling, with_bands=True),
    )


def _corners(x_T: Integers, y_T: Integers) -> npt.NDArray[np.intp]:
    """The ends and the points where the line turns from right to up, or back.

    A point within a horizontal or vertical stretch adds nothing to a drawing.
    """
    moves_T = (np.diff(x_T) > 0) | (np.diff(y_T) > 0)
    distinct_V = np.flatnonzero(np.append(True, moves_T))
    right, up = np.diff(x_T[distinct_V]) > 0, np.diff(y_T[distinct_V]) > 0
    goes_on = (right[1:] == right[:-1]) & (up[1:] == up[:-1]) & (right != up)[1:]
    return distinct_V[np.r_[True, ~goes_on, True]]


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatingPoint:
    """The threshold from which slices are called positive, and what that finds."""

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


@dataclass(frozen=True, slots=True)
class Aim:
    """What a threshold reaches on the slices that choose it."""

    figure: str = "sensitivity"
    """``sensitivity`` or ``specificity``."""

    value: float = 0.95
    """Share of the positive slices to find, or of the negative ones to leave alone; in
    (0, 1]."""

    def __post_init__(self) -> None:
        if self.figure not in ("sensitivity", "specificity"):
            raise PredictionError(
                "a threshold reaches a sensitivity or a specificity, got "
                f"{self.figure!r:.40}"
            )
        if not 0.0 < self.value <= 1.0:
            raise PredictionError(
                f"a {self.figure} is above 0 and at most 1, got {self.value:g}"
            )


def operating_point(
    probs_N: Floats, labels_N: Floats, *, sensitivity: float
) -> OperatingPoint | None:
    """Choose the highest threshold that reaches a sensitivity.

    Args:
        probs_N: probabilities of one class.
        labels_N: 0 or 1.
        sensitivity: share of the positive slices to find, in (0, 1].

    Returns:
        The operating point; None where no slice is positive.

    Raises:
        PredictionError: a sensitivity outside (0, 1].
    """
    aim = Aim(value=sensitivity)
    if not (labels_N > 0.5).any():
        return None
    return count_calls(probs_N, labels_N, threshold_at(probs_N, labels_N, aim))


def count_calls(probs_N: Floats, labels_N: Floats, threshold: float) -> OperatingPoint:
    """Count what a threshold finds.

    Args:
        probs_N: probabilities of one class.
        labels_N: 0 or 1.
        threshold: slices with at least this probability are called positive.
    """
    is_called_N, is_positive_N = probs_N >= threshold, labels_N > 0.5
    return OperatingPoint(
        threshold=threshold,
        found=int((is_called_N & is_positive_N).sum()),
        missed=int((~is_called_N & is_positive_N).sum()),
        false_alarms=int((is_called_N & ~is_positive_N).sum()),
        left_alone=int((~is_called_N & ~is_positive_N).sum()),
    )


def threshold_at(probs_N: Floats, labels_N: Floats, aim: Aim) -> float:
    """The highest threshold that reaches a sensitivity, or the lowest of a specificity.

    Args:
        probs_N: probabilities of one class.
        labels_N: 0 or 1. Some slice is positive, for a sensitivity; or negative, for a
            specificity.
        aim: what to reach.
    """
    falling = np.sort(_deciding(probs_N, labels_N, aim))[::-1]
    return _reach(falling, np.arange(1, falling.size + 1), aim)


def threshold_interval(
    probs_N: Floats, labels_N: Floats, aim: Aim, resampling: Resampling
) -> Interval | None:
    """The interval of the threshold that reaches an aim.

    Args:
        probs_N: probabilities of one class.
        labels_N: 0 or 1.
        aim: what to reach.
        resampling: replicates of the patients of the same slices.

    Returns:
        Low and high over the replicates that have a slice which decides it; None where
        fewer than two patients have one.
    """
    probs_M = _deciding(probs_N, labels_N, aim)
    patient_M = _deciding(resampling.patient_N, labels_N, aim)
    if len(np.unique(patient_M)) < 2:
        return None
    falling_M = np.argsort(-probs_M)
    probs_M, patient_M = probs_M[falling_M], patient_M[falling_M]
    thresholds = [
        _reach(probs_M, count_M, aim)
        for count_M in (
            np.cumsum(count_P[patient_M]) for count_P in resampling.counts_RP
        )
        if count_M[-1]
    ]
    return percentile_interval(np.array(thresholds))


def _deciding(
    values_N: npt.NDArray[Number], labels_N: Floats, aim: Aim
) -> npt.NDArray[Number]:
    """The values of the slices that decide a threshold."""
    is_positive_N = labels_N > 0.5
    return values_N[is_positive_N if aim.figure == "sensitivity" else ~is_positive_N]


def _reach(falling_M: Floats, count_M: Integers, aim: Aim) -> float:
    """The threshold that reaches an aim.

    Args:
        falling_M: the probabilities that decide it, the highest first.
        count_M: slices up to each of them, which never falls. The last is all.
        aim: what to reach.
    """
    total = int(count_M[-1])
    if aim.figure == "sensitivity":
        wanted = math.ceil(aim.value * total - COUNT_TOLERANCE)
        return float(falling_M[np.searchsorted(count_M, wanted)])
    allowed = min(math.floor((1.0 - aim.value) * total + COUNT_TOLERANCE), total - 1)
    # Just above the first negative slice that must not be called.
    first = np.searchsorted(count_M, allowed, side="right")
    return float(np.nextafter(falling_M[first], np.inf))


def _share(part: int, rest: int) -> float | None:
    return part / (part + rest) if part + rest else None
