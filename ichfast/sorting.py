"""Sorting more rows than should be in memory at once.

1. Rows are sorted a run at a time, `RUN_ROWS` of them; the runs are put on a shelf
   (`ichfast.shelf`) in batches. Then batches are taken down in the order of their
   first rows, and whatever sorts before the first row of the next batch is final.
2. So in memory are two runs at most, besides `BATCH_ROWS` rows of each run and one row
   of each batch, however many rows there are.
3. The order is that of `pyarrow.compute.sort_indices`: texts by code point, NaN last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ichfast.shelf import Shelf

RUN_ROWS = 2**13
"""Rows that are sorted in memory."""

BATCH_ROWS = 2**7
"""Rows that are taken from the shelf at a time."""


@dataclass(frozen=True, slots=True)
class Runs:
    """Rows on a shelf, sorted within each run."""

    shelf: Shelf

    order: tuple[str, ...]
    """The columns by which they are sorted, ascending."""

    firsts: pa.Table
    """The first row of each batch, columns of `order`."""

    def rows(self) -> Iterator[pa.Table]:
        """All rows, sorted, in tables of any length."""
        by_first = _order_of(self.firsts, self.order)
        step = RUN_ROWS // BATCH_ROWS
        left = self.shelf.schema.empty_table()
        for at in range(0, len(by_first), step):
            batches = map(self.shelf.get, by_first[at : at + step].to_pylist())
            taken = pa.Table.from_batches(batches, self.shelf.schema)
            known = pa.concat_tables([left, taken])
            # The next batch's first row, sorted among those at hand, ends what is
            # final; behind the last batch there is none.
            end = self.firsts.take(by_first[at + step : at + step + 1])
            keys = pa.concat_tables([known.select(self.order), end])
            index = _order_of(keys, self.order)
            num_final = pc.index(index, len(known)).as_py() if len(end) else len(known)
            final = known.take(index[:num_final])
            left = known.take(index[num_final + 1 :])
            del taken, known, keys
            _release()
            yield final


def sort_runs(rows: Iterable[pa.Table], shelf: Shelf, order: Sequence[str]) -> Runs:
    """Sort rows into runs.

    Args:
        rows: in tables of any length, with the schema of `shelf`.
        shelf: empty; takes the rows.
        order: the columns to sort by, ascending; no two rows are equal in all of
            them, or it does not matter which comes first.

    Raises:
        OSError: the shelf cannot be written.
    """
    firsts = [shelf.schema.empty_table().select(order)]
    for run in in_parts(rows, RUN_ROWS):
        ordered = run.take(_order_of(run, order))
        for batch in ordered.to_batches(BATCH_ROWS):
            shelf.put(batch)
        first_of_batch = pa.array(range(0, len(ordered), BATCH_ROWS))
        firsts.append(ordered.select(order).take(first_of_batch))
        del run, ordered
        _release()
    return Runs(shelf, tuple(order), pa.concat_tables(firsts))


def in_parts(rows: Iterable[pa.Table], num_rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of `num_rows`; the last may have less, none has 0.

    Each column is one piece. What a table takes is free when the caller lets go of it.
    """
    waiting: list[pa.Table] = []
    num_waiting = 0
    for table in rows:
        left = table
        while num_waiting + len(left) >= num_rows:
            cut = num_rows - num_waiting
            waiting.append(left.slice(0, cut))
            num_waiting, left = 0, left.slice(cut)
            yield _joined(waiting)
        if len(left):
            waiting.append(left)
            num_waiting += len(left)
    if waiting:
        yield _joined(waiting)


def _joined(tables: list[pa.Table]) -> pa.Table:
    """The tables as one; the list is emptied, so that no column is there twice."""
    schema = tables[0].schema
    columns = [[t.column(at) for t in tables] for at in range(len(schema))]
    tables.clear()
    joined = []
    while columns:
        pieces = [piece for column in columns.pop(0) for piece in column.chunks]
        joined.append(pa.concat_arrays(pieces))
    return pa.Table.from_arrays(joined, schema=schema)


def _order_of(rows: pa.Table, order: Sequence[str]) -> pa.Array:
    return pc.sort_indices(rows, sort_keys=[(name, "ascending") for name in order])


def _release() -> None:
    """Give the system back what is free: else it grows with every run."""
    pa.default_memory_pool().release_unused()
