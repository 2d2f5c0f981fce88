"""The bootstrap the slow way: repeated slices, figures by scikit-learn.

This is the reference that `ichfast.evaluation.ranking` is held to.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from ichfast.evaluation.bootstrap import Resampling, draw_patients

Floats = npt.NDArray[np.float64]


def make_class(num_slices: int = 131) -> tuple[Floats, Floats]:
    """Probabilities with many ties, and labels that they say something about."""
    rng = np.random.default_rng(1)
    labels_N = (rng.random(num_slices) < 0.3).astype(np.float64)
    noise_N = rng.normal(0.3 + 0.2 * labels_N, 0.2)
    probs_N: Floats = np.round(noise_N.clip(0.0, 1.0), 1)
    return probs_N, labels_N


def resample(
    num_slices: int = 131, *, num_patients: int = 11, replicates: int = 23
) -> Resampling:
    """Replicates of patients whose slices are scattered."""
    patient_N = np.random.default_rng(0).permutation(num_slices) % num_patients
    return Resampling(draw_patients(num_patients, replicates=replicates), patient_N)


def repeated(resampling: Resampling, *arrays_N: Floats) -> Iterator[list[Floats]]:
    """Yield the arrays of each replicate, with a patient drawn twice in them twice."""
    for count_P in resampling.counts_RP:
        count_N = count_P[resampling.patient_N]
        yield [np.repeat(values_N, count_N) for values_N in arrays_N]


def ranking_figures(probs_N: Floats, labels_N: Floats) -> dict[str, float]:
    """The figures of `ichfast.evaluation.ranking` by scikit-learn."""
    return {
        "auc": float(roc_auc_score(labels_N, probs_N)),
        "average_precision": float(average_precision_score(labels_N, probs_N)),
        "sensitivity_at_90": sensitivity_at(probs_N, labels_N, specificity=0.90),
        "sensitivity_at_95": sensitivity_at(probs_N, labels_N, specificity=0.95),
    }


def sensitivity_at(probs_N: Floats, labels_N: Floats, *, specificity: float) -> float:
    """The best sensitivity at a threshold with at least that specificity."""
    false_rates, true_rates, _ = roc_curve(labels_N, probs_N, drop_intermediate=False)
    num_negatives = np.count_nonzero(labels_N == 0)
    allowed = (1.0 - specificity) * num_negatives + 1e-6  # counts, so 0.1 is 0.1
    return float(true_rates[false_rates * num_negatives <= allowed].max())


def precision_at(probs_N: Floats, labels_N: Floats, recall: float) -> float:
    """Precision at the highest threshold with that recall, one threshold at a time."""
    for threshold in np.unique(probs_N)[::-1]:
        called_N = probs_N >= threshold
        found = labels_N[called_N].sum()
        if found > 0 and found / labels_N.sum() >= recall - 1e-9:
            return float(found / called_N.sum())
    raise AssertionError("the lowest threshold finds all")
