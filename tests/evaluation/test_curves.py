"""Curves equal those of scikit-learn; an operating point reaches its sensitivity."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, roc_curve

from ichfast.errors import PredictionError
from ichfast.evaluation.bootstrap import Resampling, draw_patients
from ichfast.evaluation.curves import (
    Aim,
    class_curves,
    operating_point,
    threshold_at,
    threshold_interval,
)
from tests.evaluation.repeated_slices import make_class, repeated, resample


def test_the_curves_are_those_of_scikit_learn() -> None:
    _, labels_N = make_class()
    probs_N = np.random.default_rng(4).permutation(len(labels_N)) / len(labels_N)
    curves = class_curves(probs_N, labels_N, resample())
    assert curves is not None
    corners = set(zip(curves.false_rate_V, curves.true_rate_V, strict=True))
    first, second, *rest = zip(*roc_curve(labels_N, probs_N)[:2], strict=True)
    # It always keeps the highest threshold, which may lie within a straight stretch.
    assert corners | {second} == {first, second, *rest}
    points = set(zip(curves.recall_T, curves.precision_T, strict=True))
    precision_T, recall_T, _ = precision_recall_curve(
        labels_N, probs_N, drop_intermediate=True
    )
    found_T = recall_T > 0
    assert points == set(zip(recall_T[found_T], precision_T[found_T], strict=True))


def test_tied_slices_make_slanted_stretches_of_the_roc_curve() -> None:
    probs_N = np.array([0.9, 0.5, 0.5, 0.5, 0.3, 0.3, 0.1])
    labels_N = np.array([1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    curves = class_curves(probs_N, labels_N, resample(7, num_patients=2))
    assert curves is not None
    np.testing.assert_allclose(curves.false_rate_V, [0, 0, 1 / 2, 3 / 4, 1])
    np.testing.assert_allclose(curves.true_rate_V, [0, 1 / 3, 2 / 3, 1, 1])


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_class_with_one_label_has_no_curves(label: float) -> None:
    probs_N, _ = make_class()
    assert class_curves(probs_N, np.full_like(probs_N, label), resample()) is None


PROBS = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
LABELS = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0])


def test_the_counts_of_an_operating_point_by_hand() -> None:
    point = operating_point(PROBS, LABELS, sensitivity=0.75)
    assert point is not None
    assert point.threshold == 0.6
    found = (point.found, point.missed, point.false_alarms, point.left_alone)
    assert found == (3, 1, 1, 2)
    assert point.sensitivity == 0.75
    assert point.specificity == pytest.approx(2 / 3)
    assert point.precision == 0.75
    assert point.negative_predictive_value == pytest.approx(2 / 3)


@pytest.mark.parametrize(("wanted", "found"), [(0.1, 1), (0.5, 2), (0.51, 3), (1.0, 4)])
def test_an_operating_point_finds_no_more_slices_than_needed(
    wanted: float, found: int
) -> None:
    point = operating_point(PROBS, LABELS, sensitivity=wanted)
    assert point is not None
    assert point.found == found


def test_slices_of_equal_probability_are_called_together() -> None:
    point = operating_point(np.full(7, 0.5), LABELS, sensitivity=0.1)
    assert point is not None
    assert (point.found, point.false_alarms) == (4, 3)
    assert point.negative_predictive_value is None


def test_without_negative_slices_there_is_no_specificity() -> None:
    point = operating_point(PROBS, np.ones(7), sensitivity=0.9)
    assert point is not None
    assert point.specificity is None


def test_without_positive_slices_there_is_no_point() -> None:
    assert operating_point(PROBS, np.zeros(7), sensitivity=0.9) is None


@pytest.mark.parametrize("wanted", [0.0, 1.01, float("nan")])
def test_a_sensitivity_outside_its_range_is_refused(wanted: float) -> None:
    with pytest.raises(PredictionError, match="above 0 and at most 1"):
        operating_point(PROBS, LABELS, sensitivity=wanted)


def test_the_lowest_threshold_of_a_specificity_by_hand() -> None:
    """Negative slices: 0.8, 0.5, 0.4. So 0.6 leaves two of them alone, 0.5 one."""
    for specificity, lowest in ((1.0, 0.8), (0.67, 0.8), (0.66, 0.5), (1e-9, 0.4)):
        threshold = threshold_at(PROBS, LABELS, Aim("specificity", specificity))
        assert threshold == np.nextafter(lowest, 1.0)
    assert threshold_at(PROBS, LABELS, Aim("sensitivity", 1e-9)) == 0.9


@pytest.mark.parametrize("figure", ["sensitivity", "specificity"])
def test_the_interval_of_a_threshold_is_that_of_repeated_slices(figure: str) -> None:
    probs_N, labels_N = make_class()
    resampling, aim = resample(replicates=41), Aim(figure, 0.8)
    low, high = np.percentile(
        [
            threshold_at(drawn_probs, drawn_labels, aim)
            for drawn_probs, drawn_labels in repeated(resampling, probs_N, labels_N)
        ],
        [2.5, 97.5],
    )
    found = threshold_interval(probs_N, labels_N, aim, resampling)
    assert found == (low, high)
    assert low < high


def test_replicates_without_a_deciding_patient_have_no_threshold() -> None:
    """Patients 0 and 1 of 7 have the positive slices; one replicate in ten lacks both.

    Their thresholds are 0.2 and 0.1, so the interval would end at the highest
    probability if those replicates counted.
    """
    patient_N = np.repeat(np.arange(7), 2)
    labels_N = np.repeat([1.0, 0.0], [4, 10])
    probs_N = np.concatenate([[0.9, 0.2, 0.8, 0.1], np.full(10, 0.5)])
    resampling = Resampling(draw_patients(7, replicates=200), patient_N)
    is_without_R = resampling.counts_RP[:, :2].sum(axis=1) == 0
    assert is_without_R.mean() > 0.05
    found = threshold_interval(probs_N, labels_N, Aim(value=1.0), resampling)
    assert found == (0.1, 0.2)


@pytest.mark.parametrize("num_patients", [1, 2])
def test_an_interval_of_a_threshold_needs_two_patients_that_decide(
    num_patients: int,
) -> None:
    patient_N = np.array([0, 1, num_patients - 1, 0, 1, 1, 0])
    resampling = Resampling(draw_patients(2, replicates=50), patient_N)
    found = threshold_interval(PROBS, LABELS, Aim(), resampling)
    assert (found is None) == (num_patients == 1)


def test_an_aim_is_a_sensitivity_or_a_specificity() -> None:
    with pytest.raises(PredictionError, match="a sensitivity or a specificity, got 'f"):
        Aim("f1")
    with pytest.raises(PredictionError, match=r"specificity is above 0 .* got 1\.5"):
        Aim("specificity", 1.5)
