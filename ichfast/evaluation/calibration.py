"""Calibration: a temperature and a bias for each class, and thresholds.

1. In logit space, a calibrated probability is ``logit / temperature + bias``. So the
   order of the slices, and with it the AUC, stays.
2. Both numbers minimise the log loss of the class over its known labels. Logits that
   were scaled and shifted before give the same probabilities.
3. A class for which no minimum exists stays as it is, with a reason (`UNFITTED`).
4. A loss on the slices that chose the numbers is too good. The cross-fitted loss is
   that of each patient with the numbers of the patients in other folds.
5. A threshold is a calibrated probability, with an interval from resampled patients.

Source:
    Guo et al. 2017, "On Calibration of Modern Neural Networks"; Platt 1999,
    "Probabilistic Outputs for Support Vector Machines".

Shape letters: N slices, K classes, P patients, J the parameters (slope, bias).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from ichfast.errors import PredictionError
from ichfast.evaluation.bootstrap import (
    REPLICATES,
    SEED,
    Interval,
    Resampling,
    draw_patients,
    mean_interval,
)
from ichfast.evaluation.curves import Aim, count_calls, threshold_at, threshold_interval
from ichfast.evaluation.logits import logit, sigmoid
from ichfast.evaluation.metrics import (
    NUM_CALIBRATION_BINS,
    calibration_bins,
    class_log_loss_K,
    has_both,
    weighted_log_loss,
)
from ichfast.labels import CLASSES

Floats = npt.NDArray[np.float64]

MIN_PATIENTS = 10
"""Patients with a label that a calibration needs."""

NUM_FOLDS = 10
"""Folds of patients for the cross-fitted loss; fewer where there are fewer patients."""

MAX_TEMPERATURE = 1000.0
"""Upper limit of a temperature; 1 over it is the lower limit."""

UNFITTED: Mapping[str, str] = {
    "no-label": "no slice has a label of it",
    "no-positive": "no slice has it",
    "no-negative": "every slice has it",
    "flat": "all slices have nearly the same probability",
    "separable": "the probabilities of slices with and without it do not overlap",
    "no-order": "slices that have it do not get higher probabilities",
}
"""Why a class stays as it is: a code, and what it means."""

MAX_SLICES = 10**9
"""Upper limit of the slices of a calibration."""

MAX_STEPS = 100
"""Upper limit of Newton steps; usually 6 to 10 are enough."""

TOLERANCE = 1e-14
"""Newton stops where a step promises less than this of the log loss, in nats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Threshold:
    """The probability from which slices are called positive, and what that finds.

    Intervals are of 95 %, and None where there are too few patients.
    """

    probability: float
    """A slice is called positive if its calibrated probability is at least this."""

    interval: Interval | None
    """What other patients like these would have chosen."""

    sensitivity: float
    sensitivity_interval: Interval | None
    specificity: float
    specificity_interval: Interval | None

    def __post_init__(self) -> None:
        intervals = self.interval, self.sensitivity_interval, self.specificity_interval
        ends = [end for interval in intervals if interval for end in interval]
        for each in (self.probability, self.sensitivity, self.specificity, *ends):
            # One that no slice reaches is just above 1.
            _check(0.0 <= each <= np.nextafter(1.0, 2.0), "in [0, 1]", each)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReliabilityBin:
    """Slices of nearly the same probability (`evaluation.metrics.calibration_bins`)."""

    slices: int
    """At least 1."""

    probability: float
    """Their mean probability."""

    frequency: float
    """The share of positives among them."""

    def __post_init__(self) -> None:
        _check(1 <= self.slices <= MAX_SLICES, "a number of slices", self.slices)
        for share in (self.probability, self.frequency):
            _check(0.0 <= share <= 1.0, "in [0, 1]", share)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassCalibration:
    """Temperature, bias and threshold of one class, and the slices that chose them."""

    name: str
    temperature: float = 1.0
    """Greater than 1 where the model is too certain."""

    bias: float = 0.0
    """Added to the logit after it is divided by the temperature."""

    unfitted: str | None = None
    """A key of `UNFITTED`; None where temperature and bias are fitted."""

    slices: int
    """Slices whose label is known."""

    positives: int
    patients: int
    """Patients with such a slice."""

    positive_patients: int
    """Patients with a positive slice."""

    loss_before: float | None
    """Log loss without calibration, in nats; None without a label."""

    loss_after: float | None
    """Log loss on the slices that chose temperature and bias."""

    loss_crossfitted: float | None
    """Log loss of each slice with the numbers of other patients."""

    threshold: Threshold | None
    """None where the class has no positive or no negative slice."""

    reliability_before: tuple[ReliabilityBin, ...]
    """Frequency over probability without calibration, by rising probability."""

    reliability_crossfitted: tuple[ReliabilityBin, ...]
    """The same of each slice with the numbers of other patients."""

    def __post_init__(self) -> None:
        _check(
            1.0 / MAX_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE,
            f"a temperature from {1.0 / MAX_TEMPERATURE:g} to {MAX_TEMPERATURE:g}",
            self.temperature,
        )
        _check(
            self.unfitted is None or self.unfitted in UNFITTED,
            f"one of {', '.join(UNFITTED)}",
            self.unfitted,
        )
        counts = self.slices, self.positives, self.patients, self.positive_patients
        for count in counts:
            _check(0 <= count <= MAX_SLICES, "a number of slices", count)
        for bins in (self.reliability_before, self.reliability_crossfitted):
            _check(len(bins) <= NUM_CALIBRATION_BINS, "few bins", len(bins))


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """How the probabilities of a run are calibrated, and on which slices."""

    classes: tuple[ClassCalibration, ...]
    """In `labels.CLASSES` order."""

    aim: Aim
    """What the thresholds reach on these slices."""

    store_digest: str
    """The store of the slices (`StoreHeader.digest`)."""

    slices: int
    """Slices with a label."""

    patients: int
    """Patients with a label."""

    loss_before: float
    """Weighted log loss without calibration, in nats."""

    loss_after: float
    """Weighted log loss on the slices that chose the calibration."""

    loss_crossfitted: float
    """Weighted log loss of each slice with the calibration of other patients."""

    def __post_init__(self) -> None:
        names = tuple(each.name for each in self.classes)
        _check(names == CLASSES, f"the classes {', '.join(CLASSES)}", names)
        for count in (self.slices, self.patients):
            _check(1 <= count <= MAX_SLICES, "a number of slices", count)

    @property
    def maps(self) -> list[LogitMap]:
        """The map from logits to calibrated logits of each class."""
        return [LogitMap(each.temperature, each.bias) for each in self.classes]

    def apply(self, probs_NK: npt.NDArray[np.floating]) -> Floats:
        """Calibrate probabilities.

        Args:
            probs_NK: in [0, 1], in `labels.CLASSES` order. Not changed.

        Returns:
            In [0, 1], float64, shape (N, K). A class that is unfitted stays as it is.
        """
        return _apply(np.asarray(probs_NK, np.float64), self.maps)


def _check(is_right: bool, expected: str, found: object) -> None:
    """Refuse a value of a calibration, which may come from an edited file."""
    if not is_right:
        raise PredictionError(
            f"a calibration has {expected}, found {found!r:.80}; calibrate again"
        )


class LogitMap(NamedTuple):
    """A map from logits to calibrated logits."""

    temperature: float = 1.0
    bias: float = 0.0
    unfitted: str | None = None
    """A key of `UNFITTED`."""


def fit_calibration(
    probs_NK: Floats,
    labels_NK: Floats,
    patient_N: npt.NDArray[np.generic],
    *,
    store_digest: str,
    aim: Aim,
) -> Calibration:
    """Fit the calibration of all classes, and choose their thresholds.

    Args:
        probs_NK: probabilities in [0, 1] that are not calibrated, shape (N, 6).
        labels_NK: 0, 1 or NaN, shape (N, 6).
        patient_N: the patient of each slice; any ids that can be compared.
        store_digest: the store of the slices.
        aim: sensitivity or specificity that the thresholds reach.

    Raises:
        PredictionError: fewer than `MIN_PATIENTS` patients with a label.
    """
    is_labelled_N = (~np.isnan(labels_NK)).any(axis=1)
    probs_NK, labels_NK = probs_NK[is_labelled_N], labels_NK[is_labelled_N]
    number_N, patients_P = pd.factorize(patient_N[is_labelled_N])
    num_patients = len(patients_P)
    if num_patients < MIN_PATIENTS:
        raise PredictionError(
            f"{num_patients:,} patients have a label; a calibration needs at least "
            f"{MIN_PATIENTS}; name a store of more patients with --store"
        )
    maps = fit_maps(probs_NK, labels_NK)
    after_NK = _apply(probs_NK, maps)
    crossfitted_NK = crossfit(probs_NK, labels_NK, number_N)
    resampling = Resampling(
        draw_patients(num_patients, replicates=REPLICATES), number_N
    )
    stages = probs_NK, after_NK, crossfitted_NK
    before, after, crossfitted = (
        weighted_log_loss(each_NK, labels_NK) for each_NK in stages
    )
    return Calibration(
        classes=tuple(
            _describe_class(
                name,
                maps[k],
                [each_NK[:, k] for each_NK in stages],
                labels_NK[:, k],
                resampling,
                aim,
            )
            for k, name in enumerate(CLASSES)
        ),
        aim=aim,
        store_digest=store_digest,
        slices=len(labels_NK),
        patients=num_patients,
        loss_before=before,
        loss_after=after,
        loss_crossfitted=crossfitted,
    )


def crossfit(
    probs_NK: Floats, labels_NK: Floats, patient_N: npt.NDArray[np.intp]
) -> Floats:
    """Calibrate the slices of each patient with the numbers of other patients.

    Args:
        probs_NK: probabilities in [0, 1], shape (N, K).
        labels_NK: 0, 1 or NaN, shape (N, K).
        patient_N: number of the patient of each slice, from 0.

    Returns:
        Probabilities, shape (N, K).
    """
    num_patients = int(patient_N.max()) + 1
    num_folds = min(NUM_FOLDS, num_patients)
    fold_P = np.random.default_rng(SEED).permutation(num_patients) % num_folds
    fold_N = fold_P[patient_N]
    found_NK = np.empty_like(probs_NK)
    for fold in range(num_folds):
        is_in_N = fold_N == fold
        maps = fit_maps(probs_NK[~is_in_N], labels_NK[~is_in_N])
        found_NK[is_in_N] = _apply(probs_NK[is_in_N], maps)
    return found_NK


def fit_maps(probs_NK: Floats, labels_NK: Floats) -> list[LogitMap]:
    """Fit the map of each class.

    Args:
        probs_NK: probabilities in [0, 1], shape (N, K).
        labels_NK: 0, 1 or NaN, shape (N, K).
    """
    maps = []
    for probs_N, labels_N in zip(probs_NK.T, labels_NK.T, strict=True):
        is_known_N = ~np.isnan(labels_N)
        maps.append(fit_map(logit(probs_N[is_known_N]), labels_N[is_known_N]))
    return maps


def fit_map(logits_N: Floats, labels_N: Floats) -> LogitMap:
    """Find the temperature and bias of one class with the lowest log loss.

    Args:
        logits_N: finite logits.
        labels_N: 0 or 1.
    """
    if not labels_N.size:
        return LogitMap(unfitted="no-label")
    if not has_both(labels_N):
        kind = "no-negative" if labels_N[0] > 0.5 else "no-positive"
        return LogitMap(unfitted=kind)
    positive, negative = logits_N[labels_N > 0.5], logits_N[labels_N < 0.5]
    if logits_N.min() == logits_N.max():
        return LogitMap(unfitted="flat")
    if positive.min() >= negative.max():
        return LogitMap(unfitted="separable")
    # In these units, scaled and shifted logits are the same numbers.
    center, scale = logits_N.mean(), logits_N.std()
    slope, bias = _minimize_loss((logits_N - center) / scale, labels_N) / [scale, 1.0]
    if not 1.0 / MAX_TEMPERATURE <= slope <= MAX_TEMPERATURE:
        return LogitMap(unfitted="no-order" if slope < 1.0 else "flat")
    return LogitMap(float(1.0 / slope), float(bias - slope * center))


def _minimize_loss(x_N: Floats, labels_N: Floats) -> Floats:
    """Slope and bias with the lowest mean log loss, by Newton's method.

    The loss is convex. A step that would not lower it is halved.
    """
    inputs_NJ = np.stack([x_N, np.ones_like(x_N)], axis=1)

    def loss_at(parameters_J: Floats) -> float:
        logits_N = inputs_NJ @ parameters_J
        return float((np.logaddexp(0.0, logits_N) - labels_N * logits_N).mean())

    parameters_J = np.array([0.0, logit(labels_N.mean())])
    loss = loss_at(parameters_J)
    for _ in range(MAX_STEPS):
        probs_N = sigmoid(inputs_NJ @ parameters_J)
        gradient_J = inputs_NJ.T @ (probs_N - labels_N) / len(x_N)
        weight_N = probs_N * (1.0 - probs_N) / len(x_N)
        curvature_JJ = inputs_NJ.T * weight_N @ inputs_NJ
        # It may be singular, where hardly any slice is undecided.
        step_J = np.linalg.lstsq(curvature_JJ, gradient_J, rcond=None)[0]
        promised = gradient_J @ step_J
        while (next_loss := loss_at(parameters_J - step_J)) > loss:
            step_J = step_J / 2
            promised /= 2
            if promised < TOLERANCE:
                return parameters_J
        parameters_J, loss = parameters_J - step_J, next_loss
        if promised < TOLERANCE:
            break
    return parameters_J


def _apply(probs_NK: Floats, maps: list[LogitMap]) -> Floats:
    temperature_K = np.array([each.temperature for each in maps])
    bias_K = np.array([each.bias for each in maps])
    calibrated_NK = sigmoid(logit(probs_NK) / temperature_K + bias_K)
    is_same_K = (temperature_K == 1.0) & (bias_K == 0.0)
    return np.where(is_same_K, probs_NK, calibrated_NK)


def _describe_class(
    name: str,
    fitted: LogitMap,
    stages: list[Floats],
    labels_N: Floats,
    resampling: Resampling,
    aim: Aim,
) -> ClassCalibration:
    """Compute the losses and the threshold of a class.

    Args:
        name: of the class.
        fitted: its map.
        stages: probabilities before, after, and cross-fitted, shape (N,) each.
        labels_N: 0, 1 or NaN.
        resampling: replicates of the patients of the same slices.
        aim: what the threshold reaches.
    """
    is_known_N = ~np.isnan(labels_N)
    labels_N, resampling = labels_N[is_known_N], resampling.of(is_known_N)
    stages = [each_N[is_known_N] for each_N in stages]
    losses: list[float | None] = [None, None, None]
    if labels_N.size:
        losses = [
            float(class_log_loss_K(each_N[:, None], labels_N[:, None])[0])
            for each_N in stages
        ]
    return ClassCalibration(
        name=name,
        temperature=fitted.temperature,
        bias=fitted.bias,
        unfitted=fitted.unfitted,
        slices=len(labels_N),
        positives=int(labels_N.sum()),
        patients=resampling.num_patients,
        positive_patients=resampling.of(labels_N > 0.5).num_patients,
        loss_before=losses[0],
        loss_after=losses[1],
        loss_crossfitted=losses[2],
        threshold=_choose_threshold(stages[1], labels_N, resampling, aim),
        reliability_before=_reliability(stages[0], labels_N),
        reliability_crossfitted=_reliability(stages[2], labels_N),
    )


def _reliability(probs_N: Floats, labels_N: Floats) -> tuple[ReliabilityBin, ...]:
    return tuple(
        ReliabilityBin(
            slices=int(count), probability=float(prob), frequency=float(frequency)
        )
        for count, prob, frequency in zip(
            *calibration_bins(probs_N, labels_N), strict=True
        )
        if count
    )


def _choose_threshold(
    probs_N: Floats, labels_N: Floats, resampling: Resampling, aim: Aim
) -> Threshold | None:
    if not labels_N.size or not has_both(labels_N):
        return None
    threshold = threshold_at(probs_N, labels_N, aim)
    point = count_calls(probs_N, labels_N, threshold)
    assert point.specificity is not None, "the class has negative slices"
    is_positive_N = labels_N > 0.5
    is_right_N = (probs_N >= threshold) == is_positive_N
    shares = [
        mean_interval(
            is_right_N[chosen_N].astype(float),
            np.ones(int(chosen_N.sum())),
            resampling.of(chosen_N),
        )
        for chosen_N in (is_positive_N, ~is_positive_N)
    ]
    return Threshold(
        probability=threshold,
        interval=threshold_interval(probs_N, labels_N, aim, resampling),
        sensitivity=point.sensitivity,
        sensitivity_interval=shares[0],
        specificity=point.specificity,
        specificity_interval=shares[1],
    )
