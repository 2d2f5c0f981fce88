"""The figures of arrays agree with hand computation and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from sklearn import metrics as sklearn_metrics

from ichfast.evaluation.metrics import (
    accuracy,
    calibration_error,
    class_log_loss_K,
    prevalence_loss,
    weighted_log_loss,
)
from ichfast.evaluation.predictions import labels_NK, probs_NK
from tests.evaluation.test_evaluation import make_table

Floats = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def probs() -> Floats:
    return probs_NK(make_table())


@pytest.fixture(scope="module")
def labels() -> Floats:
    return labels_NK(make_table())


def test_the_loss_of_two_slices_by_hand() -> None:
    probs = np.array([[0.9, 0.5, 0.5, 0.5, 0.5, 0.8], [0.1, 0.2, 0.2, 0.2, 0.2, 0.2]])
    labels = np.array([[1.0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]])
    first = (2 * -math.log(0.9) + 4 * math.log(2) - math.log(0.8)) / 7
    second = (2 * -math.log(0.9) + 5 * -math.log(0.8)) / 7
    expected = (first + second) / 2
    assert weighted_log_loss(probs, labels) == pytest.approx(expected, abs=1e-12)


def test_the_clip_bounds_the_loss_of_a_wrong_probability() -> None:
    probs, labels = np.ones((1, 6)), np.zeros((1, 6))
    assert weighted_log_loss(probs, labels, clip=1e-6) == pytest.approx(
        -math.log(1e-6), abs=1e-9
    )
    assert weighted_log_loss(probs, labels) == pytest.approx(34.54, abs=0.01)


def test_float32_probabilities_are_clipped_in_float64() -> None:
    labels = np.zeros((1, 6))
    assert math.isfinite(weighted_log_loss(np.ones((1, 6), np.float32), labels))


def test_losses_agree_with_scikit_learn(probs: Floats, labels: Floats) -> None:
    by_class = [
        sklearn_metrics.log_loss(labels[:, k], probs[:, k], labels=[0, 1])
        for k in range(6)
    ]
    np.testing.assert_allclose(class_log_loss_K(probs, labels), by_class, atol=1e-12)
    expected = np.average(by_class, weights=[2, 1, 1, 1, 1, 1])
    assert weighted_log_loss(probs, labels) == pytest.approx(expected, abs=1e-12)


def test_no_constant_beats_the_prevalence(labels: Floats) -> None:
    best = prevalence_loss(labels)
    prevalence_K = labels.mean(axis=0)
    for k in range(6):
        for change in (-0.01, 0.01):
            other_K = prevalence_K.copy()
            other_K[k] += change
            constant = np.tile(other_K, (len(labels), 1))
            assert weighted_log_loss(constant, labels) > best


def test_the_prevalence_of_the_competition_has_the_known_loss() -> None:
    # The stage-1 training set has 674,258 slices with these many positives.
    positives = [97_103, 2_761, 32_564, 23_766, 32_122, 42_496]
    share = [count / 674_258 for count in positives]
    entropy = [-p * math.log(p) - (1 - p) * math.log(1 - p) for p in share]
    expected = (2 * entropy[0] + sum(entropy[1:])) / 7
    labels = (np.arange(100_000)[:, None] < np.array(share) * 100_000).astype(float)
    assert prevalence_loss(labels) == pytest.approx(expected, abs=1e-4)
    assert expected == pytest.approx(0.232, abs=5e-4)


def test_accuracy_counts_every_output_at_one_half() -> None:
    probs = np.array([[0.6, 0.4, 0.5, 0.5, 0.0, 1.0]])
    labels = np.array([[1.0, 0, 0, 0, 0, 0]])
    assert accuracy(probs, labels) == pytest.approx(5 / 6, abs=1e-12)


def test_calibration_error_by_hand() -> None:
    probs = np.array([0.05, 0.05, 0.95, 1.0])
    labels = np.array([0.0, 1.0, 1.0, 1.0])
    expected = 0.5 * abs(0.05 - 0.5) + 0.5 * abs(0.975 - 1.0)
    assert calibration_error(probs, labels, num_bins=10) == pytest.approx(
        expected, abs=1e-12
    )
