"""Probability and loss along a series, from its lowest slice to its highest.

The place of a slice is 0 at the lowest labelled slice of its series along the normal,
usually at the skull base, and 1 at the highest. Series with a single position have no
places and are left out. Only slices whose label of any is known count, for the loss
those with a label of any class.

Shape letters: N labelled slices, Q equal parts of a series.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from ichfast.evaluation.metrics import known_weight_N, slice_log_loss_N
from ichfast.evaluation.predictions import labels_NK, probs_NK

Floats = npt.NDArray[np.float64]

NUM_PARTS = 10
"""Equal parts that a series is cut into: about three slices each in head CT."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AlongSeries:
    """Means over the slices in each part of a series; NaN where a part is empty."""

    count_Q: npt.NDArray[np.int64]
    """Slices whose label of any is known."""
    frequency_Q: Floats
    """Share of these that have any."""
    prob_Q: Floats
    """Mean probability of any."""
    loss_Q: Floats
    """Mean weighted log loss, in nats."""


def along_series(labelled: pd.DataFrame) -> AlongSeries:
    """Cut every series into equal parts and average over the slices of each.

    Args:
        labelled: rows of a predictions table that have labels.
    """
    place_N = places_N(labelled)
    placed = labelled[np.isfinite(place_N)]
    place_N = place_N[np.isfinite(place_N)]
    part_N = np.minimum((place_N * NUM_PARTS).astype(np.int64), NUM_PARTS - 1)
    probs, labels = probs_NK(placed), labels_NK(placed)
    has_any_N = ~np.isnan(labels[:, 0])

    def means_Q(values_N: Floats, weight_N: Floats) -> Floats:
        sum_Q, weight_Q = (
            np.bincount(part_N, each_N, NUM_PARTS) for each_N in (values_N, weight_N)
        )
        return sum_Q / np.where(weight_Q > 0, weight_Q, np.nan)

    is_any_N = np.where(has_any_N, labels[:, 0], 0.0)
    return AlongSeries(
        count_Q=np.bincount(part_N[has_any_N], minlength=NUM_PARTS),
        frequency_Q=means_Q(is_any_N, has_any_N.astype(np.float64)),
        prob_Q=means_Q(probs[:, 0] * has_any_N, has_any_N.astype(np.float64)),
        loss_Q=means_Q(slice_log_loss_N(probs, labels), known_weight_N(labels)),
    )


def places_N(rows: pd.DataFrame) -> Floats:
    """The place of each slice in its series, from 0 to 1; NaN where it has none.

    The lowest and the highest slice are those of these rows of a predictions table.
    """
    position = rows["position_mm"].astype("float64")
    by_series = position.groupby(rows["series"].to_numpy())
    low, high = by_series.transform("min"), by_series.transform("max")
    extent = (high - low).where(high > low)
    return ((position - low) / extent).to_numpy(np.float64)
