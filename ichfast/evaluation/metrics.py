"""Figures of probabilities: log loss, accuracy, calibration.

All are computed in float64 and agree with scikit-learn. Figures that depend only on the
order of the slices are in `ichfast.evaluation.ranking`.

A label may be missing (NaN). Figures of all classes together are means over the known
labels, and some label must be known. Figures of one class take its known labels only.

Shape letters: N slices, K classes, Q calibration bins.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

CLASS_WEIGHTS = (2.0, 1.0, 1.0, 1.0, 1.0, 1.0)
"""Weights of the six classes in the loss: `any` counts 2 of 7.

Source:
    Kaggle, RSNA Intracranial Hemorrhage Detection (2019), "Evaluation".
"""

KAGGLE_CLIP = 1e-15
"""Probabilities are kept this far from 0 and 1 before the logarithm, as Kaggle does."""

NUM_CALIBRATION_BINS = 15
"""Equal bins of [0, 1] for the calibration error.

Source:
    Guo et al. 2017, "On Calibration of Modern Neural Networks".
"""


def class_log_loss_K(
    probs_NK: Floats, labels_NK: Floats, *, clip: float = KAGGLE_CLIP
) -> Floats:
    """Mean log loss of each class.

    Args:
        probs_NK: probabilities in [0, 1], shape (N, K).
        labels_NK: 0 or 1, shape (N, K), no NaN.
        clip: probabilities are clipped to [clip, 1 - clip]. Greater than zero.

    Returns:
        Shape (K,), float64, in nats.
    """
    loss_K: Floats = _log_loss_NK(probs_NK, labels_NK, clip).mean(axis=0)
    return loss_K


def slice_log_loss_N(
    probs_NK: Floats, labels_NK: Floats, *, clip: float = KAGGLE_CLIP
) -> Floats:
    """Weighted log loss of each slice, summed over its known labels.

    Args:
        probs_NK: probabilities in [0, 1], shape (N, 6).
        labels_NK: 0, 1 or NaN, shape (N, 6).
        clip: probabilities are clipped to [clip, 1 - clip]. Greater than zero.

    Returns:
        Shape (N,), float64, in nats. The weights of all six classes add up to 1.
    """
    weight_K = np.array(CLASS_WEIGHTS) / sum(CLASS_WEIGHTS)
    loss_N: Floats = _log_loss_NK(probs_NK, labels_NK, clip) @ weight_K
    return loss_N


def known_weight_N(labels_NK: Floats) -> Floats:
    """Share of the class weights that the known labels of each slice have, in [0, 1].

    Args:
        labels_NK: 0, 1 or NaN, shape (N, 6).
    """
    known: Floats = ~np.isnan(labels_NK) @ np.array(CLASS_WEIGHTS)
    return known / sum(CLASS_WEIGHTS)


def weighted_log_loss(
    probs_NK: Floats, labels_NK: Floats, *, clip: float = KAGGLE_CLIP
) -> float:
    """The competition's score: the mean over slices of the weighted log loss.

    With missing labels it is the weighted mean over the known ones: the sum of weight
    times loss over all known labels, divided by the sum of their weights.

    Args:
        probs_NK: probabilities in [0, 1], shape (N, 6), any float type.
        labels_NK: 0, 1 or NaN, shape (N, 6).
        clip: probabilities are clipped to [clip, 1 - clip]. Greater than zero.

    Example:
        >>> half = np.full((1, 6), 0.5)
        >>> round(weighted_log_loss(half, np.zeros((1, 6))), 6)
        0.693147
    """
    loss_N = slice_log_loss_N(probs_NK, labels_NK, clip=clip)
    return float(loss_N.mean() / known_weight_N(labels_NK).mean())


def prevalence_loss(labels_NK: Floats) -> float:
    """Weighted log loss of the best constant: each class's prevalence.

    Args:
        labels_NK: 0, 1 or NaN, shape (N, 6). The prevalence is theirs.
    """
    return weighted_log_loss(prevalence_NK(labels_NK), labels_NK)


def accuracy(probs_NK: Floats, labels_NK: Floats) -> float:
    """Share of the probabilities with a known label that are right at threshold 0.5.

    Args:
        probs_NK: probabilities in [0, 1], shape (N, 6).
        labels_NK: 0, 1 or NaN, shape (N, 6).

    Source:
        fastai v1 `accuracy_thresh`, the metric of the reference experiments.
    """
    is_known_NK = ~np.isnan(labels_NK)
    is_right_NK = (probs_NK > 0.5) == (labels_NK > 0.5)
    return float((is_right_NK & is_known_NK).sum() / is_known_NK.sum())


def calibration_bins(
    probs_N: Floats, labels_N: Floats, *, num_bins: int = NUM_CALIBRATION_BINS
) -> tuple[npt.NDArray[np.int64], Floats, Floats]:
    """Cut [0, 1] into equal bins and compare probability with frequency in each.

    Args:
        probs_N: probabilities of one class, in [0, 1].
        labels_N: 0 or 1.
        num_bins: Q.

    Returns:
        For each bin, shape (Q,): the number of slices; their mean probability; the
        share of positives. The last two are NaN where a bin is empty.
    """
    bin_N = np.minimum((probs_N * num_bins).astype(np.int64), num_bins - 1)
    count_Q = np.bincount(bin_N, minlength=num_bins)
    divisor_Q = np.where(count_Q > 0, count_Q, np.nan)
    mean_prob_Q = np.bincount(bin_N, probs_N, num_bins) / divisor_Q
    frequency_Q = np.bincount(bin_N, labels_N, num_bins) / divisor_Q
    return count_Q, mean_prob_Q, frequency_Q


def calibration_error(
    probs_N: Floats, labels_N: Floats, *, num_bins: int = NUM_CALIBRATION_BINS
) -> float:
    """Expected calibration error: mean |probability - frequency| over the slices.

    Args:
        probs_N: probabilities of one class, in [0, 1].
        labels_N: 0 or 1.
        num_bins: equal bins of [0, 1].
    """
    count_Q, mean_prob_Q, frequency_Q = calibration_bins(
        probs_N, labels_N, num_bins=num_bins
    )
    gap_Q = np.nan_to_num(np.abs(mean_prob_Q - frequency_Q))
    return float(np.average(gap_Q, weights=count_Q))


def prevalence_NK(labels_NK: Floats) -> Floats:
    """The best constant, shape (N, K): each class's share of positives.

    Args:
        labels_NK: 0, 1 or NaN. The share is that of the known labels, and 0 without
            any.
    """
    is_known_NK = ~np.isnan(labels_NK)
    positive_K = (labels_NK > 0.5).sum(axis=0)
    share_K = positive_K / np.maximum(is_known_NK.sum(axis=0), 1)
    return np.broadcast_to(share_K, labels_NK.shape)


def has_both(labels_N: Floats) -> bool:
    """Whether there are positives and negatives, so that a ranking has figures."""
    return bool(labels_N.size and labels_N.min() != labels_N.max())


def _log_loss_NK(probs_NK: Floats, labels_NK: Floats, clip: float) -> Floats:
    """The log loss of each label, 0 where it is missing."""
    p_NK: Floats = np.clip(np.asarray(probs_NK, np.float64), clip, 1.0 - clip)
    loss_NK = -np.where(labels_NK > 0.5, np.log(p_NK), np.log1p(-p_NK))
    loss_NK *= ~np.isnan(labels_NK)
    return loss_NK
