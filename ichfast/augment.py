"""Augmentation: its laws, what is drawn from them, and the NumPy twin that applies it.

Promises:

1. The parameters of a slice are a pure function of (run seed, epoch, slice): the
   same whatever the batch, the rank, the number of workers or the order.
2. Nothing here keeps state, so there is none to save.
3. `apply_parameters` is the readable definition of the whole chain; the DALI
   graph in `ichfast.pipeline` is the fast one, and tests hold the two equal.

This is where others import from; `ichfast.laws`, `ichfast.geometry`, `ichfast.draws`
and `ichfast.twin` are its parts.
"""

from __future__ import annotations

from ichfast.draws import Parameters, draw
from ichfast.geometry import count_halvings
from ichfast.laws import (
    EXP_10_MIXUP,
    EXP_30,
    FASTAI,
    LIGHT,
    MAX_HOLES,
    NONE,
    PRESETS,
    AugmentConfig,
)
from ichfast.twin import (
    LOGIT_EPSILON,
    MIN_WIDTH_HU,
    apply_parameters,
    halve,
    jitter,
)

__all__ = [
    "EXP_10_MIXUP",
    "EXP_30",
    "FASTAI",
    "LIGHT",
    "LOGIT_EPSILON",
    "MAX_HOLES",
    "MIN_WIDTH_HU",
    "NONE",
    "PRESETS",
    "AugmentConfig",
    "Parameters",
    "apply_parameters",
    "count_halvings",
    "draw",
    "halve",
    "jitter",
]
