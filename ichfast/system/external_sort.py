"""Sorting more rows than should be in memory at once.

1. Rows are sorted a run at a time, `RUN_ROWS` of them; the runs are put on a `Shelf`
   in batches. Then batches are taken down in the order of their first rows, and
   whatever sorts before the first row of the next batch is final.
2. So in memory are two runs at most, besides `BATCH_ROWS` rows of each run and one row
   of each batch, however many rows there are.
3. The order is that of `pyarrow.compute.sort_indices`: texts by code point, NaN last.

Record batches, packed and put one behind the other in a file, and found again.

What lies on a shelf takes no memory of the process where the file is one on a disk,
and a few bytes a row where it is an `io.BytesIO`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc

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


CODEC = pa.Codec("zstd", 1)
"""Level 1 packs as fast as a disk writes."""


class Shelf:
    """Batches of one schema, numbered in the order in which they were put there.

    Safe to share between threads.

    Args:
        schema: of every batch; no column is a dictionary.
        file: empty, read and written; the shelf's alone.
    """

    def __init__(self, schema: pa.Schema, file: IO[bytes]) -> None:
        self.schema = schema
        self._file = file
        self._lock = threading.Lock()
        self._places: list[tuple[int, int, int]] = []
        """Of each batch: where it begins in the file, its bytes packed and unpacked."""

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return map(self.get, range(len(self)))

    def put(self, batch: pa.RecordBatch) -> None:
        """Put a batch behind the others.

        Raises:
            OSError: the file cannot be written.
        """
        content = batch.serialize()
        packed = CODEC.compress(content)
        with self._lock:
            start = self._file.seek(0, os.SEEK_END)
            self._file.write(packed)
            self._places.append((start, len(packed), len(content)))

    def get(self, number: int) -> pa.RecordBatch:
        """The batch with a number.

        Raises:
            OSError: the file cannot be read.
        """
        start, num_packed, num_bytes = self._places[number]
        with self._lock:
            self._file.seek(start)
            packed = self._file.read(num_packed)
        content = CODEC.decompress(packed, num_bytes)
        return pa.ipc.read_record_batch(content, self.schema)
