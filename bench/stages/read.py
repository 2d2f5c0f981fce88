"""Slices from a store into memory: hot against memcpy, cold against the disk.

Hot: the pages are in the kernel's cache, and a slice costs one copy. The limit is that
copy alone, by the same number of threads, from a memory map into as much memory as the
reader fills. (A reader cannot use a map: a truncated shard would end the process.
System calls may be a little faster, probably because a map has pages of 4 KiB.)

Cold: the page cache is emptied before each turn with ``posix_fadvise(DONTNEED)``, which
needs no privilege but does not reach the caches of a disk or a hypervisor. The store is
read past the page cache, like one that is larger than the memory. The limits are bare
threads that read the same slices in the same order (`bench.limits.disk`), fio if it is
installed (`bench.limits.fio`), and the same bytes in sequence.

Shape letters: H rows, W columns, N slices of a turn, B slices of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import numpy.typing as npt

from bench.harness.measure import BenchError, Clocked, Contender, Meter, Record
from bench.harness.pagecache import drop_cache
from bench.harness.reader import SliceReader
from bench.harness.workload import Workload, common_slices
from bench.limits.disk import BLOCK_BYTES, Disk
from bench.limits.fio import Fio
from ichfast.loading.prefetch import num_readers
from ichfast.store.shards import PIXEL_DTYPE, shard_path
from ichfast.store.store import Store

STAGE = "read"
MAX_SLICES = 512
"""Upper limit of the slices of a turn."""

_COPIED_SLICES = 16
"""Slices that a thread of the limit copies at a time."""


def measure(workload: Workload, meter: Meter) -> list[Record]:
    """Measure reading, slices per second.

    Args:
        workload: What is measured.
        meter: Makes the records.
    """
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
    with ThreadPoolExecutor(num_readers(past_cache=False)) as threads:
        page_cache = _PageCache(reader, threads)
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
    with Disk(
        reader.files,
        reader.places,
        reader.slice_bytes,
        ring_slices=reader.ring_slices,
    ) as disk:
        fio = _fio_like(reader, is_direct=disk.is_direct)
        reason = _reason_to_skip(fio)
        records = _compare_cold(reader, disk, None if reason else fio, meter)
    if reason:
        records.append(
            meter.left_out(
                stage=STAGE, case="cold", name="fio", role="limit", reason=reason
            )
        )
    return records


def _compare_cold(
    reader: _Reader, disk: Disk, fio: Fio | None, meter: Meter
) -> list[Record]:
    threads = {"direct": disk.is_direct, "threads": disk.num_threads}
    ring = {"ring_slices": reader.ring_slices, **threads}
    in_sequence = {"order": "sequential", "block_bytes": BLOCK_BYTES}
    runs: list[tuple[str, Callable[[], int | Clocked], Mapping[str, object]]] = [
        ("ichfast", reader.read, {}),
        ("random read", disk.read_at_random, threads),
        ("random read, ring", disk.read_into_ring, ring),
        ("sequential read", disk.read_in_sequence, in_sequence),
    ]
    if fio is not None:
        runs.append(("fio", fio.read, {"clocked_by": "fio", **threads}))
    return meter.compare(
        [
            Contender(
                name=name,
                role="ichfast" if name == "ichfast" else "limit",
                run=run,
                before=lambda: drop_cache(reader.files),
                settings=settings,
            )
            for name, run, settings in runs
        ],
        stage=STAGE,
        case="cold",
        unit="slices",
        cache="cold",
        settings=reader.settings,
    )


def _fio_like(reader: _Reader, *, is_direct: bool) -> Fio:
    """Set up fio to read the shards of the reader's slices, all of one shape."""
    shards = sorted({shard for shard, _ in reader.places})
    return Fio(
        level_dir=reader.files[0].parent,
        shards=tuple(reader.files[shard].name for shard in shards),
        slice_bytes=reader.slice_bytes,
        num_slices=len(reader.places),
        threads=num_readers(past_cache=True),
        is_direct=is_direct,
    )


def _reason_to_skip(fio: Fio) -> str:
    """Try fio; returns why it cannot read here, or an empty text."""
    try:
        fio.read()
    except BenchError as error:
        return str(error)
    return ""


class _Reader(SliceReader):
    """Reads slices of a store's largest level."""

    def __init__(
        self, store: Store, picked_N: npt.NDArray[np.int64], batch_size: int
    ) -> None:
        super().__init__(store, max(store.levels), picked_N, batch_size)
        self.files = [
            shard_path(store.path, shard.name, self.level)
            for shard in store.header.shards
        ]
        table = store.table.iloc[picked_N]
        self.places = list(zip(table["shard"], table["row_in_shard"], strict=True))
        """Index of the shard and row in it, for each slice."""

    @property
    def settings(self) -> dict[str, object]:
        """Settings for the records."""
        return {
            "slices": len(self.places),
            "unit_bytes": self.slice_bytes,
            "batch_size": self.batch_size,
            "order": "random",
        }

    @property
    def ring_slices(self) -> int:
        """Slices in its memory: those of the batches ahead and of the one taken."""
        return (self.num_ahead + 1) * self.batch_size

    @property
    def slice_bytes(self) -> int:
        """Bytes of one slice."""
        return math.prod(self.slice_shape) * PIXEL_DTYPE.itemsize


class _PageCache:
    """Copies the reader's slices from a memory map into a ring of the same size."""

    def __init__(self, reader: _Reader, threads: ThreadPoolExecutor) -> None:
        maps = [np.load(file, mmap_mode="r") for file in reader.files]
        self._mapped = [maps[shard][row] for shard, row in reader.places]
        self._ring_SHW = np.empty(
            (reader.ring_slices, *reader.slice_shape), PIXEL_DTYPE
        )
        self._threads = threads

    def copy(self) -> int:
        """Copy every slice."""
        firsts = range(0, len(self._mapped), _COPIED_SLICES)
        list(self._threads.map(self._copy_some, firsts))
        return len(self._mapped)

    def _copy_some(self, first: int) -> None:
        for number, stored_HW in enumerate(
            self._mapped[first : first + _COPIED_SLICES], start=first
        ):
            self._ring_SHW[number % len(self._ring_SHW)] = stored_HW
