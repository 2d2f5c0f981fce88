"""Figures and curves of a class that depend only on the order of its slices.

A threshold between two positive slices gains nothing over the one at the positive
slice above it. So slices are counted only at the positive slices: a class with 30,000
positives among 750,000 slices has 30,000 thresholds, not 750,000. A replicate of the
bootstrap counts a slice as often as its patient was drawn. The slices are sorted once,
and one walk over the replicates gives all figures and bands.

`tests/evaluation/test_ranking.py` holds all of it to scikit-learn on repeated slices.

Shape letters: N slices, P patients, R replicates, M distinct probabilities of positive
slices, T points of a curve, F figures, G points of the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from ichfast.evaluation.bootstrap import (
    PERCENTILES,
    Interval,
    Resampling,
    percentile_interval,
)

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

GRID_G: Floats = np.linspace(0.0, 1.0, 101)
"""Where bands are known: 1 - specificity for the ROC, sensitivity for precision."""

COUNT_TOLERANCE = 1e-6
"""Slack when a share of a whole number of slices is compared with a count: 0.1 of 30
is 3, although 0.1 is not exact in binary."""


@dataclass(frozen=True, slots=True)
class ThresholdCounts:
    """Slices counted at each distinct probability of a positive slice, highest first.

    There is at least one positive and one negative slice.
    """

    true_M: Integers
    """Positive slices with at least that probability."""

    false_above_M: Integers
    """Negative slices with a higher probability."""

    false_M: Integers
    """Negative slices with at least that probability."""

    num_negative: int

    @property
    def num_positive(self) -> int:
        """All positive slices."""
        return int(self.true_M[-1])

    def roc_points(self) -> tuple[Integers, Integers]:
        """Negative and positive slices called, from none to all, shape (T,) each.

        They never fall. Straight lines between the points make the ROC curve.
        """
        false_2M = np.stack([self.false_above_M, self.false_M], axis=1).ravel()
        true_2M = np.repeat(self.true_M, 2)
        return (
            np.concatenate([[0], false_2M, [self.num_negative]]),
            np.concatenate([[0, 0], true_2M]),
        )


def auc(counts: ThresholdCounts) -> float:
    """Area under the ROC curve; slices with equal probability count one half."""
    gained_M = np.diff(counts.true_M, prepend=0)
    beaten_M = counts.num_negative - (counts.false_above_M + counts.false_M) / 2
    pairs = counts.num_positive * counts.num_negative
    return float(gained_M @ beaten_M / pairs)


def average_precision(counts: ThresholdCounts) -> float:
    """Mean precision over the positive slices, each at its own threshold."""
    gained_M = np.diff(counts.true_M, prepend=0)
    called_M = counts.true_M + counts.false_M
    precision_M = counts.true_M / np.maximum(called_M, 1)
    return float(gained_M @ precision_M / counts.num_positive)


def sensitivity_at(counts: ThresholdCounts, *, specificity: float) -> float:
    """The best sensitivity at a threshold with a given specificity.

    Args:
        counts: slices at each threshold.
        specificity: share of negative slices that is left alone, at least, in [0, 1].
    """
    allowed = (1.0 - specificity) * counts.num_negative + COUNT_TOLERANCE
    thresholds = np.searchsorted(counts.false_M, allowed, side="right")
    found = counts.true_M[thresholds - 1] if thresholds else 0
    return float(found / counts.num_positive)


RANKING_FIGURES: Mapping[str, Callable[[ThresholdCounts], float]] = {
    "auc": auc,
    "average_precision": average_precision,
    "sensitivity_at_90": partial(sensitivity_at, specificity=0.90),
    "sensitivity_at_95": partial(sensitivity_at, specificity=0.95),
}
"""The figures by name. Each is a field of `evaluation.evaluation.ClassScores`."""


class Ranking:
    """The slices of one class, sorted by falling probability.

    Args:
        probs_N: probabilities of the class.
        labels_N: 0 or 1, at least one of each.
    """

    def __init__(self, probs_N: Floats, labels_N: Floats) -> None:
        is_positive_N = labels_N > 0.5
        self._positive, positive_probs = _falling(probs_N, is_positive_N)
        self._negative, negative_probs = _falling(probs_N, ~is_positive_N)
        is_last = np.diff(positive_probs, append=-np.inf) != 0
        self._true_M = np.flatnonzero(is_last) + 1
        threshold_M = -positive_probs[self._true_M - 1]
        self._false_above_M, self._false_M = (
            np.searchsorted(-negative_probs, threshold_M, side=side)
            for side in ("left", "right")
        )

    def counts(self) -> ThresholdCounts:
        """Count each slice once."""
        return ThresholdCounts(
            self._true_M, self._false_above_M, self._false_M, len(self._negative)
        )

    def replicates(self, resampling: Resampling) -> Iterator[ThresholdCounts]:
        """Count each slice as often as a replicate drew its patient.

        Yields:
            A replicate's counts; replicates without a positive or without a negative
            slice are left out.
        """
        positive_patient = resampling.patient_N[self._positive]
        negative_patient = resampling.patient_N[self._negative]
        true, false = (
            np.zeros(len(patient) + 1, dtype=np.int64)
            for patient in (positive_patient, negative_patient)
        )
        for count_P in resampling.counts_RP:
            # Entry n is the count of the first n slices.
            np.cumsum(count_P[positive_patient], out=true[1:])
            np.cumsum(count_P[negative_patient], out=false[1:])
            if true[-1] and false[-1]:
                yield ThresholdCounts(
                    true[self._true_M],
                    false[self._false_above_M],
                    false[self._false_M],
                    int(false[-1]),
                )


@dataclass(frozen=True, slots=True)
class Band:
    """Between which values 95 % of the replicates lie, at each point of `GRID_G`."""

    low_G: Floats
    high_G: Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """How far the replicates of a class spread.

    All is None where there are fewer than two patients, or where fewer than half of
    the replicates have both labels.
    """

    intervals: dict[str, Interval | None]
    """By name of `RANKING_FIGURES`."""

    roc_band: Band | None = None
    """Sensitivity over 1 - specificity."""

    precision_band: Band | None = None
    """Precision over sensitivity; at the highest threshold that reaches it."""


def spread_of(
    ranking: Ranking, resampling: Resampling, *, with_bands: bool = False
) -> Spread:
    """Walk over the replicates of a class once.

    Args:
        ranking: the slices of the class.
        resampling: replicates of the patients of the same slices.
        with_bands: compute the bands of the curves too.
    """
    figures_RF, roc_RG, precision_RG = [], [], []
    for counts in ranking.replicates(resampling):
        figures_RF.append([figure(counts) for figure in RANKING_FIGURES.values()])
        if with_bands:
            roc_RG.append(_roc_G(counts))
            precision_RG.append(_precision_G(counts))
    num_replicates = len(resampling.counts_RP)
    if resampling.num_patients < 2 or 2 * len(figures_RF) < num_replicates:
        return Spread(intervals=dict.fromkeys(RANKING_FIGURES))
    return Spread(
        intervals={
            name: percentile_interval(figure_R)
            for name, figure_R in zip(
                RANKING_FIGURES, np.array(figures_RF).T, strict=True
            )
        },
        roc_band=_band(roc_RG) if with_bands else None,
        precision_band=_band(precision_RG) if with_bands else None,
    )


def _falling(
    probs_N: Floats, chosen_N: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.intp], Floats]:
    """The indices of the chosen slices by falling probability, and these."""
    indices = np.flatnonzero(chosen_N)
    indices = indices[np.argsort(-probs_N[indices])]
    return indices, probs_N[indices]


def _roc_G(counts: ThresholdCounts) -> Floats:
    false_T, true_T = counts.roc_points()
    return np.interp(GRID_G, false_T / counts.num_negative, true_T / true_T[-1])


def _precision_G(counts: ThresholdCounts) -> Floats:
    # From the first positive slice on: before it, precision says nothing.
    wanted_G = np.maximum(GRID_G * counts.num_positive - COUNT_TOLERANCE, 1e-6)
    reached_G = np.searchsorted(counts.true_M, wanted_G)
    true_G, false_G = counts.true_M[reached_G], counts.false_M[reached_G]
    precision_G: Floats = true_G / (true_G + false_G)
    return precision_G


def _band(curves_RG: list[Floats]) -> Band:
    low_G, high_G = np.percentile(curves_RG, PERCENTILES, axis=0)
    return Band(low_G, high_G)
