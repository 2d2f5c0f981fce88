"""Texts that many rows share, as numbers that sort as the texts do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ichfast.prepare.rows import AllRows

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
