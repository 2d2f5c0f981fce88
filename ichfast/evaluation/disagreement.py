"""Disagreement of an ensemble's runs against the error that they make together.

Disagreement is the standard deviation of the runs' probabilities of a slice. Error is
the gap between its label and its probability.

Shape letters: N slices, K classes, Q parts of one size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from ichfast.evaluation.predictions import entropy_NK, labels_NK, probs_NK, std_NK
from ichfast.labels import CLASSES

Floats = npt.NDArray[np.float64]

NUM_PARTS = 10
"""Parts that the slices are cut into, from the least uncertain to the most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Disagreement:
    """Means over the slices whose label is known and that several runs predicted."""

    std_KQ: Floats
    """Mean standard deviation of each class in each part of its slices; NaN for a class
    of fewer slices than parts."""
    error_KQ: Floats
    """Mean error in the same parts."""
    kept_Q: Floats
    """Share of the slices that are left when the most uncertain are set aside."""
    rest: dict[str, Floats]
    """For each measure of uncertainty the mean error of any of the slices that are
    left, shape (Q,)."""


def disagreement(rows: pd.DataFrame) -> Disagreement | None:
    """Compare disagreement with error.

    Args:
        rows: slices of a predictions table.

    Returns:
        None if the table has no standard deviations, or of any for fewer slices with a
        label than `NUM_PARTS`.
    """
    std = std_NK(rows)
    if std is None:
        return None
    error = np.abs(labels_NK(rows) - probs_NK(rows))
    is_known = ~np.isnan(std) & ~np.isnan(error)
    if is_known[:, 0].sum() < NUM_PARTS:
        return None
    std_KQ, error_KQ = np.full((2, len(CLASSES), NUM_PARTS), np.nan)
    for k in range(len(CLASSES)):
        if is_known[:, k].sum() >= NUM_PARTS:
            std_N, error_N = std[is_known[:, k], k], error[is_known[:, k], k]
            rising_N = np.argsort(std_N, kind="stable")
            std_KQ[k], error_KQ[k] = _means(std_N[rising_N]), _means(error_N[rising_N])
    uncertainty = {"standard deviation": std[:, 0]}
    entropy = entropy_NK(rows)
    if entropy is not None:
        uncertainty["entropy"] = entropy[:, 0]
    return Disagreement(
        std_KQ=std_KQ,
        error_KQ=error_KQ,
        kept_Q=np.arange(1, NUM_PARTS + 1) / NUM_PARTS,
        rest={
            name: _rest_Q(values_N[is_known[:, 0]], error[is_known[:, 0], 0])
            for name, values_N in uncertainty.items()
        },
    )


def _means(values_N: Floats) -> Floats:
    """The mean of each part, shape (Q,)."""
    return np.array([part.mean() for part in np.array_split(values_N, NUM_PARTS)])


def _rest_Q(uncertainty_N: Floats, error_N: Floats) -> Floats:
    """The mean error of the least uncertain slices, from one part of them to all."""
    rising_N = error_N[np.argsort(uncertainty_N, kind="stable")]
    count_Q = np.cumsum([len(part) for part in np.array_split(rising_N, NUM_PARTS)])
    mean_Q: Floats = np.cumsum(rising_N)[count_Q - 1] / count_Q
    return mean_Q
