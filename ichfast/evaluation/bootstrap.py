"""How sure a figure is: intervals from resampled patients.

The bootstrap draws patients, not slices: a patient's slices resemble each other, so
drawing slices would make every figure look surer than it is. A replicate has as many
patients as the data, drawn with replacement from a fixed seed; a patient drawn twice
counts twice. The interval runs from the 2.5th to the 97.5th percentile of the
replicates in which the figure is defined.

A replicate is a weight for each patient, so a class is sorted once, and each replicate
costs two cumulative sums over the slices: 200 replicates of 121,232 slices take
seconds. `tests/evaluation/test_bootstrap.py` holds it to repeated slices and
scikit-learn.

Shape letters: N slices, P patients, R replicates, T distinct probabilities, F figures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]

SEED = 2019
"""Draws the replicates."""

PERCENTILES = (2.5, 97.5)

RANKING_FIGURES = ("auc", "average_precision", "sensitivity_at_90", "sensitivity_at_95")
"""What `_ranking_figures_F` gives, in its order."""


@dataclass(frozen=True, slots=True)
class Resampling:
    """The replicates of one set of patients."""

    counts_RP: npt.NDArray[np.int64]
    """How often each patient was drawn."""

    patient_N: npt.NDArray[np.intp]
    """The patient of each slice, an index into P."""


def resample_patients(
    patient_N: npt.NDArray[np.intp], *, replicates: int
) -> Resampling:
    """Draw the replicates.

    Args:
        patient_N: the patient of each slice, counted from 0 without gaps.
        replicates: R.
    """
    num_patients = int(patient_N.max()) + 1
    counts_RP = np.random.default_rng(SEED).multinomial(
        num_patients, np.full(num_patients, 1.0 / num_patients), size=replicates
    )
    return Resampling(counts_RP, patient_N)


def mean_interval(values_N: Floats, resampling: Resampling) -> Interval | None:
    """The interval of a mean over the slices.

    Returns:
        Low and high; None where there are fewer than two patients.
    """
    counts_RP = resampling.counts_RP
    sum_P = np.bincount(resampling.patient_N, values_N)
    num_P = np.bincount(resampling.patient_N)
    return _interval((counts_RP @ sum_P) / (counts_RP @ num_P), counts_RP)


def ranking_intervals(
    probs_N: Floats, labels_N: Floats, resampling: Resampling
) -> dict[str, Interval | None]:
    """The intervals of the figures that depend on the order of the slices only.

    Args:
        probs_N: probabilities of one class.
        labels_N: 0 or 1.
        resampling: of the same slices.

    Returns:
        Low and high by name, a name of `RANKING_FIGURES`; None where there are fewer
        than two patients, or where fewer than half of the replicates have both labels.
    """
    order_N = np.argsort(-probs_N, kind="stable")
    is_last_N = np.diff(probs_N[order_N], append=-np.inf) != 0
    last_T = np.flatnonzero(is_last_N)  # slices with equal probability go together
    patient_N = resampling.patient_N[order_N]
    positive_N = labels_N[order_N] > 0.5
    counts_RP = resampling.counts_RP
    figures_RF = np.array(
        [
            _ranking_figures_F(count_P[patient_N], positive_N, last_T)
            for count_P in counts_RP
        ]
    )
    return {
        name: _interval(figures_RF[:, index], counts_RP)
        for index, name in enumerate(RANKING_FIGURES)
    }


def _ranking_figures_F(
    weight_N: npt.NDArray[np.int64],
    positive_N: npt.NDArray[np.bool_],
    last_T: npt.NDArray[np.intp],
) -> Floats:
    """The four figures of weighted slices, sorted by falling probability."""
    chosen_T = np.cumsum(weight_N)[last_T]
    true_T = np.cumsum(weight_N * positive_N)[last_T]
    false_T = chosen_T - true_T
    num_positive, num_negative = true_T[-1], false_T[-1]
    if num_positive == 0 or num_negative == 0:
        return np.full(len(RANKING_FIGURES), np.nan)
    gained_T = np.diff(true_T, prepend=0)
    width_T = np.diff(false_T, prepend=0)
    area = width_T @ (true_T - gained_T / 2)
    precision_T = true_T / np.maximum(chosen_T, 1)
    return np.array(
        [
            area / (num_positive * num_negative),
            gained_T @ precision_T / num_positive,
            _sensitivity(true_T, false_T, specificity=0.90),
            _sensitivity(true_T, false_T, specificity=0.95),
        ]
    )


def _sensitivity(
    true_T: npt.NDArray[np.int64], false_T: npt.NDArray[np.int64], *, specificity: float
) -> float:
    allowed = (1.0 - specificity) * false_T[-1] + 1e-6  # counts, so 0.1 is 0.1
    thresholds = np.searchsorted(false_T, allowed, side="right")
    return float(true_T[thresholds - 1] / true_T[-1]) if thresholds else 0.0


def _interval(figure_R: Floats, counts_RP: npt.NDArray[np.int64]) -> Interval | None:
    defined = figure_R[~np.isnan(figure_R)]
    if counts_RP.shape[1] < 2 or 2 * len(defined) < len(figure_R):
        return None
    low, high = np.percentile(defined, PERCENTILES)
    return float(low), float(high)
