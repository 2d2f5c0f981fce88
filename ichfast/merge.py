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

Shape letters: N slices, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import pandas as pd
import pyarrow as pa

from ichfast.errors import LabelError
from ichfast.files import make_folder
from ichfast.intake import Intake, read_intake, write_intake
from ichfast.journal import Journal
from ichfast.labels import CLASSES, LabelTable
from ichfast.manifest import ENTRIES_FILE, StoreHeader, intake_path, read_header
from ichfast.plan import Unit
from ichfast.pseudonyms import stored_id
from ichfast.shards import Shard
from ichfast.slicetable import ORDER, read_rejected, read_table
from ichfast.store import finish_store


@dataclass(frozen=True, slots=True)
class Base:
    """A finished store that is appended to."""

    header: StoreHeader

    rows: pd.DataFrame
    """One row a slice, with the columns of a page and the labels."""

    rejected: pd.DataFrame
    """As `ichfast.slicetable.read_rejected` gives it."""

    intake: Intake


def read_base(journal: Journal) -> Base:
    """Read the finished store of a journal.

    Raises:
        StoreError: a part of it is missing or damaged.
    """
    header = read_header(journal.store)
    rows = read_table(journal.store, header)
    names = np.array([shard.name for shard in header.shards], dtype=np.object_)
    rows["shard"] = names[rows["shard"]]
    rows["entry"], rows["path"] = -1, "a slice stored before"
    return Base(
        header,
        rows,
        read_rejected(journal.store, header),
        read_intake(intake_path(journal.store), header.entries_crc32c),
    )


@dataclass(frozen=True, slots=True)
class Merged:
    """The journal as a whole, and what the store held before."""

    table: pd.DataFrame
    """Sorted, without duplicates, with the columns of a page and the labels that the
    store had before."""

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


def merge(journal: Journal, units: Sequence[Unit], base: Base | None) -> Merged:
    """Put the pages of `units`, which all have one, together, behind `base`."""
    pages = [journal.read(unit) for unit in units]
    rows = pa.concat_tables(
        [journal.schema.empty_table(), *(page.rows for page in pages)]
    ).to_pandas()
    for name in CLASSES:
        rows[name] = pd.array([pd.NA] * len(rows), dtype="Int8")
    if base is not None:
        rows = pd.concat([base.rows, rows], ignore_index=True)
    rejected = pd.DataFrame(
        [reject for page in pages for reject in page.rejects],
        columns=["entry", "path", "reason", "detail"],
    )
    table, conflicts, num_duplicates = _without_repeats(rows)
    used = set(table["shard"])
    shards = [shard for page in pages for shard in page.shards if shard.name in used]
    if base is not None:
        shards += base.header.shards
    return Merged(
        table=table.sort_values(list(ORDER), ignore_index=True),
        rejected=pd.concat([rejected, conflicts]).sort_values(
            "entry", ignore_index=True
        ),
        shards=tuple(sorted(shards, key=lambda shard: shard.name)),
        num_entries=sum(len(unit.entries) for unit in units),
        num_duplicates=num_duplicates,
        base=base,
    )


def _without_repeats(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """First row of each slice id; the other files' rejections; equal rows dropped."""
    is_repeat = rows["slice_id"].duplicated()
    repeats = rows[is_repeat]
    firsts = rows[~is_repeat]
    originals = firsts.set_index("slice_id").loc[repeats["slice_id"]]
    pixels = ["rows", "columns", "crc32c"]
    differs = (originals[pixels].to_numpy() != repeats[pixels].to_numpy()).any(axis=1)
    conflicts = pd.DataFrame(
        {
            "entry": repeats["entry"][differs],
            "path": repeats["path"][differs],
            "reason": "duplicate-conflict",
            "detail": [
                f"same SOPInstanceUID as {path}, other pixels; that one is kept"
                for path in originals["path"][differs]
            ],
        }
    ).drop_duplicates("entry")
    return firsts, conflicts, int((~differs).sum())


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
    table = merged.table.drop(columns=["entry", "path"])
    table["shard"] = pd.Index(names).get_indexer(pd.Index(table["shard"]))
    rejected, counts = merged.rejected, Counter[str]()
    if merged.base is not None:
        rejected = pd.concat([merged.base.rejected, rejected], ignore_index=True)
        counts.update(merged.base.header.counts)
        if labels is None and "labels" in merged.base.header.plan:
            plan = {**plan, "labels": merged.base.header.plan["labels"]}
    if labels is not None:
        counts["labels_without_slice"] = len(labels.slice_ids) - add_labels(
            table, labels, key
        )
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
            "slices": len(table),
            "series": table["series"].nunique(),
            "patients": table["patient"].nunique(),
            "duplicates": counts["duplicates"] + merged.num_duplicates,
            "labelled": int(table[CLASSES[0]].notna().sum()),
            "labels_without_slice": counts["labels_without_slice"],
        },
        rejected=dict(sorted(Counter(rejected["reason"]).items())),
        keep_ids=key is None,
        plan=plan,
        versions={name: version(name) for name in ("ichfast", "numpy", "pydicom")},
        entries_crc32c=write_intake(journal.next / ENTRIES_FILE, intake),
    )
    finish_store(journal.next, header, table, rejected)
    journal.publish()


def add_labels(table: pd.DataFrame, labels: LabelTable, key: bytes | None) -> int:
    """Label those rows of `table` that have no labels, in place.

    Args:
        table: slice_id and six label columns, which may be null.
        labels: joined by slice id.
        key: what the slice ids of `table` were hashed with, if they were.

    Returns:
        How many rows `labels` speaks of.

    Raises:
        LabelError: it says something else of a row that has labels.
    """
    label_ids = pd.Index([stored_id(key, slice_id) for slice_id in labels.slice_ids])
    found_N = label_ids.get_indexer(pd.Index(table["slice_id"]))
    old_NK = table[list(CLASSES)].to_numpy(np.float32, na_value=np.nan)
    is_named_N = found_N >= 0
    new_NK = np.where(is_named_N[:, np.newaxis], labels.labels_NK[found_N], old_NK)
    was_labelled_N = ~np.isnan(old_NK[:, 0])
    differs_N = was_labelled_N & (new_NK != old_NK).any(axis=1)
    if differs_N.any():
        raise LabelError(
            f"the labels contradict those in the store for {differs_N.sum():,} "
            f"slice(s), first {table['slice_id'][differs_N].iloc[0]}; correct the csv, "
            "or prepare a new store"
        )
    is_null_N = np.isnan(new_NK[:, 0])
    values_NK = np.nan_to_num(new_NK).astype(np.int8)
    for k, name in enumerate(CLASSES):
        table[name] = pd.arrays.IntegerArray(values_NK[:, k].copy(), is_null_N.copy())
    return int(is_named_N.sum())
