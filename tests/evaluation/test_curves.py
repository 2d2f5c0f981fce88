"""The bands of the curves are those of really repeated patients."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import roc_curve

from ichfast.evaluation.bootstrap import PERCENTILES, Resampling, resample_patients
from ichfast.evaluation.curves import GRID_G, class_curves, curve_bands

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
