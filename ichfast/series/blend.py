"""How much of the series head each class takes: a blend with the slice model's logits.

Context helps most classes and can harm rare ones, so each class chooses its share on
validation patients. A share of 0 is the slice model alone. So no class is worse than
with the slice model on the patients that chose the shares.

Shape letters: N slices, K classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the series head that a class can choose."""


def blend(slice_model_NK: Floats, head_NK: Floats, alpha_K: Floats) -> Floats:
    """Mix the logits of slice model and series head.

    Args:
        slice_model_NK: finite logits of the slice model, shape (N, K).
        head_NK: finite logits of the series head, shape (N, K).
        alpha_K: share of the series head of each class, in [0, 1].

    Returns:
        Logits, shape (N, K).
    """
    return (1.0 - alpha_K) * slice_model_NK + alpha_K * head_NK


def choose_blend(
    slice_model_NK: Floats, head_NK: Floats, labels_NK: npt.NDArray[np.floating]
) -> Floats:
    """Choose for each class the share with the lowest log loss over its known labels.

    Args:
        slice_model_NK: finite logits of the slice model on validation patients, shape
            (N, K).
        head_NK: finite logits of the series head on the same slices, shape (N, K).
        labels_NK: 0, 1 or NaN, shape (N, K).

    Returns:
        Shares, shape (K,), each one of `ALPHAS`: the smallest of those that are equally
        good, so 0 for a class without labels.
    """
    num_classes = slice_model_NK.shape[1]
    total_loss = [
        _total_loss_K(
            blend(slice_model_NK, head_NK, np.full(num_classes, alpha)), labels_NK
        )
        for alpha in ALPHAS
    ]
    return np.array(ALPHAS)[np.argmin(total_loss, axis=0)]


def _total_loss_K(logits_NK: Floats, labels_NK: npt.NDArray[np.floating]) -> Floats:
    is_known_NK = ~np.isnan(labels_NK)
    # log(1 + e^x) - x y
    loss_NK = np.logaddexp(0.0, logits_NK) - logits_NK * np.nan_to_num(labels_NK)
    total_K: Floats = (loss_NK * is_known_NK).sum(axis=0)
    return total_K
