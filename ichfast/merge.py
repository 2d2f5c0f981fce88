"""The pages of the journal to one finished store.

1. Two slices of one id: with equal checksums the first is kept and the other
   counted as a duplicate; else the other is rejected as ``duplicate-conflict``.
2. Labels are joined by slice id, hashed like the slices' own where ids are hashed.
3. `store.json` is written last, the journal is removed after it. A run cut short
   in between finishes in the same bytes.

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

from ichfast.journal import Journal
from ichfast.labels import CLASSES, LabelTable
from ichfast.manifest import StoreHeader
from ichfast.plan import Unit
from ichfast.pseudonyms import stored_id
from ichfast.shards import Shard
from ichfast.slicetable import ORDER
from ichfast.store import finish_store


@dataclass(frozen=True, slots=True)
class Merged:
    """The journal as a whole."""

    table: pd.DataFrame
    """Sorted, without duplicates, with the columns of a page."""

    rejected: pd.DataFrame
    """Columns entry, path, reason, detail; in the order of the listing."""

    shards: tuple[Shard, ...]
    """By name."""

    num_entries: int
    """Of the listing."""

    num_duplicates: int
    """Slices left out because the same one stood before."""


def merge(journal: Journal, units: Sequence[Unit]) -> Merged:
    """Put the pages of `units`, which all have one, together."""
    pages = [journal.read(unit) for unit in units]
    rows = pa.concat_tables(page.rows for page in pages).to_pandas()
    rejected = pd.DataFrame(
        [reject for page in pages for reject in page.rejects],
        columns=["entry", "path", "reason", "detail"],
    )
    shards = [shard for page in pages for shard in page.shards]
    table, conflicts, num_duplicates = _without_repeats(rows)
    return Merged(
        table=table.sort_values(list(ORDER), ignore_index=True),
        rejected=pd.concat([rejected, conflicts]).sort_values(
            "entry", ignore_index=True
        ),
        shards=tuple(sorted(shards, key=lambda shard: shard.name)),
        num_entries=sum(len(unit.entries) for unit in units),
        num_duplicates=num_duplicates,
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
) -> StoreHeader:
    """Join the labels, write the table and `store.json`, leave nothing else.

    Args:
        journal: the store's; removed.
        merged: what the store holds.
        labels: joined by slice id; slices without one get nulls.
        key: what the ids of `merged` were hashed with, if they were.
        plan: what the store was made from.

    Returns:
        The header as written.
    """
    names = [shard.name for shard in merged.shards]
    table = merged.table.drop(columns=["entry", "path"])
    table["shard"] = pd.Index(names).get_indexer(pd.Index(table["shard"]))
    num_labels = 0 if labels is None else len(labels.slice_ids)
    num_labelled = _add_labels(table, labels, key)
    for level in journal.levels:
        for file in (journal.store / f"level-{level}").iterdir():
            if file.name not in names:
                file.unlink()
    header = StoreHeader(
        levels=journal.levels,
        shards=merged.shards,
        counts={
            "entries": merged.num_entries,
            "slices": len(table),
            "series": table["series"].nunique(),
            "patients": table["patient"].nunique(),
            "duplicates": merged.num_duplicates,
            "labelled": num_labelled,
            "labels_without_slice": num_labels - num_labelled,
        },
        rejected=dict(sorted(Counter(merged.rejected["reason"]).items())),
        keep_ids=key is None,
        plan=plan,
        versions={name: version(name) for name in ("ichfast", "numpy", "pydicom")},
    )
    header = finish_store(journal.store, header, table, merged.rejected)
    journal.remove()
    return header


def _add_labels(
    table: pd.DataFrame, labels: LabelTable | None, key: bytes | None
) -> int:
    """Give `table` its six label columns, in place; return how many rows have them."""
    values_NK = np.zeros((len(table), len(CLASSES)), dtype=np.int8)
    is_labelled_N = np.zeros(len(table), dtype=np.bool_)
    if labels is not None:
        label_ids = pd.Index(
            [stored_id(key, slice_id) for slice_id in labels.slice_ids]
        )
        found_N = label_ids.get_indexer(pd.Index(table["slice_id"]))
        is_labelled_N = found_N >= 0
        values_NK[is_labelled_N] = labels.labels_NK[found_N[is_labelled_N]]
    for k, name in enumerate(CLASSES):
        table[name] = pd.arrays.IntegerArray(values_NK[:, k].copy(), ~is_labelled_N)
    return int(is_labelled_N.sum())
