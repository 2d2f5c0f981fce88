"""The pages of the journal, and what is in the store already, to one finished store.

1. Two slices of one id: with equal checksums the first is kept and the other
   counted as a duplicate; else the other is rejected as ``duplicate-conflict``.
   Slices that are in the store already come first.
2. Labels are joined by slice id, hashed like the slices' own where ids are hashed.
   They go to every slice without labels, be it new or not; a label that contradicts
   the one in the store is an error.
3. `store.json` is written last, the journal is removed after it. A run cut short
   in between finishes in the same bytes.
4. Shards that a finished store names are not touched. New shards without a slice
   that the store lacked are left out.
5. Pages are read as often as need be, rather than kept: in memory are a few thousand
   rows, a digest of each slice id, and the texts that many rows share, once. A store
   that is appended to is in memory as a whole.

Shape letters: R rows that repeat a slice id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from tempfile import TemporaryFile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ichfast.labels import CLASSES, LabelTable
from ichfast.prepare.duplicates import Repeats, find_repeats
from ichfast.prepare.ingested import Intake, read_intake, write_intake
from ichfast.prepare.journal import Journal, Reject
from ichfast.prepare.plan import Unit, entry_at
from ichfast.prepare.rows import SHARED, AllRows, Labelling, SharedTexts, replaced
from ichfast.sources.listing import Entry
from ichfast.store.header import ENTRIES_FILE, StoreHeader, intake_path, read_header
from ichfast.store.shards import Shard
from ichfast.store.store import finish_store
from ichfast.store.tables import ORDER, read_rejected, read_rows
from ichfast.system.external_sort import Runs, Shelf, in_parts, sort_runs
from ichfast.system.files import make_folder

PART_ROWS = 2**15
"""Rows of a row group of the finished table."""


@dataclass(frozen=True, slots=True)
class Base:
    """A finished store that is appended to."""

    header: StoreHeader

    rows: pa.Table
    """One a slice, with the columns of a page and the labels; texts that many rows
    share as dictionaries."""

    rejected: pd.DataFrame
    """As `ichfast.store.tables.read_rejected` gives it."""

    intake: Intake


def read_base(journal: Journal) -> Base:
    """Read the finished store of a journal.

    Raises:
        StoreError: a part of it is missing or damaged.
    """
    header = read_header(journal.store)
    rows = read_rows(journal.store, header)
    names = pa.array([shard.name for shard in header.shards])
    rows = replaced(rows, "shard", names.take(rows["shard"].combine_chunks()))
    for name in SHARED:
        rows = replaced(rows, name, rows[name].dictionary_encode())
    return Base(
        header,
        rows.append_column("entry", pa.array(np.full(len(rows), -1))),
        read_rejected(journal.store, header),
        read_intake(intake_path(journal.store), header.entries_crc32c),
    )


@dataclass(frozen=True, slots=True)
class Merged:
    """The journal as a whole, and what the store held before."""

    rows: AllRows
    """Without duplicates, with the labels that the store had before; unsorted."""

    rejected: pd.DataFrame
    """Columns entry, path, reason, detail; in the order of the listing. Without
    those of the store before."""

    shards: tuple[Shard, ...]
    """Those that the pages name."""

    num_entries: int
    """That were read for this."""

    num_duplicates: int
    """Slices left out because the same one stood before."""

    base: Base | None
    """The store before."""


def merge(
    journal: Journal,
    units: Sequence[Unit],
    base: Base | None,
    name: Callable[[Entry], str],
) -> Merged:
    """Put the pages of `units`, which all have one, together, behind `base`.

    Args:
        journal: the store's.
        units: of the run, in order.
        base: the store before.
        name: what `rejected.csv` calls an entry.
    """
    rejects: list[Reject] = []
    shards: list[Shard] = []
    num_rows = 0 if base is None else len(base.rows)
    for unit in units:
        page = journal.read(unit, ["entry"])
        rejects += page.rejects
        shards += page.shards
        num_rows += len(page.rows)
    before = None if base is None else base.rows
    rows = AllRows(journal, units, before, np.ones(num_rows, dtype=np.bool_))
    repeats = find_repeats(rows)
    conflicts = _conflicts(repeats, units, name)
    rejected = pd.DataFrame(rejects, columns=["entry", "path", "reason", "detail"])
    return Merged(
        rows=replace(rows, is_kept_N=~repeats.is_repeat_N),
        rejected=pd.concat([rejected, conflicts]).sort_values(
            "entry", ignore_index=True
        ),
        shards=tuple(shards),
        num_entries=sum(len(unit.entries) for unit in units),
        num_duplicates=int((~repeats.differs_R).sum()),
        base=base,
    )


def _conflicts(
    repeats: Repeats, units: Sequence[Unit], name: Callable[[Entry], str]
) -> pd.DataFrame:
    """The rejections of files whose slice has the id of another."""

    def name_of(entry: int) -> str:
        return "a slice stored before" if entry < 0 else name(entry_at(units, entry))

    entry_R = repeats.entry_R[repeats.differs_R]
    return pd.DataFrame(
        {
            "entry": entry_R,
            "path": [name_of(entry) for entry in entry_R],
            "reason": "duplicate-conflict",
            "detail": [
                f"same SOPInstanceUID as {name_of(entry)}, other pixels; that one is "
                "kept"
                for entry in repeats.original_entry_R[repeats.differs_R]
            ],
        }
    ).drop_duplicates("entry")


def finish(
    journal: Journal,
    merged: Merged,
    labels: LabelTable | None,
    key: bytes | None,
    plan: Mapping[str, str],
    intake: Intake,
) -> None:
    """Join the labels, write the tables and `store.json`, leave nothing else.

    Args:
        journal: the store's; what it does not need any more is removed.
        merged: what the store holds.
        labels: joined by slice id; slices without one get nulls. They agree with
            those that the store had before.
        key: what the ids of `merged` were hashed with, if they were.
        plan: what the store was made from.
        intake: all entries that the store was made from.
    """
    rejected, counts = merged.rejected, Counter[str]()
    if merged.base is not None:
        rejected = pd.concat([merged.base.rejected, rejected], ignore_index=True)
        counts.update(merged.base.header.counts)
        if labels is None and "labels" in merged.base.header.plan:
            plan = {**plan, "labels": merged.base.header.plan["labels"]}
    labelling = None if labels is None else Labelling.of(labels, key)
    if labelling is not None:
        counts["labels_without_slice"] = len(labelling.slice_ids)
    counts["labelled"] = 0
    shared = SharedTexts.of(merged.rows)
    shards = _used_shards(merged, shared)
    names = [shard.name for shard in shards]
    # The file has no name, so nothing is left of it, however the run ends.
    with TemporaryFile(dir=journal.path) as file:
        schema = pa.schema([f for f in merged.rows.schema() if f.name != "entry"])
        rows = _labelled(merged.rows.tables(schema.names), labelling, counts)
        shelf = Shelf(shared.schema(schema), file)
        runs = sort_runs(map(shared.encode, rows), shelf, ORDER)
        journal.clear_shards(names)
        make_folder(journal.next)
        header = StoreHeader(
            levels=journal.levels,
            shards=shards,
            counts={
                "entries": counts["entries"] + merged.num_entries,
                "slices": len(merged.rows),
                "series": len(shared.texts["series"]),
                "patients": len(shared.texts["patient"]),
                "duplicates": counts["duplicates"] + merged.num_duplicates,
                "labelled": counts["labelled"],
                "labels_without_slice": counts["labels_without_slice"],
            },
            rejected=dict(sorted(Counter(rejected["reason"]).items())),
            keep_ids=key is None,
            plan=plan,
            versions={name: version(name) for name in ("ichfast", "numpy", "pydicom")},
            entries_crc32c=write_intake(journal.next / ENTRIES_FILE, intake),
        )
        finish_store(journal.next, header, _parts(runs, shared, names), rejected)
    journal.publish()


def _used_shards(merged: Merged, shared: SharedTexts) -> tuple[Shard, ...]:
    """The shards of the store to be, by name."""
    used = set(shared.texts["shard"].to_pylist())
    shards = [shard for shard in merged.shards if shard.name in used]
    if merged.base is not None:
        shards += merged.base.header.shards
    return tuple(sorted(shards, key=lambda shard: shard.name))


def _labelled(
    tables: Iterable[pa.Table], labelling: Labelling | None, counts: Counter[str]
) -> Iterator[pa.Table]:
    """The rows with the labels; what the store counts of them, added to `counts`."""
    for table in tables:
        rows, num_named = labelling.add(table) if labelling else (table, 0)
        counts["labels_without_slice"] -= num_named
        counts["labelled"] += len(rows) - rows[CLASSES[0]].null_count
        yield rows


def _parts(runs: Runs, shared: SharedTexts, names: Sequence[str]) -> Iterator[pa.Table]:
    """The rows in the store's order, as they are written."""
    numbers = pc.index_in(shared.texts["shard"], pa.array(names))

    def finished(part: pa.Table) -> pa.Table:
        shard = numbers.take(part["shard"].combine_chunks())
        return replaced(shared.decode(part), "shard", shard)

    # A row group's bytes hang on where its columns are cut: they must be one piece.
    return map(finished, in_parts(runs.rows(), PART_ROWS))
