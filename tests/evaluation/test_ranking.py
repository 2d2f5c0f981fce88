"""Figures and bands from sorted slices are those of scikit-learn on repeated slices."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from ichfast.evaluation.bootstrap import PERCENTILES, Resampling
from ichfast.evaluation.ranking import (
    GRID_G,
    RANKING_FIGURES,
    Ranking,
    sensitivity_at,
    spread_of,
)
from tests.evaluation import repeated_slices
from tests.evaluation.repeated_slices import make_class, repeated, resample


def test_figures_are_those_of_scikit_learn() -> None:
    counts = Ranking(*make_class()).counts()
    found = {name: figure(counts) for name, figure in RANKING_FIGURES.items()}
    assert found == pytest.approx(
        repeated_slices.ranking_figures(*make_class()), abs=1e-12
    )


def test_every_replicate_is_that_of_repeated_slices() -> None:
    probs_N, labels_N = make_class()
    drawn = resample()
    counted = Ranking(probs_N, labels_N).replicates(drawn)
    for counts, (probs, labels) in zip(
        counted, repeated(drawn, probs_N, labels_N), strict=True
    ):
        assert counts.num_positive == labels.sum()
        found = {name: figure(counts) for name, figure in RANKING_FIGURES.items()}
        assert found == pytest.approx(
            repeated_slices.ranking_figures(probs, labels), abs=1e-12
        )


def test_intervals_are_percentiles_of_the_replicates() -> None:
    probs_N, labels_N = make_class()
    drawn = resample()
    figures_RF = [
        list(repeated_slices.ranking_figures(*each).values())
        for each in repeated(drawn, probs_N, labels_N)
    ]
    found = spread_of(Ranking(probs_N, labels_N), drawn).intervals
    assert tuple(found) == tuple(RANKING_FIGURES)
    np.testing.assert_allclose(
        np.array([*found.values()], dtype=np.float64),
        np.percentile(figures_RF, PERCENTILES, axis=0).T,
        atol=1e-12,
    )


def test_bands_are_those_of_repeated_slices() -> None:
    probs_N, labels_N = make_class()
    drawn = resample(replicates=40)
    roc_RG, precision_RG = [], []
    for probs, labels in repeated(drawn, probs_N, labels_N):
        false_rate_T, true_rate_T, _ = roc_curve(labels, probs, drop_intermediate=False)
        roc_RG.append(np.interp(GRID_G, false_rate_T, true_rate_T))
        precision_RG.append(
            [repeated_slices.precision_at(probs, labels, r) for r in GRID_G]
        )
    spread = spread_of(Ranking(probs_N, labels_N), drawn, with_bands=True)
    for band, curves_RG in (
        (spread.roc_band, roc_RG),
        (spread.precision_band, precision_RG),
    ):
        assert band is not None
        low_G, high_G = np.percentile(curves_RG, PERCENTILES, axis=0)
        np.testing.assert_allclose(band.low_G, low_G)
        np.testing.assert_allclose(band.high_G, high_G)
        assert (band.low_G < band.high_G).any()


def test_one_patient_has_no_interval_and_no_band() -> None:
    drawn = resample(num_patients=1)
    spread = spread_of(Ranking(*make_class()), drawn, with_bands=True)
    assert spread.intervals == dict.fromkeys(RANKING_FIGURES)
    assert spread.roc_band is spread.precision_band is None


@pytest.mark.parametrize("rare_label", [0.0, 1.0])
@pytest.mark.parametrize(("num_without", "has_interval"), [(3, False), (2, True)])
def test_a_label_that_most_replicates_lack_gives_no_interval_and_no_band(
    num_without: int, has_interval: bool, rare_label: float
) -> None:
    probs_N, _ = make_class()
    is_rare_N = np.arange(len(probs_N)) == 7  # the only slice of the second patient
    labels_N = np.where(is_rare_N, rare_label, 1.0 - rare_label)
    counts_RP = np.array([[2, 0]] * num_without + [[1, 1]] * (4 - num_without))
    drawn = Resampling(counts_RP, is_rare_N.astype(np.intp))
    spread = spread_of(Ranking(probs_N, labels_N), drawn, with_bands=True)
    assert (spread.intervals["auc"] is not None) == has_interval
    assert (spread.roc_band is not None) == has_interval


def test_sensitivity_uses_every_threshold_the_specificity_allows() -> None:
    negatives = np.linspace(0.0, 0.9, 10)  # 0.0, 0.1, ... 0.9
    positives = np.array([0.95, 0.85, 0.75, 0.05])
    counts = Ranking(
        np.r_[negatives, positives], np.r_[np.zeros(10), np.ones(4)]
    ).counts()
    assert sensitivity_at(counts, specificity=1.0) == 0.25
    assert sensitivity_at(counts, specificity=0.9) == 0.50
    assert sensitivity_at(counts, specificity=0.8) == 0.75
    assert sensitivity_at(counts, specificity=0.0) == 1.00
