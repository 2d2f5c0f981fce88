"""Series with a planted signal: runs of positive slices behind noisy features.

Shape letters: N slices, S series, Z slices of a series, D features, K classes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from ichfast.series.batches import SeriesArrays

Floats = npt.NDArray[np.float64]

NUM_SLICES = 32
NUM_FEATURES = 64
MAX_RUN = 7

SIGNAL = 2.8
"""Length of a class's direction in the features, in standard deviations of the noise of
each."""


def planted_series(
    num_series: int, seed: int, *, signal: float = SIGNAL
) -> SeriesArrays:
    """Series in which each class has one run of 1 to 7 positive slices.

    The classes are independent, `any` too, so the best model of a slice is linear. The
    number of positive slices spreads about as much as if each slice were drawn by
    itself (variance 4.0, binomial 3.5). So only the order of the slices tells more.

    Args:
        num_series: S.
        seed: of labels and noise; the directions of the classes are always the same.
        signal: see `SIGNAL`.
    """
    direction_KD = np.random.default_rng(0).normal(size=(6, NUM_FEATURES))
    direction_KD *= signal / np.linalg.norm(direction_KD, axis=1, keepdims=True)
    rng = np.random.default_rng((1, seed))
    length_S1K = rng.integers(1, MAX_RUN + 1, size=(num_series, 1, 6))
    first_S1K = rng.integers(0, NUM_SLICES - length_S1K + 1)
    order_Z1 = np.arange(NUM_SLICES)[:, np.newaxis]
    is_in_run = (order_Z1 >= first_S1K) & (order_Z1 < first_S1K + length_S1K)
    labels_NK = is_in_run.reshape(-1, 6).astype(np.float32)
    noise_ND = rng.normal(size=(len(labels_NK), NUM_FEATURES))
    return SeriesArrays(
        features_ND=(labels_NK @ direction_KD + noise_ND).astype(np.float32),
        labels_NK=labels_NK,
        position_mm_N=np.tile(5.0 * np.arange(NUM_SLICES), num_series),
        rows=np.split(np.arange(len(labels_NK)), num_series),
        series_labels_SK=np.full((num_series, 6), np.nan, np.float32),
    )


def shuffled(arrays: SeriesArrays, seed: int) -> SeriesArrays:
    """The same series with their slices in another order."""
    rng = np.random.default_rng(seed)
    return replace(arrays, rows=[rng.permutation(rows) for rows in arrays.rows])


def slice_model(train: SeriesArrays, valid: SeriesArrays) -> Floats:
    """Logits (N, K) of `valid` by a logistic regression on each slice of `train`.

    Args:
        train: its features and labels.
        valid: its features.
    """
    model = torch.nn.Linear(NUM_FEATURES, 6)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    features, labels = map(torch.from_numpy, (train.features_ND, train.labels_NK))
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=60, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        found = binary_cross_entropy_with_logits(model(features), labels)
        found.backward()  # type: ignore[no-untyped-call]
        return found

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        return model(torch.from_numpy(valid.features_ND)).double().numpy()
