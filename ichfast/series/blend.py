"""How much of the series head each class takes: a blend with the slice model's logits.

Context helps most classes and can harm rare ones, so each class chooses its share on
validation patients. A share of 0 is the slice model alone. So no class is worse than
with the slice model on the patients that chose the shares.

Shape letters: N slices, M labels, P patients, A shares to choose from, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

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
        alpha_K: share of the series head of each class, in [0, 1]; or of each slice
            and class, shape (N, K).

    Returns:
        Logits, shape (N, K).
    """
    return (1.0 - alpha_K) * slice_model_NK + alpha_K * head_NK


def choose_blend(
    slice_model_NK: Floats,
    head_NK: Floats,
    labels_MK: Floats,
    judged: Callable[[Floats], Floats] = lambda logits_NK: logits_NK,
) -> Floats:
    """Choose for each class the share with the lowest log loss over its known labels.

    Args:
        slice_model_NK: finite logits of the slice model on validation patients, shape
            (N, K).
        head_NK: finite logits of the series head on the same slices, shape (N, K).
        labels_MK: 0, 1 or NaN, shape (M, K).
        judged: takes logits of slices (N, K) to those of the labels (M, K), as
            `SeriesArrays.judged` does; by default the labels are those of the slices.

    Returns:
        Shares, shape (K,), each one of `ALPHAS`: the smallest of those that are equally
        good, so 0 for a class without labels.
    """
    loss_AMK = _losses(slice_model_NK, head_NK, labels_MK, judged)
    return np.array(ALPHAS)[np.argmin(loss_AMK.sum(axis=1), axis=0)]


def crossfit_blend(
    slice_model_NK: Floats,
    head_NK: Floats,
    labels_MK: Floats,
    patient_M: npt.NDArray[np.int64],
    judged: Callable[[Floats], Floats] = lambda logits_NK: logits_NK,
) -> Floats:
    """Choose the shares of each patient on all other patients.

    Args:
        slice_model_NK: finite logits of the slice model, shape (N, K).
        head_NK: finite logits of the series head on the same slices, shape (N, K).
        labels_MK: 0, 1 or NaN, shape (M, K).
        patient_M: the patient of each label, a number from 0.
        judged: as `choose_blend` takes it.

    Returns:
        Shares, shape (P, K): a row for each patient.
    """
    loss_AMK = _losses(slice_model_NK, head_NK, labels_MK, judged)
    loss_APK = np.zeros((len(ALPHAS), patient_M.max() + 1, loss_AMK.shape[2]))
    for loss_MK, loss_PK in zip(loss_AMK, loss_APK, strict=True):
        np.add.at(loss_PK, patient_M, loss_MK)
    others_APK = loss_APK.sum(axis=1, keepdims=True) - loss_APK
    return np.array(ALPHAS)[np.argmin(others_APK, axis=0)]


def _losses(
    slice_model_NK: Floats,
    head_NK: Floats,
    labels_MK: Floats,
    judged: Callable[[Floats], Floats],
) -> Floats:
    """The log loss of each label with each of `ALPHAS`; 0 where it is unknown."""
    num_classes = slice_model_NK.shape[1]
    is_known_MK = ~np.isnan(labels_MK)
    losses = []
    for alpha in ALPHAS:
        shares_K = np.full(num_classes, alpha)
        logits_MK = judged(blend(slice_model_NK, head_NK, shares_K))
        # log(1 + e^x) - x y
        loss_MK = np.logaddexp(0.0, logits_MK) - logits_MK * np.nan_to_num(labels_MK)
        losses.append(np.where(is_known_MK, loss_MK, 0.0))
    return np.stack(losses)
