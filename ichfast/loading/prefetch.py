"""Reads slices from a store, some batches ahead, into memory that DALI reads in place.

Promises:

1. `ReadAhead.take` returns batches in the order they were requested. A slice is as in
   the store, or halved as often as requested.
2. A batch that was taken is not overwritten before it is released, and on a GPU not
   before the work queued until then is done. So DALI needs no copy of its own.
3. An error while reading is raised by `take` of that batch, as a `StoreError` that
   names the shard. A wait for the disk ends after `READ_TIMEOUT_S`.
4. Memory is reused. There are as many buffers as batches were ever requested and not
   released at one time, each as large as the largest batch it held. A buffer is dropped
   if a read still writes to it after the timeout.
5. The end of a process never waits for a disk that does not respond.

Several threads read at once by system calls. Each slice is copied once, or unpacked,
without the interpreter's lock, and a cold disk always has several requests to work on
(measured against memory maps and ``posix_fadvise``: bench/LOG.md, 2026-11).

Shape letters: N slices of the store, B slices of a batch, H rows, W columns.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt
import torch

from ichfast.augment.geometry import halved_shape
from ichfast.errors import LoaderError
from ichfast.loading.store_level import Level
from ichfast.store.shard_file import DIRECT_BYTES
from ichfast.system.memory import empty_bytes

READ_TIMEOUT_S = 60.0
"""Longest wait for one batch, seconds; after it the disk counts as unresponsive."""

MAX_READERS = 8
"""Upper limit of threads that read."""

MIN_JOB_SLICES = 4
"""Slices that one job of a thread reads at least: starting a job costs as much as
reading a few slices."""

MAX_BATCHES_AHEAD = 4
MAX_SLICES_AHEAD = 256
"""Limits of reading ahead; the smaller one applies, but one batch is always read."""


def num_readers(*, past_cache: bool) -> int:
    """Number of threads that read: one per core, or two where each waits for a disk.

    From the page cache they copy and halve, each in its own memory. More threads than
    cores evict each other's data from the processor's cache (bench/LOG.md, 2026-11).
    """
    num_cores = len(os.sched_getaffinity(0))
    return min(MAX_READERS, 2 * num_cores if past_cache else num_cores)


def batches_ahead(batch_size: int) -> int:
    """Number of batches to request before the first is taken; at least one."""
    return max(1, min(MAX_BATCHES_AHEAD, MAX_SLICES_AHEAD // batch_size))


Slices = npt.NDArray[np.uint16] | Sequence[npt.NDArray[np.uint16]]
"""Slices in host memory: one array (B, H, W) if all have one shape and are contiguous,
else an array (H, W) each."""


def divide(flat: npt.NDArray[np.uint16], shape_B2: npt.NDArray[np.int64]) -> Slices:
    """Cut memory into consecutive slices, without a copy.

    Args:
        flat: shape (pixels of all slices,).
        shape_B2: rows and columns of each slice; at least one slice.
    """
    shapes = shape_B2.tolist()
    if shapes.count(shapes[0]) == len(shapes):
        return flat.reshape(-1, *shapes[0])
    ends = np.cumsum(shape_B2.prod(axis=1)).tolist()
    return [
        flat[end - rows * columns : end].reshape(rows, columns)
        for end, (rows, columns) in zip(ends, shapes, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class SliceRequest:
    """The slices that one feed needs for a batch."""

    positions_B: npt.NDArray[np.int64]
    """Store positions."""

    halvings_B: npt.NDArray[np.int64]
    """How often each slice is halved."""

    @staticmethod
    def unhalved(positions_B: npt.NDArray[np.int64]) -> SliceRequest:
        """Request slices as they are stored."""
        return SliceRequest(positions_B, np.zeros_like(positions_B))


class ReadAhead:
    """Reads slices from the disk. A `loading.slice_source.SliceSource`.

    Args:
        level: the level to read.
        pinned: use page-locked memory, and wait for the current CUDA stream.
    """

    def __init__(self, level: Level, *, pinned: bool) -> None:
        self._level = level
        self._pinned = pinned
        self._num_readers = num_readers(past_cache=level.store.past_cache(level.level))
        self._readers = DaemonThreadPool(self._num_readers)
        self._free: list[_Buffer] = []
        self._requested: deque[_Read] = deque()
        self._taken: deque[_Buffer] = deque()

    def request(self, batch: Sequence[SliceRequest]) -> None:
        """Begin to read a batch, given the slices of each feed."""
        buffer = self._free.pop() if self._free else _Buffer(pinned=self._pinned)
        positions = np.concatenate([feed.positions_B for feed in batch])
        halvings = np.concatenate([feed.halvings_B for feed in batch])
        slices = buffer.lay_out(halved_shape(self._level.shape_N2[positions], halvings))
        size = max(-(-len(slices) // self._num_readers), MIN_JOB_SLICES)
        parts = [slice(first, first + size) for first in range(0, len(slices), size)]
        jobs = [
            self._readers.submit(
                partial(
                    self._fill, buffer, positions[part], halvings[part], slices[part]
                )
            )
            for part in parts
        ]
        lengths = [len(feed.positions_B) for feed in batch]
        feeds = tuple(
            slices[end - length : end]
            for length, end in zip(lengths, np.cumsum(lengths), strict=True)
        )
        self._requested.append(_Read(buffer, feeds, jobs))

    def take(self) -> tuple[Slices, ...]:
        """Wait for the oldest batch requested, and return the slices of each feed.

        Raises:
            StoreError: a shard is damaged, missing, or cannot be read.
            LoaderError: the disk does not respond.
        """
        read = self._requested[0]
        end_s = time.monotonic() + READ_TIMEOUT_S
        try:
            for job in read.jobs:
                # Raises the exception of the thread.
                job.result(max(0.0, end_s - time.monotonic()))
        except futures.TimeoutError as error:
            raise LoaderError(
                f"{self._level.store.path} gave no batch within {READ_TIMEOUT_S:.0f} "
                "s; its disk or network does not respond: check it, then continue with "
                "--resume"
            ) from error
        self._taken.append(self._requested.popleft().buffer)
        return read.feeds

    def release(self) -> None:
        """Let the oldest batch taken be overwritten once the GPU has read it."""
        buffer = self._taken.popleft()
        buffer.mark()
        self._free.append(buffer)

    def discard(self) -> None:
        """Release all batches taken, cancel requests, and wait for reads under way."""
        while self._taken:
            self.release()
        jobs = [job for read in self._requested for job in read.jobs]
        futures.wait([job for job in jobs if not job.cancel()], READ_TIMEOUT_S)
        # A read that still hangs would write into the next batch: drop its buffer.
        for read in self._requested:
            if all(job.done() for job in read.jobs):
                self._free.append(read.buffer)
        self._requested.clear()

    def close(self) -> None:
        """End the threads and free the memory."""
        self.discard()
        self._readers.close()
        while self._free:
            self._free.pop().wait()

    def _fill(
        self,
        buffer: _Buffer,
        positions_B: npt.NDArray[np.int64],
        halvings_B: npt.NDArray[np.int64],
        slices: Slices,
    ) -> None:
        """Read slices into a buffer."""
        buffer.wait()
        jobs = zip(positions_B.tolist(), halvings_B.tolist(), slices, strict=True)
        for position, halvings, out_HW in jobs:
            self._read_into(position, halvings, out_HW)

    def _read_into(
        self, position: int, halvings: int, out_HW: npt.NDArray[np.uint16]
    ) -> None:
        """Read a slice, halved that often."""
        self._level.read_into(position, halvings, out_HW)


class _Buffer:
    """Memory for the slices of a batch, contiguous."""

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._bytes = np.empty(0, np.uint8)
        self._read_by_gpu: torch.cuda.Event | None = None

    def lay_out(self, shape_B2: npt.NDArray[np.int64]) -> Slices:
        """Return slices of these shapes, in this order; their content is undefined."""
        num_bytes = 2 * int(shape_B2[:, 0] @ shape_B2[:, 1])
        if num_bytes > len(self._bytes):
            self.wait()
            allocate = _pinned_bytes if self._pinned else empty_bytes
            self._bytes = allocate(num_bytes)
        return divide(self._bytes[:num_bytes].view(np.uint16), shape_B2)

    def mark(self) -> None:
        """Note the work that is queued on the current CUDA stream now."""
        if self._pinned:
            # A thread that waits for a blocking event sleeps; for another it spins.
            self._read_by_gpu = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._read_by_gpu.record()

    def wait(self) -> None:
        """Wait until the work noted by `mark` is done."""
        if self._read_by_gpu is not None:
            self._read_by_gpu.synchronize()


def _pinned_bytes(num_bytes: int) -> npt.NDArray[np.uint8]:
    """Allocate page-locked memory that begins on a page, as O_DIRECT requires."""
    memory = torch.empty(num_bytes + DIRECT_BYTES, dtype=torch.uint8, pin_memory=True)
    aligned: npt.NDArray[np.uint8] = memory.numpy()
    return aligned[-memory.data_ptr() % DIRECT_BYTES :][:num_bytes]


@dataclass(frozen=True, slots=True)
class _Read:
    """A batch that is being read into a buffer."""

    buffer: _Buffer
    feeds: tuple[Slices, ...]
    jobs: Sequence[Future[None]]


Job = Callable[[], object]


class DaemonThreadPool:
    """Threads that run jobs in order, until the pool is closed or garbage-collected.

    The interpreter joins the threads of a `ThreadPoolExecutor` when the process ends.
    One that waits for a disk that does not respond would never end, and neither would
    the process.
    """

    def __init__(self, count: int) -> None:
        jobs: SimpleQueue[Job | None] = SimpleQueue()
        for _ in range(count):
            threading.Thread(target=_run_jobs, args=(jobs,), daemon=True).start()
        self._jobs = jobs
        self._stop = weakref.finalize(self, _stop_threads, jobs, count)

    def submit(self, job: Job) -> Future[None]:
        """Queue a job; the future ends with it and holds its exception."""
        future: Future[None] = Future()
        self._jobs.put(partial(_run_job, job, future))
        return future

    def close(self) -> None:
        """End each thread after all jobs that were submitted before."""
        self._stop()


def _run_jobs(jobs: SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # frees what the job held while this waits for the next


def _run_job(job: Job, future: Future[None]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        job()
    except BaseException as error:  # noqa: BLE001 - raised by `Future.result`
        future.set_exception(error)
        del job, future  # the error holds this frame
    else:
        future.set_result(None)


def _stop_threads(jobs: SimpleQueue[Job | None], count: int) -> None:
    for _ in range(count):
        jobs.put(None)
