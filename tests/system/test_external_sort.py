"""Record batches on a shelf come back as they were put there.

Rows are sorted whether they fit into a run or not, a few at a time.
"""

from __future__ import annotations

import io
import math
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ichfast.system import external_sort
from ichfast.system.external_sort import Shelf, in_parts, sort_runs

SCHEMA = pa.schema([("text", pa.string()), ("number", pa.int64())])


def batch_of(number: int) -> pa.RecordBatch:
    """So many rows; every other text is null."""
    texts = [None if k % 2 else f"row {k} of {number}" for k in range(number)]
    return pa.record_batch([texts, list(range(number))], schema=SCHEMA)


def test_batches_come_back_by_number_and_in_order() -> None:
    shelf = Shelf(SCHEMA, io.BytesIO())
    batches = [batch_of(number) for number in (3, 0, 1, 7)]
    for batch in batches:
        shelf.put(batch)
    assert len(shelf) == 4
    assert shelf.get(1).equals(batches[1])
    shelf.put(batches[0])
    assert shelf.get(4).equals(batches[0])
    batches.append(batches[0])
    assert all(found.equals(put) for found, put in zip(shelf, batches, strict=True))


def test_a_part_of_a_batch_takes_no_more_than_its_rows() -> None:
    file = io.BytesIO()
    shelf = Shelf(SCHEMA, file)
    shelf.put(batch_of(5000).slice(4990))
    assert shelf.get(0).equals(batch_of(5000).slice(4990))
    assert len(file.getvalue()) < 1000


class _SlowFile(io.BytesIO):
    """Another thread has its turn between a seek and what follows."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        position = super().seek(offset, whence)
        time.sleep(1e-4)
        return position


def test_threads_may_read_and_write_at_once() -> None:
    shelf = Shelf(SCHEMA, _SlowFile())
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(shelf.put, map(batch_of, range(64))))
        found = list(threads.map(shelf.get, range(64)))
    # Whichever came first; each is what was put, and none is lost.
    assert sorted(map(len, found)) == list(range(64))
    assert all(batch.equals(batch_of(len(batch))) for batch in found)


ROW_SCHEMA = pa.schema(
    [("text", pa.string()), ("mm", pa.float64()), ("id", pa.int64())]
)
ORDER = ("text", "mm", "id")


def odd_rows(num_rows: int) -> pa.Table:
    """Few texts and numbers, some missing, so that ids decide."""
    rng = np.random.default_rng(num_rows)
    texts = rng.choice(["", "a", "B", "é", "a.b", "\U0001f9e0"], num_rows)
    mm = rng.choice([-2.5, 0.0, 7.0, math.nan], num_rows)
    return pa.table([texts, mm, rng.permutation(num_rows)], schema=ROW_SCHEMA)


@pytest.mark.parametrize(("run_rows", "batch_rows"), [(64, 8), (64, 64), (7, 3)])
@pytest.mark.parametrize("num_rows", [0, 1, 7, 64, 65, 1009])
@pytest.mark.parametrize("arrival", ["odd", "ascending", "descending"])
def test_the_order_is_that_of_sorting_all_at_once(
    monkeypatch: pytest.MonkeyPatch,
    run_rows: int,
    batch_rows: int,
    num_rows: int,
    arrival: str,
) -> None:
    monkeypatch.setattr(external_sort, "RUN_ROWS", run_rows)
    monkeypatch.setattr(external_sort, "BATCH_ROWS", batch_rows)
    rows = odd_rows(num_rows)
    keys = [(name, "ascending") for name in ORDER]
    expected = rows.take(pc.sort_indices(rows, sort_keys=keys))
    given = {"odd": rows, "ascending": expected, "descending": expected[::-1]}[arrival]
    tables = [given.slice(first, 11) for first in range(0, num_rows, 11)]
    runs = sort_runs(tables, Shelf(ROW_SCHEMA, io.BytesIO()), ORDER)
    found = pa.concat_tables([ROW_SCHEMA.empty_table(), *runs.rows()])
    assert found.column("id").to_pylist() == expected.column("id").to_pylist()
    assert len(found) == num_rows


def test_parts_have_the_length_asked_for_and_columns_of_one_piece() -> None:
    rows = odd_rows(100)
    tables = [rows.slice(0, 3), rows.slice(3, 0), rows.slice(3, 50), rows.slice(53)]
    parts = list(in_parts(tables, 20))
    assert [len(part) for part in parts] == [20] * 5
    assert {part["text"].num_chunks for part in parts} == {1}
    assert pa.concat_tables(parts)["id"].equals(rows["id"])
    assert [len(part) for part in in_parts([rows], 40)] == [40, 40, 20]
    assert list(in_parts([rows.slice(0, 0)], 40)) == []


def most_bytes(num_rows: int) -> int:
    """What Arrow holds at most between two tables while so many rows are sorted."""
    step = 1000
    before = pa.total_allocated_bytes()
    seen = []

    def tables() -> Iterator[pa.Table]:
        for first in range(0, num_rows, step):
            seen.append(pa.total_allocated_bytes())
            number = np.arange(first, first + step) * 7919 % num_rows
            texts = [f"{n:040}" for n in number]
            yield pa.table([texts, number.astype(float), number], schema=ROW_SCHEMA)

    with tempfile.TemporaryFile() as file:
        num_sorted = 0
        for rows in sort_runs(tables(), Shelf(ROW_SCHEMA, file), ORDER).rows():
            seen.append(pa.total_allocated_bytes())
            num_sorted += len(rows)
    assert num_sorted == num_rows
    return max(seen) - before


def test_many_rows_take_a_small_part_of_their_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(external_sort, "RUN_ROWS", 1024)
    monkeypatch.setattr(external_sort, "BATCH_ROWS", 16)
    assert most_bytes(80_000) < 80_000 * 60 / 8  # a row has 60 bytes
