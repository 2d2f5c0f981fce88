"""Medians of a few turns, with intervals that assume no distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WANTED_COVERAGE = 0.95
"""Lowest chance that an interval holds the true median; needs 6 turns or more."""

NOISY_SPREAD = 0.25
"""Width of an interval, as a share of its median, above which it is noisy."""


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
        """Whether the interval is wider than `NOISY_SPREAD` of the median."""
        return self.high - self.low > NOISY_SPREAD * self.median


def estimate(values: Sequence[float]) -> Estimate:
    """Compute the median of some values, and an interval without assumptions.

    The interval reaches from the k-th smallest to the k-th largest value, with the
    largest k that `WANTED_COVERAGE` allows, or k = 1.

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
    """Estimate how many times as fast the first is as the second, turn by turn.

    Args:
        ours: Rates of the turns, in order.
        theirs: Rates of the same number of turns.
    """
    return estimate([a / b for a, b in zip(ours, theirs, strict=True)])


def _coverage(count: int, k: int) -> float:
    outside = sum(math.comb(count, below) for below in range(k))
    return max(0.0, 1.0 - 2.0 * outside / 2**count)
