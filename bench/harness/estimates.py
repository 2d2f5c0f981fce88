"""Medians of a few turns, and intervals around them that assume nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WANTED_COVERAGE = 0.95
"""Least chance that an interval holds the true median; 6 turns or more reach it."""

NOISY_SPREAD = 0.25
"""Width of an interval, as a share of its median, from which on it says little."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A median and the interval around it."""

    median: float
    low: float
    high: float
    coverage: float
    """Chance that the interval holds the true median."""

    @property
    def is_noisy(self) -> bool:
        """Whether the interval is too wide to say much."""
        return self.high - self.low > NOISY_SPREAD * self.median


def estimate(values: Sequence[float]) -> Estimate:
    """The median of some values and an interval that needs no assumption.

    The interval reaches from the k-th smallest to the k-th largest value, with the
    largest k that `WANTED_COVERAGE` allows, or 1.

    Source:
        Order statistics: the number of values below the true median is binomial
        with p = 1/2 (Conover, Practical Nonparametric Statistics, 3.2).
    """
    ordered = sorted(values)
    count = len(ordered)
    if count == 0:
        raise ValueError("the median of no values")
    k = 1
    while 2 * (k + 1) <= count and _coverage(count, k + 1) >= WANTED_COVERAGE:
        k += 1
    middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    return Estimate(
        median=middle,
        low=ordered[k - 1],
        high=ordered[count - k],
        coverage=_coverage(count, k),
    )


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Ratios turn by turn: how many times as fast the first is as the second."""
    return estimate([a / b for a, b in zip(ours, theirs, strict=True)])


def _coverage(count: int, k: int) -> float:
    outside = sum(math.comb(count, below) for below in range(k))
    return max(0.0, 1.0 - 2.0 * outside / 2**count)
