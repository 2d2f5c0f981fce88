"""Appending to a finished store.

1. Without ``--append``, the command that made a finished store leaves it unchanged, and
   any other command is refused. After an append, that is the command that appended,
   with the labels of its run.
2. Entries that are not in the intake (`ichfast.prepare.ingested`) are new. They become
   new units; the last unit is never filled up.
3. A store that has lost its `store.json` is neither continued nor started again.
4. Labels are new if they differ from those that the store was last given.
5. If nothing is new, an append that was cut short is discarded.

Shape letters: E entries of the listing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ichfast.errors import StoreError
from ichfast.labels import LabelTable
from ichfast.prepare.ingested import Intake
from ichfast.prepare.journal import Journal
from ichfast.prepare.labelling import add_labels, warn_of_strangers
from ichfast.prepare.merge import Base
from ichfast.prepare.own_files import remove_temporaries
from ichfast.prepare.plan import NOTHING, Unit, check_plan, cut_units
from ichfast.prepare.series_choice import SERIES
from ichfast.sources.listing import Listing
from ichfast.store.header import read_header

_KEPT_OPTIONS = ("levels", "ids", "unit", "accept", "select", "series")
"""Parts of the plan that an append shares with its store."""


def check_finished(
    journal: Journal,
    plan: Mapping[str, str],
    table_plan: Mapping[str, str],
    *,
    append: bool,
) -> None:
    """Check that a finished store fits the plan of this run.

    Args:
        journal: the store's.
        plan: the `shard_plan` of this run.
        table_plan: the part of the plan of this run that decides the table.
        append: whether this run appends.

    Raises:
        StoreError: the store has the other form, or was made with other options; or,
            without `append`, from other sources or labels, or an append to it was cut
            short.
    """
    store = journal.store
    header = read_header(store)
    defaults = {"accept": NOTHING, "select": NOTHING, "series": SERIES[0]}
    begun = {**defaults, **header.plan}
    options = {**plan, **table_plan}
    if header.is_packed != journal.packed:
        form, advice, other = (
            ("packed", "add --packed", "a raw copy with `ichfast unpack")
            if header.is_packed
            else ("raw", "leave out --packed", "a packed copy with `ichfast pack")
        )
        raise StoreError(f"{store} is {form}; {advice}, or make {other} {store} NEW`")
    if append:
        check_plan(store, begun, {k: options[k] for k in _KEPT_OPTIONS})
        return
    check_plan(store, begun, options)
    if journal.is_begun:
        raise StoreError(
            f"{store} was being appended to when a run was cut short; that command, "
            "with --append, continues; until then the store is as it was"
        )


def give_up(journal: Journal) -> None:
    """Remove what an append that was cut short has left in a finished store."""
    remove_temporaries(journal.store)
    # Pages first: a page without its shards would count as done.
    journal.remove()
    header = read_header(journal.store)
    journal.clear_shards({shard.name for shard in header.shards})


def check_unfinished(store: Path) -> None:
    """Check that a store without `store.json` was never finished.

    Raises:
        StoreError: it was finished, so its shards must not be removed.
    """
    table = store / "slices.parquet"
    if os.path.lexists(table):
        raise StoreError(
            f"{store} was finished, for it has {table.name}, but its store.json is "
            "missing or cannot be read; copy that back, or delete the store to start "
            "again"
        )


def new_entries(entries: Listing, base: Base | None, key: bytes | None) -> Listing:
    """The entries that are not in a store's intake.

    Args:
        entries: the listing.
        base: the store that is appended to; None for a new store.
        key: key of the hashed ids; None where ids are kept.
    """
    if base is None:
        return entries
    return entries.select(~base.intake.contains(entries, key))


def new_units(entries: Listing, base: Base | None, unit_entries: int) -> list[Unit]:
    """Cut new entries into units, numbered after those of `base`.

    Args:
        entries: the new entries.
        base: the store that is appended to; None for a new store.
        unit_entries: entries per unit.
    """
    first_unit = base.intake.num_units if base else 0
    return cut_units(entries, unit_entries, first_unit=first_unit)


def adds_labels(
    base: Base | None,
    labels: LabelTable | None,
    key: bytes | None,
    labels_plan: Mapping[str, str],
    *,
    relabel: bool,
) -> bool:
    """Whether `labels` are new to the store that is appended to.

    Args:
        base: the store that is appended to; None for a new store, which gives False.
        labels: of this run; None gives False.
        key: key of the hashed ids; None where ids are kept.
        labels_plan: the `label_plan` of `labels`.
        relabel: whether labels of the store that differ are replaced.

    Raises:
        LabelError: `labels` contradict the store's, and `relabel` is false; or labels
            of slices, series and studies contradict each other.
    """
    if base is None or labels is None:
        return False
    add_labels(base.rows, labels, key, relabel=relabel)
    return base.header.plan.get("labels") != labels_plan["labels"]


def warn_again(base: Base | None, labels: LabelTable | None, key: bytes | None) -> None:
    """Warn if the labels of this run, which are not new, are of nothing in the store.

    Args:
        base: the store that is appended to; None without an append.
        labels: of this run; None without labels.
        key: key of the hashed ids; None where ids are kept.
    """
    if base is None or labels is None or not len(labels.ids):
        return
    if base.header.counts["labels_without_slice"] == len(labels.ids):
        warn_of_strangers(base.rows, labels, key)


def grown_intake(
    entries: Listing, units: Sequence[Unit], base: Base | None, key: bytes | None
) -> Intake:
    """The intake of the store after this run.

    Args:
        entries: the new entries.
        units: the new entries as units.
        base: the store that is appended to; None for a new store.
        key: key of the hashed ids; None where ids are kept.
    """
    numbers = np.array([unit.number for unit in units], dtype=np.int32)
    lengths = [len(unit.entries) for unit in units]
    intake = Intake.of(entries, np.repeat(numbers, lengths), key)
    return intake if base is None else base.intake + intake
