"""The rows of a journal's pages, behind those of a store that is appended to.

They are gone through as often as need be, a table at a time, so that the pages' are
never all in memory.

Shape letters: N rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ichfast.labels import CLASSES
from ichfast.prepare.journal import Journal
from ichfast.prepare.plan import Unit
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
