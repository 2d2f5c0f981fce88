"""Averages over several runs, and how much the runs differ.

Shape letters: M slices that a run predicts, P slices that any run predicts, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ichfast.evaluation.logits import Floats, logit, sigmoid


def average(
    predictions: Sequence[tuple[npt.NDArray[np.int64], Floats]], *, how: str
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Average the predictions of several runs.

    Args:
        predictions: for each run the store positions it predicted, shape (M,), and
            its probabilities, shape (M, K).
        how: ``probs``; or ``logits``, which gives certain predictions more weight.

    Returns:
        The rising store positions that any run predicted, shape (P,), and the mean
        over the runs that predicted each, shape (P, K).
    """
    predicted_N = np.unique(np.concatenate([positions for positions, _ in predictions]))
    sum_NK = np.zeros((len(predicted_N), predictions[0][1].shape[1]))
    count_N1 = np.zeros((len(predicted_N), 1))
    for positions_M, probs_MK in predictions:
        rows_M = np.searchsorted(predicted_N, positions_M)
        sum_NK[rows_M] += probs_MK if how == "probs" else logit(probs_MK)
        count_N1[rows_M] += 1
    mean_NK = sum_NK / count_N1
    return predicted_N, mean_NK if how == "probs" else sigmoid(mean_NK)


def deviation(predictions: Sequence[tuple[npt.NDArray[np.int64], Floats]]) -> Floats:
    """Standard deviation of the probabilities that several runs give a slice.

    Args:
        predictions: as for `average`.

    Returns:
        Shape (P, K), in the order of `average`; NaN for a slice of a single run. That
        of two runs is half their difference.
    """
    predicted_P, mean_PK = average(predictions, how="probs")
    sum_PK, count_P1 = np.zeros_like(mean_PK), np.zeros((len(mean_PK), 1))
    for positions_M, probs_MK in predictions:
        rows_M = np.searchsorted(predicted_P, positions_M)
        sum_PK[rows_M] += (probs_MK - mean_PK[rows_M]) ** 2
        count_P1[rows_M] += 1
    std_PK: Floats = np.where(count_P1 > 1, np.sqrt(sum_PK / count_P1), np.nan)
    return std_PK


def binary_entropy(probs: Floats) -> Floats:
    """Entropy of probabilities in [0, 1], any shape, in bits: 0 to 1."""
    both = np.stack([probs, 1.0 - probs])
    # A probability of 0 adds 0, the limit.
    entropy: Floats = -(both * np.log2(np.where(both > 0, both, 1.0))).sum(axis=0)
    return entropy
