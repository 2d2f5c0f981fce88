"""The plan of a run of prepare: its units of work, and digests of sources and options.

A plan is a few texts, mostly digests, without paths. If ids are hashed, digests are
keyed too, so that nobody without the key can test names of files or ids. An unfinished
store keeps the plan that it was begun with, a finished one has it in its header. So a
store is never continued from another listing or with other options.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ichfast.errors import StoreError
from ichfast.labels import LabelTable
from ichfast.prepare.pseudonyms import stored_id
from ichfast.prepare.selection import Selection
from ichfast.sources.listing import Entry, Listing

NOTHING = "nothing"
"""Text in a plan for no accepted codes, and for no selection. Plans of older stores do
not have it."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Consecutive entries of the listing, and the deaths of workers at them."""

    number: int

    first: int
    """Index of its first entry among all entries of the run."""

    entries: Listing

    banned: Mapping[int, str] = field(default_factory=dict)
    """Reject codes of entries that must not be decoded, by position."""

    deaths: tuple[int, ...] = ()
    """Positions at which a worker died since the last ban; -1 outside a decoder."""


def entry_name(entry: Entry, *, keep_ids: bool, first_unit: int) -> str:
    """The name of an entry in `rejected.csv`.

    Args:
        entry: of the listing.
        keep_ids: take the entry's key. Otherwise its number in its source, because a
            file's name may be a patient's.
        first_unit: number of the run's first unit. Above 0 in an append, whose entries
            are numbered anew.
    """
    if keep_ids:
        return entry.key
    suffix = f", appended from unit {first_unit} on" if first_unit else ""
    return f"entry {entry.number} of source {entry.source}{suffix}"


def entry_at(units: Sequence[Unit], index: int) -> Entry:
    """The entry with an index among all entries of the run.

    Args:
        units: all units of the run, in order.
        index: the entry's index.
    """
    unit = units[bisect_right(units, index, key=lambda unit: unit.first) - 1]
    return unit.entries[index - unit.first]


def cut_units(entries: Listing, unit_entries: int, *, first_unit: int) -> list[Unit]:
    """Cut entries into units of work.

    Args:
        entries: the entries to read.
        unit_entries: entries per unit; the last unit may have fewer.
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
    accept: frozenset[str],
    select: Selection | None,
) -> dict[str, str]:
    """The part of the plan that determines the shards and the journal.

    Args:
        entries: the whole listing.
        unit_entries: entries per unit.
        levels: the store's.
        id_key: key of the hashed ids; None where ids are kept.
        accept: reject codes of images that are stored all the same.
        select: which slices are stored; None: all.
    """
    listing = hashlib.sha256(id_key or b"")
    for source, key, size in entries.columns("source", "key", "size"):
        listing.update(f"{source}\t{key}\t{size}\n".encode())
    return {
        "levels": ",".join(map(str, levels)),
        "ids": ids_plan(id_key),
        "accept": ",".join(sorted(accept)) or NOTHING,
        "select": select.text if select else NOTHING,
        "unit": str(unit_entries),
        "entries": str(len(entries)),
        "listing": listing.hexdigest(),
    }


def packed_plan(*, packed: bool) -> dict[str, str]:
    """The part of the plan that a finished store does not keep.

    So a raw store and its packed copy have the same `StoreHeader.digest`.

    Args:
        packed: whether the store is packed.
    """
    return {"packed": "yes" if packed else "no"}


def accepted_codes(plan: Mapping[str, str]) -> frozenset[str]:
    """The reject codes of images that a store with this plan has all the same."""
    return frozenset(plan.get("accept", NOTHING).split(",")) - {NOTHING}


def planned_selection(plan: Mapping[str, str]) -> Selection | None:
    """Which slices a store with this plan holds; None: all."""
    text = plan.get("select", NOTHING)
    return None if text == NOTHING else Selection(text)


def ids_plan(key: bytes | None) -> str:
    """How ids are stored; for hashed ids, with a digest that identifies the key."""
    return "kept" if key is None else f"hashed with key {stored_id(key, 'key')}"


def label_plan(labels: LabelTable | None, id_key: bytes | None) -> dict[str, str]:
    """The part of the plan that determines the label columns.

    Args:
        labels: of the run; None without labels.
        id_key: key of the hashed ids; None where ids are kept.
    """
    if labels is None:
        return {"labels": "none"}
    digest = hashlib.sha256(id_key or b"")
    # The bytes of complete labels of slices are those of earlier versions.
    digest.update("\n".join(labels.ids).encode())
    digest.update(_label_bytes(labels.labels_NK))
    if labels.level != "slice":
        digest.update(labels.level.encode())
    for name, labels_N in labels.extra.items():
        digest.update(name.encode() + _label_bytes(labels_N))
    return {"labels": digest.hexdigest()}


def _label_bytes(labels: npt.NDArray[np.float32]) -> bytes:
    return np.where(np.isnan(labels), 255, labels).astype(np.uint8).tobytes()


def check_plan(store: Path, begun: Mapping[str, str], plan: Mapping[str, str]) -> None:
    """Compare the plan of a store with that of this run.

    Args:
        store: the store's folder.
        begun: the plan that the store was begun with.
        plan: the plan of this run, or a part of it.

    Raises:
        StoreError: the plans differ.
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
