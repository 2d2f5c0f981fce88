"""The series head finds a signal that is only in the order of the slices."""

from __future__ import annotations

import numpy as np
import pytest

from ichfast.evaluation.logits import sigmoid
from ichfast.evaluation.metrics import prevalence_loss, weighted_log_loss
from ichfast.series.batches import SeriesArrays
from ichfast.series.config import SeriesConfig
from ichfast.series.fit import fit_head
from ichfast.series.smoothing import smooth_over_z
from tests.series.planted import NUM_SLICES, planted_series, shuffled, slice_model

CONFIG = SeriesConfig(
    width=64, hidden=64, layers=1, batch_size=16, lr=3e-3, epochs=6, min_steps=0
)


@pytest.fixture(scope="module")
def planted() -> tuple[SeriesArrays, SeriesArrays]:
    return planted_series(700, seed=0), planted_series(200, seed=1)


@pytest.fixture(scope="module")
def slice_losses(planted: tuple[SeriesArrays, SeriesArrays]) -> tuple[float, float]:
    """Loss of the slice model, plain and smoothed."""
    train, valid = planted
    probs = sigmoid(slice_model(train, valid))
    series = np.repeat(np.arange(len(valid)), NUM_SLICES).astype(object)
    smoothed = smooth_over_z(probs, series, np.arange(len(probs)))
    labels = valid.labels_NK.astype(np.float64)
    plain = weighted_log_loss(probs, labels)
    assert plain < 0.5 * prevalence_loss(labels)
    return plain, weighted_log_loss(smoothed, labels)


def head_loss(train: SeriesArrays, valid: SeriesArrays) -> float:
    fitted = fit_head(train, valid, CONFIG)
    return fitted.history[fitted.best_epoch]["valid_weighted_log_loss"]


@pytest.mark.slow
def test_the_head_beats_the_slice_model_and_smoothing(
    planted: tuple[SeriesArrays, SeriesArrays], slice_losses: tuple[float, float]
) -> None:
    plain, smoothed = slice_losses
    loss = head_loss(*planted)
    assert smoothed < plain
    assert loss <= 0.70 * plain
    assert loss <= 0.90 * smoothed


@pytest.mark.slow
def test_the_head_gains_nothing_from_slices_in_random_order(
    planted: tuple[SeriesArrays, SeriesArrays], slice_losses: tuple[float, float]
) -> None:
    train, valid = planted
    assert head_loss(shuffled(train, 2), shuffled(valid, 3)) >= 0.97 * slice_losses[0]
