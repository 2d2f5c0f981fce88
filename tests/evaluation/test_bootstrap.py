"""Intervals come from resampled patients, not from resampled slices."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ichfast.evaluation.bootstrap import (
    PERCENTILES,
    Resampling,
    draw_patients,
    mean_interval,
)
from tests.evaluation.repeated_slices import repeated, resample


def test_a_replicate_draws_as_many_patients_as_there_are() -> None:
    counts_RP = draw_patients(11, replicates=7)
    assert counts_RP.shape == (7, 11)
    assert (counts_RP.sum(axis=1) == 11).all()
    np.testing.assert_array_equal(counts_RP, draw_patients(11, replicates=7))


def test_the_interval_of_a_mean_is_that_of_repeated_slices() -> None:
    values_N = np.random.default_rng(2).random(131)
    drawn = resample()
    means = [values.mean() for (values,) in repeated(drawn, values_N)]
    found = mean_interval(values_N, np.ones(131), drawn)
    assert found is not None
    np.testing.assert_allclose(found, np.percentile(means, PERCENTILES), atol=1e-12)


def test_a_mean_over_one_patient_has_no_interval() -> None:
    assert mean_interval(np.ones(131), np.ones(131), resample(num_patients=1)) is None


def test_slices_of_one_patient_make_an_interval_wider_than_slices_alone() -> None:
    patient_N = np.repeat(np.arange(20), 30)
    values_N = np.random.default_rng(3).random(20)[patient_N]

    def width(unit_N: npt.NDArray[np.intp]) -> float:
        counts_RP = draw_patients(unit_N.max() + 1, replicates=200)
        interval = mean_interval(values_N, np.ones(600), Resampling(counts_RP, unit_N))
        assert interval is not None
        return interval[1] - interval[0]

    assert width(patient_N) > 3 * width(np.arange(600))
