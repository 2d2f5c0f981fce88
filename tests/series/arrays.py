"""Small series of noise, of different lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ichfast.series.batches import SeriesArrays


def noise_series(lengths: Sequence[int], seed: int = 0) -> SeriesArrays:
    """Series of random features and labels, and no labels of the series themselves.

    Args:
        lengths: number of slices of each.
        seed: of all.
    """
    rng = np.random.default_rng(seed)
    num_slices = sum(lengths)
    return SeriesArrays(
        features_ND=rng.normal(size=(num_slices, 11)).astype(np.float32),
        labels_NK=rng.integers(0, 2, size=(num_slices, 6)).astype(np.float32),
        position_mm_N=np.concatenate([5.0 * np.arange(length) for length in lengths]),
        rows=np.split(np.arange(num_slices), np.cumsum(lengths)[:-1]),
        series_labels_SK=np.full((len(lengths), 6), np.nan, np.float32),
    )
