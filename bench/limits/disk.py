"""What a disk gives to threads that ask it for slices and do nothing else.

Two yardsticks in the order of the reader: each thread into a buffer of its own, used
again and again, which stays in the processor's cache (what fio does); and into a ring,
as whatever holds batches ready must. The first is the disk's limit, the second ours.
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
"""What the sequential reader asks for at a time."""


class Disk:
    """Reads slices out of shard files, past the page cache where that is possible.

    Args:
        files: shards whose slices have one shape, or that are not read.
        places: of each slice, in order: the number of its file, its row there.
        slice_bytes: of one slice.
        ring_slices: slices that the ring holds.
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
        """Whether random reads go past the page cache."""
        self._descriptors = self._open()
        self.num_threads = num_readers(past_cache=True)
        self._own = _slots(self.num_threads, slice_bytes)
        self._ring = _slots(ring_slices, slice_bytes)
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
        except OSError:  # a file system without it
            self.is_direct = False
            return [os.open(file, os.O_RDONLY) for file in self._files]

    def read_at_random(self) -> int:
        """Read every slice, each thread into a buffer of its own."""
        return self._read_into(self._own)

    def read_into_ring(self) -> int:
        """Read every slice, all threads into a ring."""
        return self._read_into(self._ring)

    def _read_into(self, slots: Sequence[memoryview]) -> int:
        def read_share(thread: int) -> int:
            numbers = range(thread, len(self._places), self.num_threads)
            for number in numbers:
                shard, row = self._places[number]
                start = NPY_HEADER_BYTES + row * self._slice_bytes
                # With as many slots as threads, a thread's slot is always the same.
                slot = slots[number % len(slots)]
                os.preadv(self._descriptors[shard], [slot], start)
            return len(numbers)

        return sum(self._pool.map(read_share, range(self.num_threads)))

    def read_in_sequence(self) -> int:
        """Read as many bytes from the shards, front to back."""
        read_bytes(self._files, len(self._places) * self._slice_bytes)
        return len(self._places)


def _slots(count: int, slice_bytes: int) -> list[memoryview]:
    """Memory as the reader's; each slice begins on a page if it is whole pages."""
    memory = empty_bytes(count * slice_bytes).data
    return [memory[k * slice_bytes :][:slice_bytes] for k in range(count)]


def read_bytes(files: Sequence[Path], num_bytes: int) -> None:
    """Read so many bytes from files, front to back, into one buffer."""
    buffer = memoryview(bytearray(BLOCK_BYTES))
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while num_bytes > 0:
                found = stream.readinto(buffer[: min(BLOCK_BYTES, num_bytes)])
                if not found:
                    break
                num_bytes -= found
