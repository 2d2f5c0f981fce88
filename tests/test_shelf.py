"""Record batches on a shelf come back as they were put there."""

from __future__ import annotations

import io
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from ichfast.shelf import Shelf

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
