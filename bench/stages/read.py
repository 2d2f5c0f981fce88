"""Slices out of a store into memory, hot against memcpy, cold against the disk.

Hot, the pages are in the kernel's cache and a slice costs one copy: the limit is that
copy alone, out of a memory map into as much memory as the reader fills. (A reader
cannot do that: a shard cut short would end the process.)

Cold, the cache is emptied before each turn (``posix_fadvise(DONTNEED)``, which takes
no privilege; what the disk or a hypervisor keeps is beyond it), and the store is read
past the cache, as one larger than the memory is. The limit asks the disk
for the same slices in the same order as ``fio --direct=1 --ioengine=psync`` would, in
as many threads as the reader has; the same bytes in sequence are shown beside it.

Shape letters: H rows, W columns, N slices of a turn, B slices of a batch.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.measure import Contender, Meter, Record
from bench.workload import Workload, common_slices
from ichfast.dataconfig import source_shapes
from ichfast.reading import NUM_READERS, ReadAhead, Wanted, batches_ahead
from ichfast.shards import NPY_HEADER_BYTES, PIXEL_DTYPE, shard_path
from ichfast.store import Store

STAGE = "read"
MAX_SLICES = 512
BLOCK_BYTES = 4 * 2**20
"""What the sequential reader asks for at a time."""


def measure(workload: Workload, meter: Meter) -> list[Record]:
    """Measure reading, slices a second."""
    with workload.open_store() as store:
        picked_N = np.random.default_rng(0).permutation(common_slices(store))
        picked_N = picked_N[:MAX_SLICES]
        with closing(_Reader(store, picked_N, workload.batch_size)) as reader:
            records = _measure_hot(reader, meter)
    with Store(store.path, past_cache=True) as larger_than_memory:
        reader = _Reader(larger_than_memory, picked_N, workload.batch_size)
        with closing(reader):
            return records + _measure_cold(reader, meter)


def _measure_hot(reader: _Reader, meter: Meter) -> list[Record]:
    page_cache = _PageCache(reader)
    return meter.compare(
        [
            Contender(name="ichfast", role="ichfast", run=reader.read),
            Contender(name="memcpy, page cache", role="limit", run=page_cache.copy),
        ],
        stage=STAGE,
        case="hot",
        unit="slices",
        cache="hot",
        settings=reader.settings,
    )


def _measure_cold(reader: _Reader, meter: Meter) -> list[Record]:
    reason = drop_cache(reader.files)
    if reason:
        return [
            meter.left_out(
                stage=STAGE, case="cold", name="ichfast", role="ichfast", reason=reason
            )
        ]
    with _Disk(reader) as disk:

        def contender(
            name: str, role: str, run: Callable[[], int], **settings: object
        ) -> Contender:
            return Contender(
                name=name,
                role=role,
                run=run,
                before=lambda: drop_cache(reader.files),
                settings=settings,
            )

        return meter.compare(
            [
                contender("ichfast", "ichfast", reader.read),
                contender(
                    "random read",
                    "limit",
                    disk.read_at_random,
                    direct=disk.is_direct,
                    threads=NUM_READERS,
                ),
                contender(
                    "sequential read",
                    "limit",
                    disk.read_in_sequence,
                    order="sequential",
                    block_bytes=BLOCK_BYTES,
                ),
            ],
            stage=STAGE,
            case="cold",
            unit="slices",
            cache="cold",
            settings=reader.settings,
        )


class _Reader:
    """Reads slices of a store as the loader does: into a ring of batches, ahead."""

    def __init__(
        self, store: Store, picked_N: npt.NDArray[np.int64], batch_size: int
    ) -> None:
        self.level = max(store.levels)
        self.files = [
            shard_path(store.path, shard.name, self.level)
            for shard in store.header.shards
        ]
        table = store.table.iloc[picked_N]
        self.places = list(zip(table["shard"], table["row_in_shard"], strict=True))
        """Of each slice: the number of its shard, its row there."""
        self.batch_size = batch_size
        self.num_ahead = batches_ahead(batch_size)
        shape_N2 = source_shapes(store, self.level)
        self.slice_shape = tuple(shape_N2[picked_N[0]].tolist())
        self._picked_N = picked_N
        self._reading = ReadAhead(store, self.level, shape_N2, pinned=False)

    @property
    def settings(self) -> dict[str, object]:
        """What a record says of it."""
        return {
            "slices": len(self.places),
            "unit_bytes": self.slice_bytes,
            "batch_size": self.batch_size,
            "order": "random",
        }

    @property
    def slice_bytes(self) -> int:
        """Of one slice."""
        return math.prod(self.slice_shape) * PIXEL_DTYPE.itemsize

    def read(self) -> int:
        """Read every slice, a batch at a time."""
        batches = [
            self._picked_N[first : first + self.batch_size]
            for first in range(0, len(self._picked_N), self.batch_size)
        ]
        for batch in batches[: self.num_ahead]:
            self._reading.ask([Wanted.whole(batch)])
        for number in range(len(batches)):
            for batch in batches[number + self.num_ahead :][:1]:
                self._reading.ask([Wanted.whole(batch)])
            self._reading.take()
            self._reading.give_back()
        return len(self._picked_N)

    def close(self) -> None:
        self._reading.close()


class _PageCache:
    """Copies the reader's slices out of a memory map, into a ring as large as its."""

    def __init__(self, reader: _Reader) -> None:
        maps = [np.load(file, mmap_mode="r") for file in reader.files]
        self._mapped = [maps[shard][row] for shard, row in reader.places]
        num_slots = (reader.num_ahead + 1) * reader.batch_size
        self._ring_SHW = np.empty((num_slots, *reader.slice_shape), PIXEL_DTYPE)

    def copy(self) -> int:
        """Copy every slice."""
        for number, stored_HW in enumerate(self._mapped):
            self._ring_SHW[number % len(self._ring_SHW)] = stored_HW
        return len(self._mapped)


class _Disk:
    """Asks the disk for the reader's slices and does nothing else with them."""

    def __init__(self, reader: _Reader) -> None:
        self._files = reader.files
        self._places = reader.places
        self._slice_bytes = reader.slice_bytes
        self.is_direct = reader.slice_bytes % mmap.PAGESIZE == 0
        """Whether random reads go past the page cache."""
        self._descriptors = self._open()
        # Memory of its own for each thread, on a page as O_DIRECT wants it.
        self._buffers = [mmap.mmap(-1, reader.slice_bytes) for _ in range(NUM_READERS)]
        self._pool = ThreadPoolExecutor(NUM_READERS)

    def __enter__(self) -> _Disk:
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
        """Read every slice, in several threads."""
        return sum(self._pool.map(self._read_share, range(NUM_READERS)))

    def _read_share(self, thread: int) -> int:
        share = self._places[thread::NUM_READERS]
        for shard, row in share:
            start = NPY_HEADER_BYTES + row * self._slice_bytes
            os.preadv(self._descriptors[shard], [self._buffers[thread]], start)
        return len(share)

    def read_in_sequence(self) -> int:
        """Read as many bytes from the shards, front to back."""
        read_bytes(self._files, len(self._places) * self._slice_bytes)
        return len(self._places)


def drop_cache(files: Sequence[Path]) -> str:
    """Ask the kernel to forget files; says why if it still knows one."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            if _is_cached(descriptor, file.stat().st_size):
                return "the kernel does not let go of the store's pages (in memory?)"
        except OSError as error:
            return f"cannot tell whether the cache is cold ({error.strerror})"
        finally:
            os.close(descriptor)
    return ""


def _is_cached(descriptor: int, num_bytes: int) -> bool:
    """Whether the file's middle can be read without waiting for a disk."""
    try:
        os.preadv(descriptor, [bytearray(1)], num_bytes // 2, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    return True


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
