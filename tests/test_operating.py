"""The operating point finds what is wanted, and counts what that costs."""

from __future__ import annotations

import numpy as np
import pytest

from ichfast.errors import PredictionError
from ichfast.operating import operating_point

PROBS = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
LABELS = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0])


def test_counts_are_those_of_a_hand_count() -> None:
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
def test_a_wanted_sensitivity_is_reached_and_not_overshot(
    wanted: float, found: int
) -> None:
    point = operating_point(PROBS, LABELS, sensitivity=wanted)
    assert point is not None
    assert point.found == found


def test_slices_of_equal_probability_go_together() -> None:
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
def test_a_sensitivity_that_cannot_be_is_refused(wanted: float) -> None:
    with pytest.raises(PredictionError, match="above 0 and at most 1"):
        operating_point(PROBS, LABELS, sensitivity=wanted)
