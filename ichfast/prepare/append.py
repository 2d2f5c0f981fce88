"""What a run of prepare may do to a finished store, and what it adds to it.

1. Without ``--append`` a finished store is left alone, by the command that made it,
   and refused to any other. After an append that is the command which appended,
   with the labels that the store was last given.
2. New is what the store has not taken in (`ichfast.prepare.ingested`). It becomes units
   behind the last one, whatever room that one had left.
3. A store that has lost its `store.json` is neither continued nor begun anew.
4. Labels are new to a store if they are others than those it was last given.
5. Where nothing is new, an append that was cut short is given up: nothing of it stays.

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
from ichfast.prepare.merge import Base, add_labels
from ichfast.prepare.plan import Unit, check_plan, cut_units
from ichfast.sources.listing import Listing
from ichfast.store.header import read_header


def check_finished(
    journal: Journal,
    plan: Mapping[str, str],
    labels_plan: Mapping[str, str],
    *,
    append: bool,
) -> None:
    """Compare a finished store with the command at hand.

    Args:
        journal: the store's.
        plan: the command's, without labels.
        labels_plan: what `label_plan` says of the command's labels.
        append: whether the command appends.

    Raises:
        StoreError: the store was made with other options, from something else (but
            not when appending), or an append to it was cut short.
    """
    store, header = journal.store, read_header(journal.store)
    if append:
        check_plan(store, header.plan, {k: plan[k] for k in ("levels", "ids", "unit")})
        return
    check_plan(store, header.plan, {**plan, **labels_plan})
    if journal.is_begun:
        raise StoreError(
            f"{store} was being appended to when a run was cut short; that command, "
            "with --append, continues; until then the store is as it was"
        )


def give_up(journal: Journal) -> None:
    """Remove what a finished store does not need, such as of an append cut short."""
    # The pages first: one whose shards are gone would pass for done.
    journal.remove()
    header = read_header(journal.store)
    journal.clear_shards({shard.name for shard in header.shards})


def check_unfinished(store: Path) -> None:
    """See that a store without `store.json` never had one, for then it is begun anew.

    Raises:
        StoreError: it had: its shards must not be cleared away.
    """
    table = store / "slices.parquet"
    if os.path.lexists(table):
        raise StoreError(
            f"{store} was finished, for it has {table.name}, but its store.json is "
            "missing or cannot be read; copy that back, or delete the store to start "
            "again"
        )


def new_entries(entries: Listing, base: Base | None, key: bytes | None) -> Listing:
    """What a store has not taken in.

    Args:
        entries: the listing.
        base: the store that is appended to; without one all is new.
        key: of the store's hashed ids, if they are hashed.
    """
    if base is None:
        return entries
    return entries.select(~base.intake.knows(entries, key))


def new_units(entries: Listing, base: Base | None, unit_entries: int) -> list[Unit]:
    """Cut new entries into units, numbered behind those of `base`."""
    first_unit = base.intake.num_units if base else 0
    return cut_units(entries, unit_entries, first_unit=first_unit)


def adds_labels(
    base: Base | None,
    labels: LabelTable | None,
    key: bytes | None,
    labels_plan: Mapping[str, str],
) -> bool:
    """Whether `labels` are new to the store that is appended to, if one is.

    Args:
        base: the store that is appended to, if one is.
        labels: the command's.
        key: of the store's hashed ids, if they are hashed.
        labels_plan: what `label_plan` says of `labels`.

    Raises:
        LabelError: they contradict those it has.
    """
    if base is None or labels is None:
        return False
    add_labels(base.rows, labels, key)
    return base.header.plan.get("labels") != labels_plan["labels"]


def grown_intake(
    entries: Listing, units: Sequence[Unit], base: Base | None, key: bytes | None
) -> Intake:
    """The intake of the store when new `entries`, cut into `units`, are in it."""
    numbers = np.array([unit.number for unit in units], dtype=np.int32)
    lengths = [len(unit.entries) for unit in units]
    intake = Intake.of(entries, np.repeat(numbers, lengths), key)
    return intake if base is None else base.intake + intake
