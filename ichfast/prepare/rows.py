"""The rows of a journal's pages, behind those of a store that is appended to.

They are gone through as often as need be, a table at a time, so that the pages' are
never all in memory.

Shape letters: N rows.

Texts that many rows share, as numbers that sort as the texts do.

Labels joined to rows by slice id.

Shape letters: N rows, L labelled slices, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ichfast.errors import LabelError
from ichfast.labels import CLASSES, LabelTable
from ichfast.prepare.journal import Journal
from ichfast.prepare.plan import Unit
from ichfast.prepare.pseudonyms import stored_id
from ichfast.system.external_sort import RUN_ROWS, in_parts


@dataclass(frozen=True, slots=True)
class AllRows:
    """Rows that are read when they are asked for."""

    journal: Journal

    units: Sequence[Unit]
    """In order; each has a page."""

    before: pa.Table | None
    """The rows that come first, with the columns of `schema`, some as dictionaries."""

    is_kept_N: npt.NDArray[np.bool_]
    """Shape (N,): which of the rows count; the others are left out."""

    def __len__(self) -> int:
        return int(np.count_nonzero(self.is_kept_N))

    def schema(self, names: Sequence[str] | None = None) -> pa.Schema:
        """Of all columns, those of a page and the labels, or of some."""
        labels = [pa.field(name, pa.int8()) for name in CLASSES]
        schema = pa.schema([*self.journal.schema, *labels])
        return schema if names is None else pa.schema(map(schema.field, names))

    def tables(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns, in tables of `RUN_ROWS` rows."""
        return in_parts(self._kept(names), RUN_ROWS)

    def _kept(self, names: Sequence[str]) -> Iterator[pa.Table]:
        first = 0
        for table in self._read(names):
            is_kept_N = self.is_kept_N[first : first + len(table)]
            first += len(table)
            yield table if is_kept_N.all() else table.filter(pa.array(is_kept_N))

    def _read(self, names: Sequence[str]) -> Iterator[pa.Table]:
        schema = self.schema(names)
        if self.before is not None:
            before = self.before.select(names)
            for first in range(0, len(before), RUN_ROWS):
                yield before.slice(first, RUN_ROWS).cast(schema)
        in_pages = [name for name in names if name not in CLASSES]
        for unit in self.units:
            rows = self.journal.read(unit, in_pages).rows
            for name in names:
                if name in CLASSES:
                    rows = rows.append_column(name, pa.nulls(len(rows), pa.int8()))
            yield rows.select(names)


SHARED = ("patient", "study", "series", "shard", "transfer_syntax_uid", "quirks")
"""Columns whose texts many rows share."""


@dataclass(frozen=True, slots=True)
class SharedTexts:
    """The texts of the columns `SHARED`, each once."""

    texts: Mapping[str, pa.Array]
    """Of each column: its texts, ascending."""

    @staticmethod
    def of(rows: AllRows) -> SharedTexts:
        """The texts of all rows."""
        texts = {name: pa.array([], pa.string()) for name in SHARED}
        for table in rows.tables(SHARED):
            for name in SHARED:
                known = pa.chunked_array([texts[name], *table[name].chunks])
                texts[name] = known.unique()
        return SharedTexts(
            {name: text.take(pc.sort_indices(text)) for name, text in texts.items()}
        )

    def schema(self, schema: pa.Schema) -> pa.Schema:
        """The schema of rows of `schema` with numbers in place of the texts."""
        for name in SHARED:
            at = schema.get_field_index(name)
            schema = schema.set(at, pa.field(name, pa.int32()))
        return schema

    def encode(self, rows: pa.Table) -> pa.Table:
        """Rows with numbers in place of the texts."""
        for name, texts in self.texts.items():
            rows = replaced(rows, name, pc.index_in(rows[name], texts))
        return rows

    def decode(self, rows: pa.Table) -> pa.Table:
        """Rows with the texts in place of the numbers."""
        for name, texts in self.texts.items():
            rows = replaced(rows, name, texts.take(rows[name].combine_chunks()))
        return rows


def replaced(rows: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Rows with other values in one column."""
    return rows.set_column(rows.schema.get_field_index(name), name, values)


@dataclass(frozen=True, slots=True)
class Labelling:
    """Labels by the slice ids of a store."""

    slice_ids: pd.Index[Any]
    """L texts. It is hashed once for all rows that are looked up, part after part."""

    labels_LK: npt.NDArray[np.uint8]
    """Shape (L, 6), 0 or 1, classes in `CLASSES` order."""

    @staticmethod
    def of(labels: LabelTable, key: bytes | None) -> Labelling:
        """The labels for a store whose slice ids were hashed with `key`, or kept."""
        ids = [stored_id(key, slice_id) for slice_id in labels.slice_ids]
        return Labelling(pd.Index(ids, dtype=object), labels.labels_NK)

    def add(self, rows: pa.Table) -> tuple[pa.Table, int]:
        """Label those rows that have no labels.

        Args:
            rows: slice_id and six label columns, which may be null.

        Returns:
            The rows, and of how many the labels speak.

        Raises:
            LabelError: they say something else of a row that has labels.
        """
        slice_ids = rows["slice_id"].to_numpy(zero_copy_only=False)
        found_N = self.slice_ids.get_indexer(pd.Index(slice_ids, dtype=object))
        is_named_N = found_N >= 0
        old_NK = np.column_stack([rows[name].to_numpy() for name in CLASSES])
        new_NK = old_NK.copy()
        new_NK[is_named_N] = self.labels_LK[found_N[is_named_N]]
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
            rows = replaced(rows, name, pa.array(value_NK[:, k], mask=is_null_N))
        return rows, int(is_named_N.sum())
