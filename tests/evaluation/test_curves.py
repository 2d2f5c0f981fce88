"""The bands of the curves are those of really repeated patients.

The operating point finds what is wanted, and counts what that costs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import roc_curve

from ichfast.errors import PredictionError
from ichfast.evaluation.bootstrap import PERCENTILES, Resampling, resample_patients
from ichfast.evaluation.curves import GRID_G, class_curves, curve_bands, operating_point

Floats = npt.NDArray[np.float64]


def make_class(num_slices: int = 97) -> tuple[Floats, Floats, npt.NDArray[np.intp]]:
    """Probabilities with ties, labels, and 13 patients."""
    rng = np.random.default_rng(3)
    labels_N = (rng.random(num_slices) < 0.3).astype(np.float64)
    probs_N = np.rint(40 * labels_N + 60 * rng.random(num_slices)) / 100
    return probs_N, labels_N, rng.permutation(num_slices) % 13


def repeated(values_N: Floats, resampling: Resampling, replicate: int) -> Floats:
    """The slices of a replicate, those of a patient drawn twice written twice."""
    count_N = resampling.counts_RP[replicate][resampling.patient_N]
    return np.repeat(values_N, count_N)


def precision_at(probs_N: Floats, labels_N: Floats, recall: float) -> float:
    """Precision at the highest threshold with that recall, one threshold at a time."""
    for threshold in np.unique(probs_N)[::-1]:
        called_N = probs_N >= threshold
        found = labels_N[called_N].sum()
        if found > 0 and found / labels_N.sum() >= recall - 1e-9:
            return float(found / called_N.sum())
    raise AssertionError("the lowest threshold finds all")


def test_the_bands_are_those_of_repeated_slices() -> None:
    probs_N, labels_N, patient_N = make_class()
    resampling = resample_patients(patient_N, replicates=40)
    roc_RG, precision_RG = [], []
    for replicate in range(40):
        probs = repeated(probs_N, resampling, replicate)
        labels = repeated(labels_N, resampling, replicate)
        false_rate_T, true_rate_T, _ = roc_curve(labels, probs, drop_intermediate=False)
        roc_RG.append(np.interp(GRID_G, false_rate_T, true_rate_T))
        precision_RG.append([precision_at(probs, labels, r) for r in GRID_G])
    for band, curves_RG in zip(
        curve_bands(probs_N, labels_N, resampling),
        (roc_RG, precision_RG),
        strict=True,
    ):
        assert band is not None
        low_G, high_G = np.percentile(curves_RG, PERCENTILES, axis=0)
        np.testing.assert_allclose(band.low_G, low_G)
        np.testing.assert_allclose(band.high_G, high_G)
        assert (band.low_G < band.high_G).any()


def test_one_patient_has_no_band() -> None:
    probs_N, labels_N, patient_N = make_class()
    resampling = resample_patients(np.zeros_like(patient_N), replicates=5)
    assert curve_bands(probs_N, labels_N, resampling) == (None, None)


def test_a_class_that_most_replicates_lack_has_no_band() -> None:
    probs_N, labels_N, _ = make_class()
    first = np.flatnonzero(labels_N)[0]
    counts_RP = np.array([[2, 0], [2, 0], [1, 1]])
    patient_N = (np.arange(len(probs_N)) == first).astype(np.intp)
    only_N = (patient_N == 1).astype(np.float64)
    assert curve_bands(probs_N, only_N, Resampling(counts_RP, patient_N)) == (None,) * 2


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_class_with_one_label_has_no_curves(label: float) -> None:
    probs_N, _, patient_N = make_class()
    resampling = resample_patients(patient_N, replicates=5)
    assert class_curves(probs_N, np.full_like(probs_N, label), resampling) is None


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
