"""Record batches, packed and put one behind the other in a file, and found again.

What lies on a shelf takes no memory of the process where the file is one on a disk,
and a few bytes a row where it is an `io.BytesIO`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import IO

import pyarrow as pa

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
