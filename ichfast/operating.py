"""The operating point of a class: the threshold that finds the wanted share.

Shape letters: N slices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ichfast.errors import PredictionError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatingPoint:
    """Slices of one class, called positive from a threshold on."""

    threshold: float
    """A slice is called positive if its probability is at least this."""
    found: int
    """True positives."""
    missed: int
    """False negatives."""
    false_alarms: int
    """False positives."""
    left_alone: int
    """True negatives."""

    @property
    def sensitivity(self) -> float:
        """Share of the positive slices that is found."""
        return self.found / (self.found + self.missed)

    @property
    def specificity(self) -> float | None:
        """Share of the negative slices that is left alone; None without any."""
        return _share(self.left_alone, self.false_alarms)

    @property
    def precision(self) -> float | None:
        """Share of the calls that is right; the positive predictive value."""
        return _share(self.found, self.false_alarms)

    @property
    def negative_predictive_value(self) -> float | None:
        """Share of the slices not called that is negative; None without any."""
        return _share(self.left_alone, self.missed)


def operating_point(
    probs_N: Floats, labels_N: Floats, *, sensitivity: float
) -> OperatingPoint | None:
    """Choose the highest threshold whose sensitivity is at least that wanted.

    Args:
        probs_N: probabilities of one class.
        labels_N: 0 or 1.
        sensitivity: in (0, 1].

    Returns:
        None where no slice is positive.

    Raises:
        PredictionError: a sensitivity outside (0, 1].
    """
    if not 0.0 < sensitivity <= 1.0:
        raise PredictionError(
            f"a sensitivity is above 0 and at most 1, got {sensitivity:g}"
        )
    is_positive_N = labels_N > 0.5
    rising = np.sort(probs_N[is_positive_N])
    if not rising.size:
        return None
    wanted = math.ceil(sensitivity * rising.size - 1e-9)  # counts, so 0.9 is 0.9
    threshold = float(rising[rising.size - wanted])
    is_called_N = probs_N >= threshold
    return OperatingPoint(
        threshold=threshold,
        found=int((is_called_N & is_positive_N).sum()),
        missed=int((~is_called_N & is_positive_N).sum()),
        false_alarms=int((is_called_N & ~is_positive_N).sum()),
        left_alone=int((~is_called_N & ~is_positive_N).sum()),
    )


def _share(part: int, rest: int) -> float | None:
    return part / (part + rest) if part + rest else None
