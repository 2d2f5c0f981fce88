"""Slices out of a store into memory, hot against memcpy, cold against the disk.

Hot, the pages are in the kernel's cache and a slice costs one copy. Cold, the cache
is emptied before each turn (``posix_fadvise(DONTNEED)``, which takes no
privilege; what the disk or a hypervisor keeps is beyond it), and slices in random
order are compared with the same number of bytes in sequence.

Shape letters: H rows, W columns, N slices of a turn, B slices of a batch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.measure import Contender, Meter, Record
from bench.workload import Workload, common_slices
from ichfast.dataconfig import source_shapes
from ichfast.reading import ReadAhead, batches_ahead
from ichfast.store import Store

STAGE = "read"
MAX_SLICES = 512
BLOCK_BYTES = 4 * 2**20
"""What the sequential reader asks for at a time."""


def measure(workload: Workload, meter: Meter) -> list[Record]:
    """Measure reading, slices a second."""
    with workload.open_store() as store:
        path = store.path
        picked_N = np.random.default_rng(0).permutation(common_slices(store))
    reader = _Reader(path, picked_N[:MAX_SLICES], workload.batch_size)
    settings = {
        "slices": reader.num_slices,
        "unit_bytes": reader.slice_bytes,
        "batch_size": workload.batch_size,
        "order": "random",
    }
    try:
        records = meter.compare(
            [
                Contender(name="ichfast", role="ichfast", run=reader.read),
                Contender(name="memcpy", role="limit", run=reader.memcpy),
            ],
            stage=STAGE,
            case="hot",
            unit="slices",
            cache="hot",
            settings=settings,
        )
        reason = reader.empty_cache()
        if reason:
            return [
                *records,
                meter.left_out(
                    stage=STAGE,
                    case="cold",
                    name="ichfast",
                    role="ichfast",
                    reason=reason,
                ),
            ]
        return records + meter.compare(
            [
                Contender(
                    name="ichfast",
                    role="ichfast",
                    run=reader.read,
                    before=reader.empty_cache,
                ),
                Contender(
                    name="sequential read",
                    role="limit",
                    run=reader.read_in_sequence,
                    before=reader.empty_cache,
                    settings={"order": "sequential", "block_bytes": BLOCK_BYTES},
                ),
            ],
            stage=STAGE,
            case="cold",
            unit="slices",
            cache="cold",
            settings=settings,
        )
    finally:
        reader.close()


class _Reader:
    """Reads slices of a store as the loader does: into a ring of batches, ahead."""

    def __init__(
        self, path: Path, picked_N: npt.NDArray[np.int64], batch_size: int
    ) -> None:
        self._store = Store(path)
        self._picked_N = picked_N
        self._batch_size = batch_size
        level = max(self._store.levels)
        self._files = sorted((path / f"level-{level}").glob("*.npy"))
        self._resident_NHW = np.stack(
            [self._store.slice_HW(int(position), level) for position in picked_N]
        )
        self._batch_BHW = np.empty_like(self._resident_NHW[:batch_size])
        self._reading = ReadAhead(
            self._store, level, source_shapes(self._store, level), pinned=False
        )
        self.slice_bytes = self._resident_NHW[0].nbytes
        self.num_slices = len(picked_N)

    def read(self) -> int:
        """Read every slice, a batch at a time."""
        num_ahead = batches_ahead(self._batch_size)
        batches = [
            self._picked_N[first : first + self._batch_size]
            for first in range(0, self.num_slices, self._batch_size)
        ]
        for batch in batches[:num_ahead]:
            self._reading.ask([batch])
        for number in range(len(batches)):
            for batch in batches[number + num_ahead :][:1]:
                self._reading.ask([batch])
            self._reading.take()
            self._reading.give_back()
        return self.num_slices

    def memcpy(self) -> int:
        """Copy as many bytes, from memory of this process."""
        for first in range(0, self.num_slices, self._batch_size):
            source_BHW = self._resident_NHW[first : first + self._batch_size]
            self._batch_BHW[: len(source_BHW)] = source_BHW
        return self.num_slices

    def read_in_sequence(self) -> int:
        """Read as many bytes from the shards, front to back."""
        read_bytes(self._files, self.num_slices * self.slice_bytes)
        return self.num_slices

    def empty_cache(self) -> str:
        """Take the shards out of the page cache; says why if that did not work."""
        return drop_cache(self._files)

    def close(self) -> None:
        self._reading.close()
        self._store.close()


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
