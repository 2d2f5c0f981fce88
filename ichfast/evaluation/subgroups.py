"""Figures of groups of slices, such as those of one manufacturer.

1. Each slice is in one group; a slice whose value is not known is in `UNKNOWN`.
2. Prevalence, figures and intervals are those of the group alone. Intervals come from
   resampled patients, as those of all slices.
3. A group of fewer than `MIN_PATIENTS` patients, or whose slices are all positive or
   all negative, has counts only, and a reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ichfast.errors import PredictionError, unknown
from ichfast.evaluation.bootstrap import draw_patients
from ichfast.evaluation.evaluation import LevelScores, labelled_rows, score_level
from ichfast.store.groups import GROUP_COLUMNS, Groups, groups_N
from ichfast.store.header import read_header
from ichfast.store.tables import patients_N, read_table

MIN_PATIENTS = 10
"""Patients of a group with figures. Those of fewer say more about these patients than
about the group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subgroup:
    """The labelled slices of one group."""

    name: str
    slices: int
    patients: int
    positives: int
    """Slices that are positive for any."""
    reason: str
    """Why there are no figures; empty where there are."""
    scores: LevelScores | None
    """By slice; None where there are no figures."""


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
    table: pd.DataFrame, groups: Groups, *, replicates: int
) -> list[Subgroup]:
    """Evaluate each group of slices.

    Args:
        table: a predictions table.
        groups: the group of each row, categorical, with the index of `table`.
        replicates: bootstrap replicates for the intervals; 0 for no intervals.

    Returns:
        The groups that have labelled slices, in the order of their categories.

    Raises:
        PredictionError: a table that `evaluation.evaluation.evaluate` refuses.
    """
    labelled = labelled_rows(table)
    labelled = labelled.assign(patient=patients_N(labelled))
    by_group = labelled.groupby(groups.loc[labelled.index], observed=True)
    return [_subgroup(str(name), rows, replicates) for name, rows in by_group]


def _subgroup(name: str, rows: pd.DataFrame, replicates: int) -> Subgroup:
    num_patients = rows["patient"].nunique()
    positives = int(rows["label_any"].sum())
    reason = ""
    if num_patients < MIN_PATIENTS:
        reason = f"fewer than {MIN_PATIENTS} patients"
    elif positives == 0:
        reason = "no positive slice"
    elif positives == len(rows):
        reason = "no negative slice"
    counts_RP = draw_patients(num_patients, replicates=replicates)
    return Subgroup(
        name=name,
        slices=len(rows),
        patients=num_patients,
        positives=positives,
        reason=reason,
        scores=None if reason else score_level(rows, counts_RP),
    )
