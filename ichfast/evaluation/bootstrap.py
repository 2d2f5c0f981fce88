"""Confidence intervals from resampled patients.

The bootstrap draws patients, not slices: the slices of a patient resemble each other,
so intervals from drawn slices would be too narrow. A replicate has as many
patients as the data, drawn with replacement from a fixed seed; a patient drawn twice
counts twice. The interval runs from the 2.5th to the 97.5th percentile of the
replicates in which the figure is defined.

A replicate is a weight for each patient; `ichfast.evaluation.ranking` turns weights
into figures. `tests/evaluation/test_bootstrap.py` compares with repeated slices.

Shape letters: N slices, P patients, R replicates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]

SEED = 2019
"""Seed of the replicates: the same data give the same intervals."""

REPLICATES = 200
"""Replicates for the intervals of the report, and the default of `ichfast evaluate`."""

PERCENTILES = (2.5, 97.5)
"""The ends of a 95 % interval."""


@dataclass(frozen=True, slots=True)
class Resampling:
    """The replicates of the patients of some slices."""

    counts_RP: npt.NDArray[np.int64]
    """How often each patient was drawn."""

    patient_N: npt.NDArray[np.intp]
    """The patient of each slice, an index into P. A patient may have none."""

    def of(self, chosen_N: npt.NDArray[np.bool_]) -> Resampling:
        """The same replicates for some of the slices."""
        return Resampling(self.counts_RP, self.patient_N[chosen_N])

    @property
    def num_patients(self) -> int:
        """Number of patients that have a slice."""
        return int(np.count_nonzero(np.bincount(self.patient_N)))


def draw_patients(num_patients: int, *, replicates: int) -> npt.NDArray[np.int64]:
    """Draw the replicates: how often each patient is in each, shape (R, P).

    Args:
        num_patients: P.
        replicates: R.
    """
    share_P = np.full(num_patients, 1.0 / num_patients)
    rng = np.random.default_rng(SEED)
    return rng.multinomial(num_patients, share_P, size=replicates)


def mean_interval(
    values_N: Floats, weight_N: Floats, resampling: Resampling
) -> Interval | None:
    """The interval of a weighted mean over the slices.

    Args:
        values_N: weight times value, a number a slice.
        weight_N: the weights. Replicates in which they add up to 0 are left out.
        resampling: replicates of the patients of the same slices.

    Returns:
        Low and high; None where there are fewer than two patients.
    """
    counts_RP, patient_N = resampling.counts_RP, resampling.patient_N
    if resampling.num_patients < 2:
        return None
    num_patients = counts_RP.shape[1]
    sum_R, weight_R = (
        counts_RP @ np.bincount(patient_N, each_N, num_patients)
        for each_N in (values_N, weight_N)
    )
    is_defined_R = weight_R > 0
    return percentile_interval(sum_R[is_defined_R] / weight_R[is_defined_R])


def percentile_interval(figure_R: Floats) -> Interval:
    """Low and high of a figure over the replicates."""
    low, high = np.percentile(figure_R, PERCENTILES)
    return float(low), float(high)
