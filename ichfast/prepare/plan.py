"""What a run of prepare is to do: its units of work, and what they are bound to.

A plan is a few texts, mostly digests, that say no path. Where ids are hashed, what is
digested begins with the key, so that nobody else can try out names of files or ids. A
store in the making keeps the plan it was begun with, a finished one keeps it in its
header. So it is neither continued from another listing or with other options, nor
taken for something else.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ichfast.errors import StoreError
from ichfast.labels import LabelTable
from ichfast.prepare.pseudonyms import stored_id
from ichfast.sources.listing import Entry, Listing


@dataclass(frozen=True, slots=True)
class Unit:
    """Consecutive entries of the listing, and what their worker died of."""

    number: int

    first: int
    """Index of its first entry among those of the run."""

    entries: Listing

    banned: Mapping[int, str] = field(default_factory=dict)
    """Reject codes of entries that must not be decoded, by position."""

    deaths: tuple[int, ...] = ()
    """Positions at which a worker died since the last ban; -1: not in a decoder."""


def entry_name(entry: Entry, *, keep_ids: bool, first_unit: int) -> str:
    """What `rejected.csv` calls an entry.

    Args:
        entry: of the listing.
        keep_ids: name it by its key; else by its number in its source, for a file's
            name may be a patient's.
        first_unit: the first that the run makes; not 0 when it appends, whose
            numbers are not those of the runs before.
    """
    if keep_ids:
        return entry.key
    suffix = f", appended from unit {first_unit} on" if first_unit else ""
    return f"entry {entry.number} of source {entry.source}{suffix}"


def entry_at(units: Sequence[Unit], index: int) -> Entry:
    """The entry with an index among those of the run.

    Args:
        units: of the run, in order.
        index: of an entry of theirs.
    """
    unit = units[bisect_right(units, index, key=lambda unit: unit.first) - 1]
    return unit.entries[index - unit.first]


def cut_units(entries: Listing, unit_entries: int, *, first_unit: int) -> list[Unit]:
    """Cut entries into units of work.

    Args:
        entries: those to read.
        unit_entries: how many make a unit; the last may be short.
        first_unit: number of the first unit.
    """
    return [
        Unit(first_unit + number, first, entries[first : first + unit_entries])
        for number, first in enumerate(range(0, len(entries), unit_entries))
    ]


def shard_plan(
    entries: Listing,
    unit_entries: int,
    levels: tuple[int, ...],
    id_key: bytes | None,
) -> dict[str, str]:
    """What decides the shards and the journal."""
    listing = hashlib.sha256(id_key or b"")
    for source, key, size in entries.columns("source", "key", "size"):
        listing.update(f"{source}\t{key}\t{size}\n".encode())
    return {
        "levels": ",".join(map(str, levels)),
        "ids": ids_plan(id_key),
        "unit": str(unit_entries),
        "entries": str(len(entries)),
        "listing": listing.hexdigest(),
    }


def ids_plan(key: bytes | None) -> str:
    """How ids are kept; of a key, enough to know it again."""
    return "kept" if key is None else f"hashed with key {stored_id(key, 'key')}"


def label_plan(labels: LabelTable | None, id_key: bytes | None) -> dict[str, str]:
    """What decides the label columns; they come last, so they may come late."""
    if labels is None:
        return {"labels": "none"}
    digest = hashlib.sha256(id_key or b"")
    digest.update("\n".join(labels.slice_ids).encode())
    digest.update(labels.labels_NK.tobytes())
    return {"labels": digest.hexdigest()}


def check_plan(store: Path, begun: Mapping[str, str], plan: Mapping[str, str]) -> None:
    """Compare the plan that `store` was begun with, and the one at hand.

    Raises:
        StoreError: they differ, in what, and what to do.
    """
    different = [name for name in plan if begun.get(name) != plan[name]]
    if different:
        shown = ", ".join(
            f"{name} ({begun.get(name, 'unknown')[:40]}, now {plan[name][:40]})"
            for name in different
        )
        raise StoreError(
            f"{store} was made from something else: {shown}; run the command it was "
            "made with, add what is new to a finished store with --append, name "
            "another --store, or delete it to start again"
        )
