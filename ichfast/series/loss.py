"""The loss of the series head.

1. Slices count 1, the series .25, and slices without their neighbours .10. In each,
   `any` counts 2 of 7.
2. A label that is missing is left out, per class. Where no slice of a series has a
   label of a class, but the series has one, the maximum of its slices' logits trains on
   that.

Shape letters: B series of the batch, Z slices of the longest series, K classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ichfast.evaluation.metrics import CLASS_WEIGHTS
from ichfast.series.batches import SeriesBatch
from ichfast.series.head import SeriesLogits
from ichfast.training.loss import known_loss

SERIES_WEIGHT = 0.25
"""Weight of the series logits."""

INSTANCE_WEIGHT = 0.10
"""Weight of the logits that each slice has without its neighbours."""


def series_loss(logits: SeriesLogits, batch: SeriesBatch) -> Tensor:
    """The loss of a batch, a scalar; 0 with a gradient of 0 without a known label.

    Args:
        logits: those of the batch.
        batch: on the same device.
    """
    weight_K = torch.tensor(CLASS_WEIGHTS, device=logits.series_BK.device)
    weight_K = weight_K / weight_K.mean()
    slices = known_loss(*with_highest(logits.slices_BZK, batch), weight_K)
    series = known_loss(logits.series_BK, batch.series_targets_BK, weight_K)
    instances = known_loss(*with_highest(logits.instances_BZK, batch), weight_K)
    return slices + SERIES_WEIGHT * series + INSTANCE_WEIGHT * instances


def with_highest(logits_BZK: Tensor, batch: SeriesBatch) -> tuple[Tensor, Tensor]:
    """Logits and targets of slices, then of series that alone have a label.

    Args:
        logits_BZK: of the slices of the batch.
        batch: targets are NaN where unknown.

    Returns:
        Shape (B * Z + B, K) each.
    """
    padding_BZ1 = ~batch.is_slice_BZ[..., None]
    highest_BK = logits_BZK.masked_fill(padding_BZ1, -math.inf).amax(dim=1)
    return (
        torch.cat([logits_BZK.flatten(0, 1), highest_BK]),
        torch.cat([batch.targets_BZK.flatten(0, 1), batch.bag_targets_BK]),
    )
