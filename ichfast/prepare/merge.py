"""The pages of the journal, and the rows of the store before, to one finished store.

1. Of the slices with one id the first is kept; those of the store before come first.
   One with the same size and checksum is counted as a duplicate, any other is
   rejected as ``duplicate-conflict``.
2. Labels are joined to all rows, new and old (`ichfast.prepare.labelling`).
3. `store.json` is written last, and the journal is removed after it. A run that is cut
   short in between finishes with the same bytes.
4. Shards that a finished store names are not touched. A new shard is removed if all
   its slices are duplicates.
5. All rows are in memory at once; opening the finished store takes more.

Shape letters: N rows, R rows that repeat a slice id, L labelled slices, K classes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ichfast.labels import CLASSES, LabelTable
from ichfast.prepare.ingested import Intake, read_intake, write_intake
from ichfast.prepare.journal import Journal, Reject
from ichfast.prepare.labelling import (
    add_labels,
    count_labels,
    count_values,
    spread_labels,
    warn_of_strangers,
)
from ichfast.prepare.plan import Unit, entry_at
from ichfast.prepare.series_choice import SERIES, chosen_rows_N
from ichfast.sources.listing import Entry
from ichfast.store.header import (
    ENTRIES_FILE,
    PACKED_VERSION,
    RAW_VERSION,
    StoreHeader,
    intake_path,
    read_header,
)
from ichfast.store.shards import Shard
from ichfast.store.store import finish_store
from ichfast.store.tables import (
    ACQUISITION_COLUMNS,
    ORDER,
    extra_columns,
    read_rejected,
    read_rows,
    with_added_columns,
)
from ichfast.system.files import make_folder

log = logging.getLogger(__name__)

PART_ROWS = 2**15
"""Rows in a row group of `slices.parquet`. It decides the file's bytes."""

_SHARED = (
    *("patient", "study", "series", "shard", "transfer_syntax_uid", "quirks"),
    *(name for name, kind in ACQUISITION_COLUMNS.items() if kind == pa.string()),
)
"""Text columns in which many rows have the same value; dictionaries while merged."""

_SAME = ("rows", "columns", "crc32c")
"""Columns in which two equal slices agree."""


@dataclass(frozen=True, slots=True)
class Base:
    """A finished store that is appended to."""

    header: StoreHeader

    rows: pa.Table
    """One row per slice: the columns of a page, with `entry` -1, and the labels."""

    rejected: pd.DataFrame
    """Columns path, reason, detail."""

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
    rows = rows.append_column("entry", pa.array(np.full(len(rows), -1)))
    return Base(
        header,
        _with_dictionaries(rows),
        read_rejected(journal.store, header),
        read_intake(intake_path(journal.store), header.entries_crc32c),
    )


@dataclass(frozen=True, slots=True)
class Merged:
    """The rows of a store that is not written yet."""

    rows: pa.Table
    """The columns of a page and the labels that the store had before; unsorted,
    without repeats. Columns of `_SHARED` are dictionaries."""

    rejected: pd.DataFrame
    """New rejections. Columns entry, path, reason, detail; sorted by entry."""

    shards: tuple[Shard, ...]
    """The shards of all pages."""

    num_entries: int
    """Entries of all units."""

    num_duplicates: int
    """Rows left out because an equal slice came first."""

    base: Base | None
    """The store before."""


def merge(
    journal: Journal,
    units: Sequence[Unit],
    base: Base | None,
    name: Callable[[Entry], str],
) -> Merged:
    """Put the rows of all pages behind those of `base`, and drop repeats.

    Args:
        journal: the store's.
        units: all units of the run, in order; each has a page.
        base: the store that is appended to; None for a new store.
        name: gives the name of an entry in `rejected.csv`.

    Raises:
        StoreError: a page is damaged.
    """
    rejects: list[Reject] = []
    shards: list[Shard] = []
    tables = [] if base is None else [base.rows]
    for unit in units:
        page = journal.read(unit)
        rejects += page.rejects
        shards += page.shards
        # A page of an earlier version lacks columns.
        rows = _with_dictionaries(with_added_columns(page.rows))
        for column in (*CLASSES, *extra_columns(tables[0] if tables else rows)):
            rows = rows.append_column(column, pa.nulls(len(rows), pa.int8()))
        tables.append(rows.select(tables[0].column_names) if tables else rows)
    rows = _concatenated(tables)
    repeats = find_repeats(rows)
    rejected = pd.DataFrame(rejects, columns=["entry", "path", "reason", "detail"])
    conflicts = _conflicts(repeats, units, name)
    if repeats.is_repeat_N.any():
        rows = rows.filter(~repeats.is_repeat_N)
        pa.default_memory_pool().release_unused()
    return Merged(
        rows=rows,
        rejected=pd.concat([rejected, conflicts]).sort_values(
            "entry", ignore_index=True
        ),
        shards=tuple(shards),
        num_entries=sum(len(unit.entries) for unit in units),
        num_duplicates=int((~repeats.differs_R).sum()),
        base=base,
    )


def keep_series(
    merged: Merged, series: str, units: Sequence[Unit], name: Callable[[Entry], str]
) -> Merged:
    """Reject the slices of series that are not chosen.

    Args:
        merged: what the store would hold.
        series: one of `SERIES`, which series of a study are kept.
        units: all units of the run, in order.
        name: gives the name of an entry in `rejected.csv`.

    Raises:
        StoreError: two series of a study are equally good.
    """
    if series == SERIES[0] or not len(merged.rows):
        return merged
    is_chosen_N = chosen_rows_N(merged.rows)
    left_out = merged.rows["entry"].filter(pa.array(~is_chosen_N))
    entries = sorted(set(left_out.to_pylist()))
    rejected = pd.DataFrame(
        {
            "entry": np.array(entries, np.int64),
            "path": [name(entry_at(units, entry)) for entry in entries],
            "reason": "not-selected",
            "detail": "another series of its study is stored",
        }
    )
    return replace(
        merged,
        rows=merged.rows.filter(is_chosen_N),
        rejected=pd.concat([merged.rejected, rejected]).sort_values(
            "entry", ignore_index=True
        ),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeats:
    """Rows whose slice id is also in an earlier row."""

    is_repeat_N: npt.NDArray[np.bool_]
    """Shape (N,): which rows repeat an id."""

    entry_R: npt.NDArray[np.int64]
    """Shape (R,): the entry of each repeat, in the order of rows."""

    original_entry_R: npt.NDArray[np.int64]
    """Shape (R,): the entry of the first row with the same slice id."""

    differs_R: npt.NDArray[np.bool_]
    """Shape (R,): whether the slice is not equal to the first one."""


def find_repeats(rows: pa.Table) -> Repeats:
    """Find the rows whose slice id is also in an earlier row.

    Args:
        rows: columns slice_id, entry, rows, columns and crc32c.
    """
    # Codes count up in the order in which ids appear.
    ids = rows["slice_id"].combine_chunks().dictionary_encode()
    code_N = ids.indices.to_numpy()
    _, first_of = np.unique(code_N, return_index=True)
    original_N = first_of[code_N]
    is_repeat_N = original_N != np.arange(len(rows))
    original_R = original_N[is_repeat_N]
    differs_R = np.zeros(len(original_R), dtype=np.bool_)
    for column in _SAME:
        value_N = rows[column].to_numpy()
        differs_R |= value_N[is_repeat_N] != value_N[original_R]
    entry_N = rows["entry"].to_numpy()
    return Repeats(
        is_repeat_N=is_repeat_N,
        entry_R=entry_N[is_repeat_N],
        original_entry_R=entry_N[original_R],
        differs_R=differs_R,
    )


def _conflicts(
    repeats: Repeats, units: Sequence[Unit], name: Callable[[Entry], str]
) -> pd.DataFrame:
    """The rejections of files with a slice that has another one's id."""

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
    *,
    relabel: bool = False,
) -> int:
    """Join the labels, write the tables and `store.json`, and remove the journal.

    Args:
        journal: the store's.
        merged: what the store will hold.
        labels: of any level; None adds none.
        key: of the store's hashed ids; None where ids are kept.
        plan: what the store was made from.
        intake: all entries that the store was made from.
        relabel: whether labels that the store had before are replaced.

    Returns:
        The number of slices with a label that was replaced.

    Raises:
        LabelError: `labels` contradict those that the store had before, and `relabel`
            is false; or labels of slices, series and studies contradict each other.
    """
    rejected, counts = merged.rejected, Counter[str]()
    lineage: tuple[str, ...] = ()
    if merged.base is not None:
        lineage = (*merged.base.header.lineage, merged.base.header.digest)
        rejected = pd.concat([merged.base.rejected, rejected], ignore_index=True)
        counts.update(merged.base.header.counts)
        if labels is None and "labels" in merged.base.header.plan:
            plan = {**plan, "labels": merged.base.header.plan["labels"]}
    rows, num_changed = spread_labels(merged.rows), 0
    if labels is not None:
        labelled = add_labels(rows, labels, key, relabel=relabel)
        rows, num_changed = labelled.rows, labelled.num_changed
        counts["labels_without_slice"] = len(labels.ids) - labelled.num_found
        if len(labels.ids) and not labelled.num_found:
            warn_of_strangers(rows, labels, key)
        del labelled
    known, positives = count_values(rows)
    _warn_of_placeholders(rows)
    shards = _used_shards(merged)
    names = [shard.name for shard in shards]
    journal.clear_shards(names)
    make_folder(journal.next)
    header = StoreHeader(
        levels=journal.levels,
        shards=shards,
        counts={
            "entries": counts["entries"] + merged.num_entries,
            "slices": len(rows),
            "series": len(rows["series"].unique()),
            "patients": _count_patients(rows),
            "duplicates": counts["duplicates"] + merged.num_duplicates,
            **count_labels(rows),
            "labels_without_slice": counts["labels_without_slice"],
        },
        rejected=dict(sorted(Counter(rejected["reason"]).items())),
        known=known,
        positives=positives,
        keep_ids=key is None,
        plan=plan,
        versions={name: version(name) for name in ("ichfast", "numpy", "pydicom")},
        lineage=lineage,
        entries_crc32c=write_intake(journal.next / ENTRIES_FILE, intake),
        format_version=PACKED_VERSION if journal.packed else RAW_VERSION,
    )
    finish_store(journal.next, header, _sorted_parts(rows, names), rejected)
    journal.publish()
    return num_changed


def _warn_of_placeholders(rows: pa.Table) -> None:
    """Warn of slices whose PatientID is a placeholder."""
    num_slices = sum(
        count["counts"]
        for count in rows["quirks"].value_counts().to_pylist()
        if "placeholder_patient" in count["values"].split(";")
    )
    if num_slices:
        log.warning(
            "%s slices have a placeholder as PatientID, such as ANONYMOUS: their study "
            "counts as the patient, also if several studies are of one (docs/leaks.md)",
            f"{num_slices:,}",
        )


def _count_patients(rows: pa.Table) -> int:
    """Count the patients, and the studies without one."""
    is_known = pc.not_equal(rows["patient"].cast(pa.string()), "")
    patients = rows["patient"].filter(is_known).unique()
    return len(patients) + len(rows["study"].filter(pc.invert(is_known)).unique())


def _used_shards(merged: Merged) -> tuple[Shard, ...]:
    """The shards of the finished store, by name."""
    used = set(merged.rows["shard"].unique().to_pylist())
    shards = [shard for shard in merged.shards if shard.name in used]
    if merged.base is not None:
        shards += merged.base.header.shards
    return tuple(sorted(shards, key=lambda shard: shard.name))


def _sorted_parts(rows: pa.Table, shard_names: Sequence[str]) -> Iterator[pa.Table]:
    """The rows by `ORDER` in parts of `PART_ROWS`, shards as numbers."""
    keys = rows.select(ORDER)
    for name in _SHARED:
        if name in ORDER:
            keys = _replaced(keys, name, _mapped(keys[name], pc.rank))
    index = pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in ORDER])
    del keys
    names = pa.array(shard_names)
    shard = _mapped(rows["shard"], lambda texts: pc.index_in(texts, names))
    rows = _replaced(rows, "shard", shard)
    for first in range(0, len(rows), PART_ROWS):
        yield rows.take(index[first : first + PART_ROWS])


def _mapped(
    column: pa.ChunkedArray, values_of: Callable[[pa.Array], pa.Array]
) -> pa.Array:
    """A column of dictionaries with a value in place of each text."""
    whole = column.combine_chunks()
    return values_of(whole.dictionary).take(whole.indices)


def _with_dictionaries(rows: pa.Table) -> pa.Table:
    for name in _SHARED:
        rows = _replaced(rows, name, rows[name].dictionary_encode())
    return rows


def _concatenated(tables: list[pa.Table]) -> pa.Table:
    """The tables as one, each column in one piece. Empties the list to free memory."""
    rows = pa.concat_tables(tables).unify_dictionaries()
    tables.clear()
    for name in rows.column_names:
        rows = _replaced(rows, name, rows[name].combine_chunks())
        pa.default_memory_pool().release_unused()
    return rows


def _replaced(
    rows: pa.Table, name: str, values: pa.Array | pa.ChunkedArray
) -> pa.Table:
    """The rows with other values in one column."""
    return rows.set_column(rows.schema.get_field_index(name), name, values)
