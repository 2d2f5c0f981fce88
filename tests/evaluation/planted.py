"""Slices of patients whose true logits are known, in six classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ichfast.evaluation.calibration import Calibration, fit_calibration
from ichfast.evaluation.curves import Aim
from ichfast.evaluation.logits import sigmoid
from ichfast.labels import CLASSES

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Planted:
    """Logits, the labels drawn from them, and the patient of each slice."""

    logits_NK: Floats
    labels_NK: Floats
    patient_N: npt.NDArray[np.intp]


def plant(num_patients: int, *, slices_each: int = 32, seed: int = 0) -> Planted:
    """Draw patients of different severity; about one slice in five is positive."""
    rng = np.random.default_rng(seed)
    shape = num_patients * slices_each, len(CLASSES)
    severity_PK = rng.normal(-2.0, 1.0, (num_patients, len(CLASSES)))
    patient_N = np.repeat(np.arange(num_patients), slices_each)
    logits_NK = severity_PK[patient_N] + rng.normal(0.0, 1.5, shape)
    labels_NK = (rng.random(shape) < sigmoid(logits_NK)).astype(np.float64)
    return Planted(logits_NK, labels_NK, patient_N)


def calibration_of(
    planted: Planted, *, aim: Aim | None = None, factor: float = 1.0, shift: float = 0.0
) -> Calibration:
    """Calibrate the planted logits, or factor x logits + shift."""
    return fit_calibration(
        sigmoid(factor * planted.logits_NK + shift),
        planted.labels_NK,
        planted.patient_N,
        store_digest="0" * 64,
        aim=aim or Aim(),
    )
