"""What is drawn and called for a class: ROC, precision-recall, an operating point.

Shape letters: N slices, T points and V corners of a curve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ichfast.errors import PredictionError
from ichfast.evaluation.bootstrap import Resampling
from ichfast.evaluation.metrics import has_both
from ichfast.evaluation.ranking import Integers, Ranking, Spread, spread_of

Floats = npt.NDArray[np.float64]


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
