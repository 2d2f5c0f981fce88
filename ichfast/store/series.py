"""Irregularities in the order of a series.

A store sorts the slices of a series by their position along the normal. Gaps, slices at
the same position and instance numbers in another order occur in real data. They are
reported here, not corrected.

Shape letters: Z slices of a series.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

SAME_PLACE_MM = 0.01
"""Positions that differ by less are the same, mm, because headers are rounded."""

UNEVEN_MM = 0.1
"""Spacings that differ by less are equal, mm, because headers are rounded."""

GAP_SPACINGS = 1.5
"""A distance of this many median spacings or more is a gap."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesOrder:
    """The order of the slices of one series along their normal."""

    series: str
    """The series' id in the store."""

    count: int
    """Number of slices."""

    spacing_mm: float
    """Median distance between neighbours at different positions; NaN below two."""

    gaps: int
    """Number of gaps; see `GAP_SPACINGS`."""

    is_uneven: bool
    """Whether distances between neighbours differ, gaps included."""

    repeated_positions: int
    """Number of slices at the position of another, as when a head is scanned twice."""

    is_reversed: bool
    """Whether instance numbers fall where positions rise, as in half the clinics."""

    is_shuffled: bool
    """Whether instance numbers neither rise nor fall with the positions."""

    unknown_positions: int
    """Number of slices without a position. They are last in the series."""

    @property
    def irregularities(self) -> tuple[str, ...]:
        """The names of the irregularities; empty if there are none."""
        found = {
            "gaps": self.gaps > 0,
            "uneven": self.is_uneven,
            "repeated_positions": self.repeated_positions > 0,
            "reversed": self.is_reversed,
            "shuffled": self.is_shuffled,
            "unknown_positions": self.unknown_positions > 0,
        }
        return tuple(name for name, is_so in found.items() if is_so)


def describe_series(table: pd.DataFrame) -> list[SeriesOrder]:
    """Describe the order of each series.

    Args:
        table: a store's table, or its columns patient, study, series, position_mm and
            instance_number; in any order.

    Returns:
        One item per series, sorted by patient, study, series. Slices without a series
        id count as one series of their study.
    """
    groups = table.groupby(["patient", "study", "series"], sort=True)
    return [
        _describe(
            str(key[-1]),
            rows["position_mm"].to_numpy(np.float64),
            rows["instance_number"].to_numpy(np.int64),
        )
        for key, rows in groups
    ]


def _describe(
    series: str,
    position_mm_Z: npt.NDArray[np.float64],
    number_Z: npt.NDArray[np.int64],
) -> SeriesOrder:
    is_known_Z = np.isfinite(position_mm_Z)
    order = np.lexsort((number_Z[is_known_Z], position_mm_Z[is_known_Z]))
    distance_mm = np.diff(position_mm_Z[is_known_Z][order])
    is_step = distance_mm >= SAME_PLACE_MM
    steps_mm = distance_mm[is_step]
    spacing_mm = float(np.median(steps_mm)) if steps_mm.size else np.nan
    rise = _rise(number_Z[is_known_Z][order], is_step)
    return SeriesOrder(
        series=series,
        count=len(position_mm_Z),
        spacing_mm=spacing_mm,
        gaps=int((steps_mm >= GAP_SPACINGS * spacing_mm).sum()),
        is_uneven=bool(steps_mm.size and np.ptp(steps_mm) > UNEVEN_MM),
        repeated_positions=int((~is_step).sum()),
        is_reversed=bool(rise.size and (rise < 0).all()),
        is_shuffled=bool((rise < 0).any() and (rise > 0).any()),
        unknown_positions=int((~is_known_Z).sum()),
    )


def _rise(
    number_Z: npt.NDArray[np.int64], is_step: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """Changes of the instance number per step; empty if a slice has no number."""
    if (number_Z < 0).any():
        return np.empty(0, dtype=np.int64)
    rise: npt.NDArray[np.int64] = np.diff(number_Z)[is_step]
    return rise
