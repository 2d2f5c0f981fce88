"""Probabilities to logits and back, in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LOGIT_CLIP = 1e-15
"""Probabilities are kept this far from 0 and 1, so that no logit exceeds 34.5."""


def logit(probs: Floats) -> Floats:
    """Convert probabilities in [0, 1], any shape, to finite logits."""
    clipped = np.clip(probs, LOGIT_CLIP, 1.0 - LOGIT_CLIP)
    return np.log(clipped) - np.log1p(-clipped)


def sigmoid(logits: Floats) -> Floats:
    """Convert logits, any shape and size, to probabilities.

    Example:
        >>> sigmoid(np.array([0.0, -800.0, 800.0])).tolist()
        [0.5, 0.0, 1.0]
    """
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1.0, small) / (1.0 + small)
