"""Probability and loss along a series, from its lowest slice to its highest.

The place of a slice is 0 at the lowest labelled slice of its series along the normal,
usually at the skull base, and 1 at the highest. Series with a single position have no
places and are left out.

Shape letters: N labelled slices, Q equal parts of a series.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from ichfast.evaluation.metrics import slice_log_loss_N
from ichfast.evaluation.predictions import labels_NK, probs_NK

Floats = npt.NDArray[np.float64]

NUM_PARTS = 10
"""Equal parts that a series is cut into: about three slices each in head CT."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AlongSeries:
    """Means over the slices in each part of a series; NaN where a part is empty."""

    count_Q: npt.NDArray[np.int64]
    frequency_Q: Floats
    """Share of slices labelled any."""
    prob_Q: Floats
    """Mean probability of any."""
    loss_Q: Floats
    """Mean weighted log loss, in nats."""


def along_series(labelled: pd.DataFrame) -> AlongSeries:
    """Cut every series into equal parts and average over the slices of each.

    Args:
        labelled: rows of a predictions table that have labels.
    """
    place_N = _places_N(labelled)
    placed = labelled[np.isfinite(place_N)]
    place_N = place_N[np.isfinite(place_N)]
    part_N = np.minimum((place_N * NUM_PARTS).astype(np.int64), NUM_PARTS - 1)
    count_Q = np.bincount(part_N, minlength=NUM_PARTS)
    divisor_Q = np.where(count_Q > 0, count_Q, np.nan)
    probs, labels = probs_NK(placed), labels_NK(placed)
    frequency_Q, prob_Q, loss_Q = (
        np.bincount(part_N, values_N, NUM_PARTS) / divisor_Q
        for values_N in (labels[:, 0], probs[:, 0], slice_log_loss_N(probs, labels))
    )
    return AlongSeries(
        count_Q=count_Q, frequency_Q=frequency_Q, prob_Q=prob_Q, loss_Q=loss_Q
    )


def _places_N(labelled: pd.DataFrame) -> Floats:
    """The place of each slice in its series; NaN where it has none."""
    position = labelled["position_mm"].astype("float64")
    by_series = position.groupby(labelled["series"].to_numpy())
    low, high = by_series.transform("min"), by_series.transform("max")
    extent = (high - low).where(high > low)
    return ((position - low) / extent).to_numpy(np.float64)
