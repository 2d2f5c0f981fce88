"""Weighted replicates are what repeating the slices of drawn patients gives."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from ichfast.evaluation.bootstrap import (
    PERCENTILES,
    RANKING_FIGURES,
    mean_interval,
    ranking_intervals,
    resample_patients,
)
from ichfast.evaluation.metrics import Floats, sensitivity_at

NUM_PATIENTS = 11


@pytest.fixture(scope="module")
def patient_N() -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    return np.random.default_rng(0).permutation(np.arange(131) % NUM_PATIENTS)


def answers(num_slices: int) -> tuple[Floats, Floats]:
    """Probabilities with many ties, and labels they tell something of."""
    rng = np.random.default_rng(1)
    labels_N = (rng.random(num_slices) < 0.3).astype(np.float64)
    noise_N = rng.normal(0.3 + 0.2 * labels_N, 0.2)
    probs_N: Floats = np.round(noise_N.clip(0.0, 1.0), 1)
    return probs_N, labels_N


def test_a_replicate_draws_as_many_patients_as_there_are(
    patient_N: np.ndarray[tuple[int], np.dtype[np.intp]],
) -> None:
    drawn = resample_patients(patient_N, replicates=7)
    assert drawn.counts_RP.shape == (7, NUM_PATIENTS)
    assert (drawn.counts_RP.sum(axis=1) == NUM_PATIENTS).all()
    again = resample_patients(patient_N, replicates=7)
    np.testing.assert_array_equal(drawn.counts_RP, again.counts_RP)


def test_ranking_intervals_are_those_of_repeated_slices(
    patient_N: np.ndarray[tuple[int], np.dtype[np.intp]],
) -> None:
    probs_N, labels_N = answers(len(patient_N))
    drawn = resample_patients(patient_N, replicates=23)
    figures = []
    for count_P in drawn.counts_RP:
        repeated = np.repeat(np.arange(len(patient_N)), count_P[patient_N])
        y, p = labels_N[repeated], probs_N[repeated]
        figures.append(
            (
                roc_auc_score(y, p),
                average_precision_score(y, p),
                sensitivity_at(p, y, specificity=0.90),
                sensitivity_at(p, y, specificity=0.95),
            )
        )
    expected = np.percentile(np.array(figures), PERCENTILES, axis=0).T
    found = ranking_intervals(probs_N, labels_N, drawn)
    assert tuple(found) == RANKING_FIGURES
    np.testing.assert_allclose(
        np.array([*found.values()], dtype=np.float64), expected, atol=1e-12
    )


def test_the_interval_of_a_mean_is_that_of_repeated_slices(
    patient_N: np.ndarray[tuple[int], np.dtype[np.intp]],
) -> None:
    values_N = np.random.default_rng(2).random(len(patient_N))
    drawn = resample_patients(patient_N, replicates=23)
    means = [
        np.repeat(values_N, count_P[patient_N]).mean() for count_P in drawn.counts_RP
    ]
    found = mean_interval(values_N, drawn)
    assert found is not None
    np.testing.assert_allclose(found, np.percentile(means, PERCENTILES), atol=1e-12)


def test_slices_of_one_patient_make_an_interval_wider_than_slices_alone() -> None:
    patient_N = np.repeat(np.arange(20), 30)
    values_N = np.random.default_rng(3).random(20)[patient_N]

    def width(unit_N: np.ndarray[tuple[int], np.dtype[np.intp]]) -> float:
        interval = mean_interval(values_N, resample_patients(unit_N, replicates=200))
        assert interval is not None
        return interval[1] - interval[0]

    assert width(patient_N) > 3 * width(np.arange(600))


def test_a_rare_class_that_most_replicates_lack_has_no_interval() -> None:
    patient_N = np.arange(8)
    labels_N = np.zeros(8)
    drawn = resample_patients(patient_N, replicates=50)
    assert ranking_intervals(np.linspace(0, 1, 8), labels_N, drawn)["auc"] is None
