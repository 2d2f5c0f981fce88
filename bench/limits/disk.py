"""Rates of a disk for threads that read slices and do nothing else.

There are two limits, both in the order of the reader. The limit of the disk: each
thread reads into one buffer again and again, which stays in the processor's cache, as
in fio. The limit of a reader that holds batches ready: all threads read into a ring.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ichfast.loading.prefetch import num_readers
from ichfast.store.shards import NPY_HEADER_BYTES
from ichfast.system.memory import empty_bytes

BLOCK_BYTES = 4 * 2**20
"""Bytes that the sequential reader reads at a time."""


class Disk:
    """Reads slices out of shard files, past the page cache where that is possible.

    Args:
        files: Shards. Those that are read have slices of one shape.
        places: Index of the file and row in it, for each slice in order.
        slice_bytes: Bytes of one slice.
        ring_slices: Slices that the ring holds.
    """

    def __init__(
        self,
        files: Sequence[Path],
        places: Sequence[tuple[int, int]],
        slice_bytes: int,
        *,
        ring_slices: int,
    ) -> None:
        self._files = files
        self._places = places
        self._slice_bytes = slice_bytes
        self.is_direct = slice_bytes % mmap.PAGESIZE == 0
        """Whether random reads bypass the page cache."""
        self._descriptors = self._open()
        self.num_threads = num_readers(past_cache=True)
        self._own = _make_buffers(self.num_threads, slice_bytes)
        self._ring = _make_buffers(ring_slices, slice_bytes)
        self._pool = ThreadPoolExecutor(self.num_threads)

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown()
        for descriptor in self._descriptors:
            os.close(descriptor)

    def _open(self) -> list[int]:
        direct = os.O_DIRECT if self.is_direct else 0
        try:
            return [os.open(file, os.O_RDONLY | direct) for file in self._files]
        except OSError:  # the file system has no O_DIRECT
            self.is_direct = False
            return [os.open(file, os.O_RDONLY) for file in self._files]

    def read_at_random(self) -> int:
        """Read every slice, each thread into its own buffer; returns the slices."""
        return self._read_into(self._own)

    def read_into_ring(self) -> int:
        """Read every slice, all threads into the ring; returns the slices."""
        return self._read_into(self._ring)

    def _read_into(self, buffers: Sequence[memoryview]) -> int:
        def read_share(thread: int) -> int:
            numbers = range(thread, len(self._places), self.num_threads)
            for number in numbers:
                shard, row = self._places[number]
                start = NPY_HEADER_BYTES + row * self._slice_bytes
                # With one buffer for each thread, a thread always uses the same one.
                buffer = buffers[number % len(buffers)]
                os.preadv(self._descriptors[shard], [buffer], start)
            return len(numbers)

        return sum(self._pool.map(read_share, range(self.num_threads)))

    def read_in_sequence(self) -> int:
        """Read the same number of bytes from front to back; returns the slices."""
        read_bytes(self._files, len(self._places) * self._slice_bytes)
        return len(self._places)


def _make_buffers(count: int, slice_bytes: int) -> list[memoryview]:
    """Allocate buffers as the reader does: page-aligned if a slice is whole pages."""
    memory = empty_bytes(count * slice_bytes).data
    return [memory[k * slice_bytes :][:slice_bytes] for k in range(count)]


def read_bytes(files: Sequence[Path], num_bytes: int) -> None:
    """Read files from front to back into one buffer.

    Args:
        files: Read in order.
        num_bytes: Where reading stops, or at the end of the files.
    """
    buffer = memoryview(bytearray(BLOCK_BYTES))
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while num_bytes > 0:
                found = stream.readinto(buffer[: min(BLOCK_BYTES, num_bytes)])
                if not found:
                    break
                num_bytes -= found
