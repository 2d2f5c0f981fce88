"""The blend is never worse than the slice model where it was chosen."""

from __future__ import annotations

import numpy as np
import pytest

from ichfast.evaluation.logits import sigmoid
from ichfast.evaluation.metrics import weighted_log_loss
from ichfast.series.blend import ALPHAS, Floats, blend, choose_blend, crossfit_blend


@pytest.mark.parametrize("seed", range(20))
def test_no_class_is_worse_than_with_the_slice_model(seed: int) -> None:
    rng = np.random.default_rng(seed)
    slice_model, head = rng.normal(scale=rng.choice([0.5, 3, 30], 6), size=(2, 40, 6))
    labels = (slice_model + rng.normal(size=(40, 6)) > 0).astype(np.float64)
    labels[rng.random((40, 6)) < 0.3] = np.nan
    mixed = blend(slice_model, head, choose_blend(slice_model, head, labels))
    for k in range(6):
        one_class = labels.copy()
        one_class[:, np.arange(6) != k] = np.nan
        before, after = (
            weighted_log_loss(sigmoid(each), one_class) for each in (slice_model, mixed)
        )
        assert after <= before * (1 + 1e-12)


def test_each_class_chooses_its_own_share() -> None:
    """The labels are drawn from a known mixture of the logits."""
    rng = np.random.default_rng(0)
    slice_model, head = rng.normal(scale=3.0, size=(2, 20_000, 6))
    alpha = np.array([0.0, 0.25, 0.5, 0.75, 1.0, 0.0])
    probs = sigmoid(blend(slice_model, head, alpha))
    labels = (rng.random(probs.shape) < probs).astype(np.float64)
    assert choose_blend(slice_model, head, labels).tolist() == alpha.tolist()


def test_missing_labels_have_no_part_in_the_choice() -> None:
    slice_model, head = np.full((2, 6), 1.0), np.full((2, 6), 3.0)
    labels = np.zeros((2, 6))
    labels[0], labels[1] = 1.0, np.nan
    assert (choose_blend(slice_model, head, labels) == 1.0).all()
    slice_model[1] = np.array([9.0] * 6)
    head[1] = np.array([-9.0] * 6)
    assert (choose_blend(slice_model, head, labels) == 1.0).all()


def test_without_labels_or_without_a_difference_the_slice_model_stays() -> None:
    slice_model, head = np.random.default_rng(1).normal(size=(2, 9, 6))
    unlabelled = np.full((9, 6), np.nan)
    assert (choose_blend(slice_model, head, unlabelled) == 0.0).all()
    assert (choose_blend(head, head, np.ones((9, 6))) == 0.0).all()


def test_the_ends_of_the_blend_are_its_two_parts() -> None:
    slice_model, head = np.random.default_rng(2).normal(size=(2, 5, 6))
    assert np.array_equal(blend(slice_model, head, np.zeros(6)), slice_model)
    assert np.array_equal(blend(slice_model, head, np.ones(6)), head)
    assert ALPHAS[0] == 0.0
    assert ALPHAS[-1] == 1.0


def test_cross_fitted_shares_of_a_patient_are_those_of_the_others() -> None:
    rng = np.random.default_rng(3)
    slice_model, head = rng.normal(scale=2.0, size=(2, 30, 6))
    labels = rng.integers(0, 2, size=(30, 6)).astype(np.float64)
    labels[rng.random((30, 6)) < 0.2] = np.nan
    patient = np.arange(30) % 4
    found = crossfit_blend(slice_model, head, labels, patient)
    assert found.shape == (4, 6)
    for p in range(4):
        others = patient != p
        expected = choose_blend(slice_model[others], head[others], labels[others])
        assert found[p].tolist() == expected.tolist()
    assert len(np.unique(found, axis=0)) > 1


def test_a_single_patient_gets_the_slice_model_when_cross_fitted() -> None:
    rng = np.random.default_rng(4)
    slice_model, head = rng.normal(size=(2, 999, 6))
    labels = (head > 0).astype(np.float64)
    one = np.zeros(999, np.int64)
    assert (crossfit_blend(slice_model, head, labels, one) == 0.0).all()
    assert (choose_blend(slice_model, head, labels) == 1.0).all()


def test_shares_are_chosen_on_what_is_judged() -> None:
    """With labels of series, its highest logit is judged after the blend."""
    slice_model = np.array([[4.0], [-4.0]]) * np.ones(6)
    head = np.array([[-5.0], [-4.0]]) * np.ones(6)
    labels = np.zeros((1, 6))

    def highest(logits: Floats) -> Floats:
        highest_1K: Floats = logits.max(axis=0, keepdims=True)
        return highest_1K

    assert (choose_blend(slice_model, head, labels, highest) == 1.0).all()
    assert (choose_blend(slice_model, head, 1 - labels, highest) == 0.0).all()
