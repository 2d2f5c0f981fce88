"""Smoothing averages true neighbours only, in logit space."""

from __future__ import annotations

import numpy as np

from ichfast.evaluation.logits import logit, sigmoid
from ichfast.series.smoothing import smooth_over_z


def series(text: str) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
    return np.array([*text], dtype=object)


def test_the_weights_are_those_of_the_neighbours_that_are_there() -> None:
    logits_N1 = np.array([[-2.0], [1.0], [4.0], [-1.0], [3.0]])
    found = smooth_over_z(sigmoid(logits_N1), series("aaabb"), np.arange(5))
    expected = [
        (1.8 * -2 + 0.6 * 1) / 2.4,
        (0.6 * -2 + 1.8 * 1 + 0.6 * 4) / 3.0,
        (0.6 * 1 + 1.8 * 4) / 2.4,
        (1.8 * -1 + 0.6 * 3) / 2.4,
        (0.6 * -1 + 1.8 * 3) / 2.4,
    ]
    np.testing.assert_allclose(logit(found)[:, 0], expected, atol=1e-12)


def test_a_slice_that_was_not_predicted_separates_its_neighbours() -> None:
    probs_NK = np.random.default_rng(0).random((4, 6))
    found = smooth_over_z(probs_NK, series("aaaa"), np.array([0, 2, 4, 6]))
    np.testing.assert_allclose(found, probs_NK, atol=1e-12)


def test_the_order_of_the_rows_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    probs_NK, names_N, positions_N = rng.random((7, 6)), series("aaaabbb"), np.arange(7)
    shuffled = rng.permutation(7)
    np.testing.assert_array_equal(
        smooth_over_z(probs_NK[shuffled], names_N[shuffled], positions_N[shuffled]),
        smooth_over_z(probs_NK, names_N, positions_N)[shuffled],
    )


def test_probabilities_of_zero_and_one_stay_finite() -> None:
    probs_NK = np.array([[0.0], [1.0], [1.0]])
    before = probs_NK.copy()
    found = smooth_over_z(probs_NK, series("aaa"), np.arange(3))
    assert np.isfinite(found).all()
    assert found[0, 0] < 0.5 < found[2, 0]
    np.testing.assert_array_equal(probs_NK, before)
