"""Rows are sorted whether they fit into a run or not, a few at a time."""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ichfast import sorting
from ichfast.shelf import Shelf
from ichfast.sorting import in_parts, sort_runs

SCHEMA = pa.schema([("text", pa.string()), ("mm", pa.float64()), ("id", pa.int64())])
ORDER = ("text", "mm", "id")


def odd_rows(num_rows: int) -> pa.Table:
    """Few texts and numbers, some missing, so that ids decide."""
    rng = np.random.default_rng(num_rows)
    texts = rng.choice(["", "a", "B", "é", "a.b", "\U0001f9e0"], num_rows)
    mm = rng.choice([-2.5, 0.0, 7.0, math.nan], num_rows)
    return pa.table([texts, mm, rng.permutation(num_rows)], schema=SCHEMA)


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
    monkeypatch.setattr(sorting, "RUN_ROWS", run_rows)
    monkeypatch.setattr(sorting, "BATCH_ROWS", batch_rows)
    rows = odd_rows(num_rows)
    keys = [(name, "ascending") for name in ORDER]
    expected = rows.take(pc.sort_indices(rows, sort_keys=keys))
    given = {"odd": rows, "ascending": expected, "descending": expected[::-1]}[arrival]
    tables = [given.slice(first, 11) for first in range(0, num_rows, 11)]
    runs = sort_runs(tables, Shelf(SCHEMA, io.BytesIO()), ORDER)
    found = pa.concat_tables([SCHEMA.empty_table(), *runs.rows()])
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
            yield pa.table([texts, number.astype(float), number], schema=SCHEMA)

    with tempfile.TemporaryFile() as file:
        num_sorted = 0
        for rows in sort_runs(tables(), Shelf(SCHEMA, file), ORDER).rows():
            seen.append(pa.total_allocated_bytes())
            num_sorted += len(rows)
    assert num_sorted == num_rows
    return max(seen) - before


def test_many_rows_take_a_small_part_of_their_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sorting, "RUN_ROWS", 1024)
    monkeypatch.setattr(sorting, "BATCH_ROWS", 16)
    assert most_bytes(80_000) < 80_000 * 60 / 8  # a row has 60 bytes
