"""Calibration: the fit, cross-fitting over patients, classes that cannot be fitted."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from ichfast.errors import IchfastError, PredictionError
from ichfast.evaluation.calibration import (
    MIN_PATIENTS,
    UNFITTED,
    Calibration,
    crossfit,
    fit_map,
)
from ichfast.evaluation.curves import Aim
from ichfast.evaluation.logits import logit, sigmoid
from ichfast.evaluation.metrics import calibration_bins, weighted_log_loss
from ichfast.labels import CLASSES
from ichfast.recipes.settings import from_dict, to_dict
from tests.evaluation.planted import Floats, calibration_of, plant


def mean_log_loss(logits_N: Floats, labels_N: Floats) -> float:
    """-log p for a positive label and -log (1 - p) for a negative one, averaged."""
    probs_N = 1 / (1 + np.exp(-logits_N))
    return float(-np.log(np.where(labels_N == 1, probs_N, 1 - probs_N)).mean())


def test_the_fit_is_the_minimum_of_the_log_loss() -> None:
    planted = plant(20)
    logits_N, labels_N = planted.logits_NK[:, 1], planted.labels_NK[:, 1]
    temperature, bias, unfitted = fit_map(logits_N, labels_N)
    best = minimize(
        lambda at: mean_log_loss(at[0] * logits_N + at[1], labels_N),
        [1.0, 0.0],
        options={"gtol": 1e-9},
    )
    np.testing.assert_allclose([1 / temperature, bias], best.x, atol=1e-5)
    assert unfitted is None


def test_rare_positives_and_outliers_are_fitted() -> None:
    """Where Newton's whole steps lead away from the minimum."""
    logits_N = np.concatenate([np.linspace(-3, 3, 300), [25.0, 25.0, 20.0, -1.0]])
    labels_N = np.repeat([0.0, 1.0], [302, 2])
    temperature, bias, _ = fit_map(logits_N, labels_N)
    best = minimize(
        lambda at: mean_log_loss(at[0] * logits_N + at[1], labels_N),
        [0.1, -5.0],
        method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-15},
    )
    np.testing.assert_allclose([1 / temperature, bias], best.x, atol=1e-6)


@pytest.mark.parametrize(("factor", "shift"), [(3.0, 1.0), (0.01, -2.0), (1.0, 9.0)])
def test_distorted_logits_fit_to_what_the_undistorted_ones_fit_to(
    factor: float, shift: float
) -> None:
    """Logit / temperature + bias is the same for factor x logit + shift."""
    planted = plant(20)
    distorted_NK = factor * planted.logits_NK + shift
    for k in range(len(CLASSES)):
        plain = fit_map(planted.logits_NK[:, k], planted.labels_NK[:, k])
        found = fit_map(distorted_NK[:, k], planted.labels_NK[:, k])
        assert found.temperature == pytest.approx(plain.temperature * factor, 1e-6)
        np.testing.assert_allclose(
            distorted_NK[:, k] / found.temperature + found.bias,
            planted.logits_NK[:, k] / plain.temperature + plain.bias,
            atol=1e-6,
        )


def test_distorted_probabilities_are_calibrated_like_the_undistorted_ones() -> None:
    planted = plant(20)
    distorted_NK = 3.0 * planted.logits_NK + 1.0
    plain = calibration_of(planted)
    found = calibration_of(planted, factor=3.0, shift=1.0)
    np.testing.assert_allclose(
        found.apply(sigmoid(distorted_NK)),
        plain.apply(sigmoid(planted.logits_NK)),
        atol=1e-6,
    )
    assert found.loss_after == pytest.approx(plain.loss_after, abs=1e-6)
    assert found.loss_crossfitted == pytest.approx(plain.loss_crossfitted, abs=1e-6)
    assert found.loss_before > 1.2 * plain.loss_before


@pytest.mark.parametrize("seed", range(4))
def test_the_crossfitted_loss_of_100_patients_is_that_of_the_true_logits(
    seed: int,
) -> None:
    planted = plant(100, seed=seed)
    probs_NK = crossfit(
        sigmoid(3.0 * planted.logits_NK + 1.0), planted.labels_NK, planted.patient_N
    )
    ratio = mean_log_loss(logit(probs_NK), planted.labels_NK) / mean_log_loss(
        planted.logits_NK, planted.labels_NK
    )
    assert 0.99 < ratio < 1.01


def test_a_patient_does_not_decide_its_own_crossfitted_probabilities() -> None:
    planted = plant(20)
    probs_NK = sigmoid(planted.logits_NK)
    found_NK = crossfit(probs_NK, planted.labels_NK, planted.patient_N)
    is_first_N = planted.patient_N == 0
    labels_NK = np.where(is_first_N[:, None], 1 - planted.labels_NK, planted.labels_NK)
    again_NK = crossfit(probs_NK, labels_NK, planted.patient_N)
    np.testing.assert_array_equal(again_NK[is_first_N], found_NK[is_first_N])
    assert (again_NK[~is_first_N] != found_NK[~is_first_N]).any()


def test_missing_labels_are_left_out_class_by_class() -> None:
    planted = plant(20)
    labels_NK = planted.labels_NK.copy()
    labels_NK[::3, 1] = np.nan
    labels_NK[1::3, 2] = np.nan
    labels_NK[:64] = np.nan
    found = calibration_of(replace(planted, labels_NK=labels_NK))
    assert (found.patients, found.slices) == (18, 18 * 32)
    for k, each in enumerate(found.classes):
        is_known_N = ~np.isnan(labels_NK[:, k])
        alone = fit_map(planted.logits_NK[is_known_N, k], labels_NK[is_known_N, k])
        np.testing.assert_allclose((each.temperature, each.bias), alone[:2])
        assert each.slices == is_known_N.sum()
        assert each.positives == np.nansum(labels_NK[:, k])


@pytest.mark.parametrize(
    ("labels", "logits", "reason"),
    [
        ([np.nan] * 4, [0, 1, 2, 3], "no-label"),
        ([0, 0, 0, 0], [0, 1, 2, 3], "no-positive"),
        ([1, 1, 1, 1], [0, 1, 2, 3], "no-negative"),
        ([0, 0, 1, 1], [0, 1, 2, 3], "separable"),
        ([0, 0, 1, 1], [0, 1, 1, 3], "separable"),
        ([0, 0, 1, 1], [1, 1, 1, 1], "flat"),
        ([1, 1, 0, 0], [0, 1, 2, 3], "no-order"),
        ([1, 1, 0, 0], [0, 2, 1, 3], "no-order"),
        ([1, 0, 0, 0], [0, 1e-9, 1, 1], "no-order"),  # a singular curvature
        ([0, 1, 0, 1], [0, 1e-5, 2e-5, 3e-5], "flat"),
        ([0, 1, 0, 1], [0, 1, 2, 3], None),
    ],
)
def test_a_class_without_a_minimum_stays_as_it_is(
    labels: list[float], logits: list[float], reason: str | None
) -> None:
    planted = plant(MIN_PATIENTS, slices_each=4)
    logits_NK, labels_NK = planted.logits_NK.copy(), planted.labels_NK.copy()
    logits_NK[:, 3], labels_NK[:, 3] = np.tile([logits, labels], MIN_PATIENTS)
    found = calibration_of(replace(planted, logits_NK=logits_NK, labels_NK=labels_NK))
    each = found.classes[3]
    assert each.unfitted == reason
    probs_NK = sigmoid(logits_NK)
    probs_NK[:3, 3] = 0.0, 1.0, 0.3
    is_same = (found.apply(probs_NK)[:, 3] == probs_NK[:, 3]).all()
    if reason is None:
        assert not is_same
        return
    assert reason in UNFITTED
    assert (each.temperature, each.bias) == (1.0, 0.0)
    assert is_same
    assert each.loss_after == each.loss_before == each.loss_crossfitted
    assert (each.threshold is None) == (reason in ("no-label", *list(UNFITTED)[:3]))
    assert (each.loss_before is None) == (reason == "no-label")


def test_reliability_and_losses_are_those_before_after_and_crossfitted() -> None:
    planted = plant(20)
    probs_NK = sigmoid(3.0 * planted.logits_NK + 1.0)
    found = calibration_of(planted, factor=3.0, shift=1.0)
    crossfitted_NK = crossfit(probs_NK, planted.labels_NK, planted.patient_N)
    stages = (
        (probs_NK, "loss_before", "reliability_before"),
        (found.apply(probs_NK), "loss_after", ""),
        (crossfitted_NK, "loss_crossfitted", "reliability_crossfitted"),
    )
    for stage_NK, loss, reliability in stages:
        assert getattr(found, loss) == weighted_log_loss(stage_NK, planted.labels_NK)
        for k, each in enumerate(found.classes):
            labels_N = planted.labels_NK[:, k]
            assert getattr(each, loss) == pytest.approx(
                mean_log_loss(logit(stage_NK[:, k]), labels_N)
            )
            if reliability:
                bins = np.array(
                    [
                        (one.slices, one.probability, one.frequency)
                        for one in getattr(each, reliability)
                    ]
                )
                expected = np.array(calibration_bins(stage_NK[:, k], labels_N)).T
                np.testing.assert_allclose(bins, expected[expected[:, 0] > 0])


def test_a_calibration_keeps_the_order_of_the_slices() -> None:
    planted = plant(20)
    probs_NK = sigmoid(planted.logits_NK)
    calibrated_NK = calibration_of(planted).apply(probs_NK)
    assert calibrated_NK.dtype == np.float64
    np.testing.assert_array_equal(
        np.argsort(calibrated_NK, axis=0), np.argsort(probs_NK, axis=0)
    )
    single_NK = calibration_of(planted).apply(probs_NK.astype(np.float32))
    np.testing.assert_allclose(single_NK, calibrated_NK, rtol=1e-5)


def test_certain_probabilities_stay_finite() -> None:
    found = calibration_of(plant(20)).apply(np.array([[0.0] * 6, [1.0] * 6]))
    assert np.isfinite(found).all()
    assert (found[0] < 1e-6).all()
    assert (found[1] > 1 - 1e-6).all()


@pytest.mark.parametrize("figure", ["sensitivity", "specificity"])
def test_thresholds_reach_what_was_asked_for(figure: str) -> None:
    planted = plant(40)
    found = calibration_of(planted, aim=Aim(figure=figure, value=0.9))
    probs_NK = found.apply(sigmoid(planted.logits_NK))
    for k, each in enumerate(found.classes):
        threshold = each.threshold
        assert threshold is not None
        is_called_N = probs_NK[:, k] >= threshold.probability
        is_positive_N = planted.labels_NK[:, k] == 1
        shares = {
            "sensitivity": is_called_N[is_positive_N].mean(),
            "specificity": (~is_called_N)[~is_positive_N].mean(),
        }
        assert threshold.sensitivity == pytest.approx(shares["sensitivity"])
        assert threshold.specificity == pytest.approx(shares["specificity"])
        assert 0.9 <= shares[figure] < 0.91
        for value, interval in (
            (threshold.probability, threshold.interval),
            (threshold.sensitivity, threshold.sensitivity_interval),
            (threshold.specificity, threshold.specificity_interval),
        ):
            assert interval is not None
            assert interval[0] < value < interval[1]


def test_too_few_patients_are_refused() -> None:
    planted = plant(MIN_PATIENTS)
    calibration_of(planted)
    planted.labels_NK[planted.patient_N == 3] = np.nan
    with pytest.raises(
        PredictionError,
        match="9 patients have a label; a calibration needs at least 10; name a store",
    ):
        calibration_of(planted)


def test_a_calibration_is_the_same_after_json() -> None:
    planted = plant(MIN_PATIENTS)
    planted.labels_NK[:, 2] = np.nan
    found = calibration_of(planted, aim=Aim(figure="specificity", value=0.8))
    text = json.dumps(to_dict(found), allow_nan=False)
    assert from_dict(Calibration, json.loads(text)) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda each: each.update(temperature=0.0), "from 0.001 to 1000, found 0.0"),
        (lambda each: each.update(temperature=-1.0), "has a temperature .* found -1.0"),
        (lambda each: each.update(unfitted="tired"), "no-label, .* found 'tired'"),
        (lambda each: each.update(name="any"), "has the classes any, .* found"),
        (lambda each: each.update(bias=float("nan")), "bias: expected float"),
        (lambda each: each.update(threshold=0.5), "threshold: expected"),
        (lambda each: each["threshold"].update(probability=1.1), "in .0, 1., found 1"),
        (lambda each: each["threshold"].update(interval=[-0.1, 1]), "found -0.1"),
        (lambda each: each.update(positives=-1), "a number of slices, found -1"),
        (lambda each: each["reliability_before"][0].update(slices=0), "found 0"),
        (lambda each: each["reliability_before"][0].update(frequency=2.0), "found 2.0"),
        (
            lambda each: each.update(reliability_before=each["reliability_before"] * 9),
            "has few bins, found",
        ),
    ],
)
def test_a_wrong_calibration_is_refused(change: object, message: str) -> None:
    content = json.loads(json.dumps(to_dict(calibration_of(plant(MIN_PATIENTS)))))
    assert callable(change)
    change(content["classes"][1])
    with pytest.raises(IchfastError, match=message):
        from_dict(Calibration, content)
