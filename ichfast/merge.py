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
5. Rows stay in columns, and texts that many rows share stand once, so that a
   competition's table is merged in as little memory as it will be read in.

Shape letters: N slices, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ichfast.errors import LabelError
from ichfast.files import make_folder
from ichfast.intake import Intake, read_intake, write_intake
from ichfast.journal import Journal, Reject
from ichfast.labels import CLASSES, LabelTable
from ichfast.listing import Entry
from ichfast.manifest import ENTRIES_FILE, StoreHeader, intake_path, read_header
from ichfast.plan import Unit, entry_at
from ichfast.pseudonyms import stored_id
from ichfast.shards import Shard
from ichfast.slicetable import ORDER, read_rejected, read_rows
from ichfast.store import finish_store

PART_ROWS = 2**15
"""Rows of the finished table that are put into order at a time."""

_SHARED = ("patient", "study", "series", "shard", "transfer_syntax_uid", "quirks")
"""Columns whose texts many rows share."""


@dataclass(frozen=True, slots=True)
class Base:
    """A finished store that is appended to."""

    header: StoreHeader

    rows: pa.Table
    """One a slice, with the columns of a page and the labels."""

    rejected: pd.DataFrame
    """As `ichfast.slicetable.read_rejected` gives it."""

    intake: Intake


def read_base(journal: Journal) -> Base:
    """Read the finished store of a journal.

    Raises:
        StoreError: a part of it is missing or damaged.
    """
    header = read_header(journal.store)
    rows = read_rows(journal.store, header)
    names = pa.array([shard.name for shard in header.shards])
    rows = _replaced(rows, "shard", names.take(rows["shard"].combine_chunks()))
    entry = pa.array(np.full(len(rows), -1))
    return Base(
        header,
        _shared(rows.append_column("entry", entry)),
        read_rejected(journal.store, header),
        read_intake(intake_path(journal.store), header.entries_crc32c),
    )


@dataclass(frozen=True, slots=True)
class Merged:
    """The journal as a whole, and what the store held before."""

    rows: pa.Table
    """Without duplicates, with the columns of a page and the labels that the store
    had before; unsorted."""

    rejected: pd.DataFrame
    """Columns entry, path, reason, detail; in the order of the listing. Without
    those of the store before."""

    shards: tuple[Shard, ...]
    """By name."""

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
    rows, rejects, shards = _read_pages(journal, units, base)
    rows, conflicts, num_duplicates = _without_repeats(rows, units, name)
    rejected = pd.DataFrame(rejects, columns=["entry", "path", "reason", "detail"])
    used = set(rows["shard"].unique().to_pylist())
    shards = [shard for shard in shards if shard.name in used]
    if base is not None:
        shards += base.header.shards
    return Merged(
        rows=rows,
        rejected=pd.concat([rejected, conflicts]).sort_values(
            "entry", ignore_index=True
        ),
        shards=tuple(sorted(shards, key=lambda shard: shard.name)),
        num_entries=sum(len(unit.entries) for unit in units),
        num_duplicates=num_duplicates,
        base=base,
    )


def _read_pages(
    journal: Journal, units: Sequence[Unit], base: Base | None
) -> tuple[pa.Table, list[Reject], list[Shard]]:
    """All rows as one table, labels null where there were none; rejects and shards."""
    schema = journal.schema
    for name in CLASSES:
        schema = schema.append(pa.field(name, pa.int8()))
    tables = [_shared(schema.empty_table()), *([base.rows] if base else [])]
    rejects: list[Reject] = []
    shards: list[Shard] = []
    for unit in units:
        page = journal.read(unit)
        tables.append(_shared(page.rows))
        rejects += page.rejects
        shards += page.shards
    rows = pa.concat_tables(tables, promote_options="default").select(schema.names)
    return rows.unify_dictionaries(), rejects, shards


def _shared(rows: pa.Table) -> pa.Table:
    """The same rows; texts that many of them share stand once."""
    for name in _SHARED:
        rows = _replaced(rows, name, rows[name].dictionary_encode())
    return rows


def _replaced(rows: pa.Table, name: str, values: Any) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index(name), name, values)


def _without_repeats(
    rows: pa.Table, units: Sequence[Unit], name: Callable[[Entry], str]
) -> tuple[pa.Table, pd.DataFrame, int]:
    """First row of each slice id; the other files' rejections; equal rows dropped."""
    # Codes count up in the order in which ids appear.
    code_N = _codes(rows["slice_id"].dictionary_encode())
    _, first_of = np.unique(code_N, return_index=True)
    original_N = first_of[code_N]
    repeat_R = np.flatnonzero(original_N != np.arange(len(rows)))
    original_R = original_N[repeat_R]
    differs_R = np.zeros(len(repeat_R), dtype=np.bool_)
    for column in ("rows", "columns", "crc32c"):
        value_N = rows[column].to_numpy()
        differs_R |= value_N[repeat_R] != value_N[original_R]
    entry_N = rows["entry"].to_numpy()

    def name_of(entry: int) -> str:
        return "a slice stored before" if entry < 0 else name(entry_at(units, entry))

    conflicts = pd.DataFrame(
        {
            "entry": entry_N[repeat_R[differs_R]],
            "path": [name_of(entry) for entry in entry_N[repeat_R[differs_R]]],
            "reason": "duplicate-conflict",
            "detail": [
                f"same SOPInstanceUID as {name_of(entry)}, other pixels; that one is "
                "kept"
                for entry in entry_N[original_R[differs_R]]
            ],
        }
    ).drop_duplicates("entry")
    if len(repeat_R):
        rows = rows.take(pa.array(first_of))
    return rows, conflicts, int((~differs_R).sum())


def _sorted(rows: pa.Table) -> Iterator[pa.Table]:
    """The rows in the store's order, in parts, so that they are not there twice."""
    keys = {
        name: _ranks(rows[name]) if name in _SHARED else rows[name] for name in ORDER
    }
    order = pc.sort_indices(
        pa.table(keys), sort_keys=[(name, "ascending") for name in ORDER]
    )
    for first in range(0, len(order), PART_ROWS):
        yield rows.take(order[first : first + PART_ROWS])


def _ranks(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Numbers that sort as a column of shared texts does."""
    texts = column.combine_chunks().dictionary
    rank_of = np.empty(len(texts), dtype=np.int64)
    rank_of[pc.sort_indices(texts).to_numpy()] = np.arange(len(texts))
    return rank_of[_codes(column)]


def _codes(column: pa.ChunkedArray) -> npt.NDArray[np.int32]:
    codes: npt.NDArray[np.int32] = column.combine_chunks().indices.to_numpy()
    return codes


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
        labels: joined by slice id; slices without one get nulls.
        key: what the ids of `merged` were hashed with, if they were.
        plan: what the store was made from.
        intake: all entries that the store was made from.

    Raises:
        LabelError: `labels` contradict those that the store had before.
    """
    names = [shard.name for shard in merged.shards]
    rows = merged.rows
    rejected, counts = merged.rejected, Counter[str]()
    if merged.base is not None:
        rejected = pd.concat([merged.base.rejected, rejected], ignore_index=True)
        counts.update(merged.base.header.counts)
        if labels is None and "labels" in merged.base.header.plan:
            plan = {**plan, "labels": merged.base.header.plan["labels"]}
    if labels is not None:
        rows, num_named = add_labels(rows, labels, key)
        counts["labels_without_slice"] = len(labels.slice_ids) - num_named
    for level in journal.levels:
        for file in (journal.store / f"level-{level}").iterdir():
            if file.name not in names:
                # Workers may outlive a killed parent by a moment, and rename it.
                file.unlink(missing_ok=True)
    make_folder(journal.next)
    header = StoreHeader(
        levels=journal.levels,
        shards=merged.shards,
        counts={
            "entries": counts["entries"] + merged.num_entries,
            "slices": len(rows),
            "series": len(rows["series"].unique()),
            "patients": len(rows["patient"].unique()),
            "duplicates": counts["duplicates"] + merged.num_duplicates,
            "labelled": len(rows) - rows[CLASSES[0]].null_count,
            "labels_without_slice": counts["labels_without_slice"],
        },
        rejected=dict(sorted(Counter(rejected["reason"]).items())),
        keep_ids=key is None,
        plan=plan,
        versions={name: version(name) for name in ("ichfast", "numpy", "pydicom")},
        entries_crc32c=write_intake(journal.next / ENTRIES_FILE, intake),
    )
    number_of = pc.index_in(rows["shard"].combine_chunks().dictionary, pa.array(names))
    shard = number_of.take(rows["shard"].combine_chunks().indices)
    rows = _replaced(rows, "shard", shard)
    finish_store(journal.next, header, _sorted(rows), rejected)
    journal.publish()


def add_labels(
    rows: pa.Table, labels: LabelTable, key: bytes | None
) -> tuple[pa.Table, int]:
    """Label those rows that have no labels.

    Args:
        rows: slice_id and six label columns, which may be null.
        labels: joined by slice id.
        key: what the slice ids of `rows` were hashed with, if they were.

    Returns:
        The rows, and of how many `labels` speaks.

    Raises:
        LabelError: it says something else of a row that has labels.
    """
    label_ids = pa.array([stored_id(key, slice_id) for slice_id in labels.slice_ids])
    found = pc.index_in(rows["slice_id"], label_ids).combine_chunks()
    is_named_N = found.is_valid().to_numpy(zero_copy_only=False)
    found_N = found.fill_null(0).to_numpy()
    old_NK = np.column_stack([rows[name].to_numpy() for name in CLASSES])
    new_NK = np.where(is_named_N[:, np.newaxis], labels.labels_NK[found_N], old_NK)
    was_labelled_N = ~np.isnan(old_NK[:, 0])
    differs_N = was_labelled_N & (new_NK != old_NK).any(axis=1)
    if differs_N.any():
        first = rows["slice_id"][int(differs_N.argmax())]
        raise LabelError(
            f"the labels contradict those in the store for {differs_N.sum():,} "
            f"slice(s), first {first}; correct the csv, or prepare a new store"
        )
    is_null_N = np.isnan(new_NK[:, 0])
    value_NK = np.nan_to_num(new_NK).astype(np.int8)
    for k, name in enumerate(CLASSES):
        rows = _replaced(rows, name, pa.array(value_NK[:, k], mask=is_null_N))
    return rows, int(is_named_N.sum())
