"""Choosing one series of each study.

1. A study's series is the first by this order, where unknown comes after what is known
   to be good and before what is known to be bad:

   - a series that the store before has
   - original, derived, unknown, and then accepted images of other kinds
   - no contrast, unknown, contrast
   - a soft kernel, unknown, a bone kernel
   - thickness from 2.5 to 5 mm, others, unknown; of these the nearest to 5 mm
   - most slices
   - the lowest series number

2. A series is as good as its worst slice; its thickness is the median.
3. Two series that are first together are an error, for any choice would be arbitrary.
4. The choice is made when all slices are known, so it does not depend on the order of
   files or on the number of workers. The pixels of other series stay in the shards that
   they share with chosen ones; `ichfast.prepare.selection` keeps them out.
5. An append does not change a choice: a later series of a study is left out.

Shape letters: N rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from ichfast.errors import StoreError

SERIES = ("all", "one-per-study")
"""Which series of a study a store holds."""

_UNKNOWN_RANK = 1.5

_RANKS = {
    "image_type": {"original": 0, "derived": 1, "processed": 2, "localizer": 3},
    "contrast": {"no": 0, "yes": 2},
    "kernel": {"soft": 0, "bone": 2},
}
"""Columns that decide first, with the rank of each value; the lowest is chosen."""

_BEST_MM = (2.5, 5.0)
"""The range of the best thickness; its end is the very best."""

_STUDY = ["patient", "study"]
_KEYS = [*_STUDY, "series"]
_ORDER = ["is_new", *_RANKS, "is_unusual", "distance_mm", "num_missing", "number"]


def chosen_rows_N(rows: pa.Table) -> npt.NDArray[np.bool_]:
    """Which rows belong to the series that is chosen for their study, shape (N,).

    Args:
        rows: of the table with `entry`, which is -1 for rows of the store before.

    Raises:
        StoreError: two series of a study are equally good.
    """
    names = [*_KEYS, *_RANKS, "thickness_mm", "series_number", "entry"]
    frame = rows.select(names).to_pandas()
    for name, ranks in _RANKS.items():
        frame[name] = frame[name].astype(object).map(ranks).fillna(_UNKNOWN_RANK)
    series = _describe(frame.astype(dict.fromkeys(_KEYS, object)))
    by_study = series.sort_values([*_STUDY, *_ORDER, "series"]).groupby(_STUDY)
    first, second = by_study.nth(0).set_index(_STUDY), by_study.nth(1).set_index(_STUDY)
    _check_ties(first, second)
    index = pd.MultiIndex.from_frame(frame[_KEYS].astype(object))
    chosen = pd.MultiIndex.from_frame(first.reset_index()[_KEYS])
    is_chosen_N: npt.NDArray[np.bool_] = index.isin(chosen)
    return is_chosen_N


def _describe(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per series, with the columns of `_ORDER` and the number of slices."""
    groups = frame.groupby(_KEYS, sort=False)
    series = groups[list(_RANKS)].max()
    series["is_new"] = groups["entry"].min() >= 0
    thickness_mm = groups["thickness_mm"].median()
    series["is_unusual"] = ~thickness_mm.between(*_BEST_MM)
    series["distance_mm"] = (thickness_mm - _BEST_MM[1]).abs().fillna(np.inf)
    series["num_slices"] = groups.size()
    series["num_missing"] = -series["num_slices"]
    series["number"] = groups["series_number"].min().fillna(np.inf)
    return series.reset_index()


def _check_ties(first: pd.DataFrame, second: pd.DataFrame) -> None:
    other = first.loc[second.index]
    is_tie = (other[_ORDER] == second[_ORDER]).all(axis=1)
    if not is_tie.any():
        return
    at = is_tie.idxmax()
    named = " and ".join(_name(table.loc[at]) for table in (first, second))
    raise StoreError(
        f"--series {SERIES[1]} cannot choose for {is_tie.sum():,} of {len(first):,} "
        f"studies, first {at[1]}: {named} are equally good; leave one out with "
        f"--select, or give --series {SERIES[0]}, after which nothing is decoded again"
    )


def _name(series: pd.Series[Any]) -> str:
    number = series["number"]
    shown = "without a number" if number == np.inf else f"{number:.0f}"
    return f"series {shown} ({series['series']}, {series['num_slices']:,} slices)"
