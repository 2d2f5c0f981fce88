"""Figures of groups of slices, such as those of one manufacturer.

1. Each slice is in one group; a slice whose value is not known is in `UNKNOWN`.
2. Prevalence, figures and intervals are those of the group alone. Intervals come from
   resampled patients, as those of all slices.
3. A group of fewer than `MIN_PATIENTS` patients, or whose labels of any are missing or
   all equal, has counts only, and a reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ichfast.errors import PredictionError, unknown
from ichfast.evaluation.evaluation import LevelScores, check_rows, evaluate
from ichfast.evaluation.levels import split_levels
from ichfast.store.groups import GROUP_COLUMNS, Groups, groups_N
from ichfast.store.header import read_header
from ichfast.store.tables import read_table

MIN_PATIENTS = 10
"""Patients of a group with figures. Those of fewer say more about these patients than
about the group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subgroup:
    """One group at one level."""

    name: str
    count: int
    """Slices, series, studies or patients with a label of any class."""
    patients: int
    positives: int
    """How many of them are positive for any."""
    reason: str
    """Why there are no figures; empty where there are."""
    scores: LevelScores | None
    """None where there are no figures."""


def read_groups(
    table: pd.DataFrame, store: Path, columns: Sequence[str]
) -> dict[str, Groups]:
    """Read the groups of predicted slices from the store that they are in.

    Args:
        table: a predictions table.
        store: the store's folder.
        columns: some of `GROUP_COLUMNS`.

    Returns:
        For each column the group of each row of `table`, as `groups_N` gives it.

    Raises:
        PredictionError: an unknown column, or a slice that is not in the store.
        StoreError: the store cannot be read.
    """
    for column in columns:
        if column not in GROUP_COLUMNS:
            raise PredictionError(unknown("column of --by", column, GROUP_COLUMNS))
    stored = read_table(store, read_header(store))
    num_other = int((~table["slice_id"].isin(stored["slice_id"])).sum())
    if num_other:
        raise PredictionError(
            f"{num_other:,} of {len(table):,} predicted slices are not in {store}, so "
            "their groups are not known; name the store that they are in with --store"
        )
    return groups_of(table, stored, columns)


def groups_of(
    table: pd.DataFrame, stored: pd.DataFrame, columns: Sequence[str]
) -> dict[str, Groups]:
    """The groups of predicted slices.

    Args:
        table: a predictions table.
        stored: table of the store that has all its slices.
        columns: some of `GROUP_COLUMNS`.

    Returns:
        For each column the group of each row of `table`, with its index.
    """
    by_id = stored.set_index("slice_id")
    return {
        column: groups_N(by_id, column).loc[table["slice_id"]].set_axis(table.index)
        for column in columns
    }


def evaluate_subgroups(
    table: pd.DataFrame, groups: Groups, *, level: str, replicates: int
) -> list[Subgroup]:
    """Evaluate each group of slices.

    Args:
        table: a predictions table.
        groups: the group of each row, categorical, with the index of `table`.
        level: one of `evaluation.levels.LEVELS`.
        replicates: bootstrap replicates for the intervals; 0 for no intervals.

    Returns:
        The groups that have labels at that level, in the order of their categories.

    Raises:
        PredictionError: a table that `evaluation.evaluation.evaluate` refuses.
    """
    check_rows(table)
    found = (
        _subgroup(str(name), rows, level, replicates)
        for name, rows in table.groupby(groups, observed=True)
    )
    return [group for group in found if group.count]


def _subgroup(name: str, rows: pd.DataFrame, level: str, replicates: int) -> Subgroup:
    levels = split_levels(rows)
    parts = levels.parts[level]
    is_labelled_N = parts.is_labelled_N
    any_N = parts.labels_NK[is_labelled_N, 0]
    num_patients = len(set(levels.patient_M[parts.row_N[is_labelled_N]]))
    reason = ""
    if num_patients < MIN_PATIENTS:
        reason = f"fewer than {MIN_PATIENTS} patients"
    elif np.isnan(any_N).all():
        reason = "no label of any"
    elif not (any_N == 1).any():
        reason = "no positive"
    elif not (any_N == 0).any():
        reason = "no negative"
    scores = None
    if not reason:
        scores = evaluate(rows, replicates=replicates, level=level).first
    return Subgroup(
        name=name,
        count=len(any_N),
        patients=num_patients,
        positives=int((any_N == 1).sum()),
        reason=reason,
        scores=scores,
    )
