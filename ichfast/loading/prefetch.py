"""Slices from a store into memory that DALI reads in place, some batches ahead.

Promises:

1. `take` gives what was asked for, in the order of asking, as it is in the store or
   halved as often as asked.
2. What was taken is not written to before it is given back, and on a GPU not before
   the work queued until then is done. So DALI needs no copy of its own.
3. An error while reading reaches whoever takes that batch, as a `StoreError` that
   names the shard. A wait for the disk ends after `PATIENCE_S`.
4. Memory is reused: there are as many slots as batches were ever asked for and not
   given back at one time, each as large as the largest batch it held. One that a read
   still writes to, after that wait, is not.

Reads are system calls by several threads at once: one copy a slice, made without the
interpreter's lock, and a cold disk always has several requests to work on (measured
against memory maps and ``posix_fadvise``: see bench/LOG.md, 2026-11).

Shape letters: N slices of the store, B slices of a batch, H rows, W columns.

Threads that read for their owner, and that the end of a process never waits for.

A `ThreadPoolExecutor` has the interpreter join its threads. One that waits for a disk
that does not answer is never joined, and the process that has said so would not end.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
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
from ichfast.store.levels import halve_into
from ichfast.store.shards import DIRECT_BYTES
from ichfast.store.store import Store
from ichfast.system.memory import empty_bytes

PATIENCE_S = 60.0
"""How long a batch may take to read before the disk counts as dead."""

MOST_READERS = 8
"""Threads that read, at most."""

LEAST_SHARE = 4
"""Slices that a thread takes on at a time; taking on costs as much as some slices."""

AHEAD_BATCHES = 4
AHEAD_SLICES = 256
"""Read ahead: so many batches, or fewer that hold so many slices."""


def num_readers(*, past_cache: bool) -> int:
    """How many threads read: one a core of this process, or two that wait for a disk.

    Out of the page cache they copy, and halve, each in memory of its own: more of them
    than cores push each other out of the processor's cache (bench/LOG.md, 2026-11).
    """
    num_cores = len(os.sched_getaffinity(0))
    return min(MOST_READERS, 2 * num_cores if past_cache else num_cores)


def batches_ahead(batch_size: int) -> int:
    """How many batches to ask for before the first is taken: a few, one at least."""
    return max(1, min(AHEAD_BATCHES, AHEAD_SLICES // batch_size))


Slices = npt.NDArray[np.uint16] | Sequence[npt.NDArray[np.uint16]]
"""Slices in host memory: one array (B, H, W) if all have one shape and lie one behind
the other, else an array (H, W) each. Both give (H, W) arrays one by one."""


def divide(flat: npt.NDArray[np.uint16], shape_B2: npt.NDArray[np.int64]) -> Slices:
    """Cut memory into slices, one behind the other, without a copy.

    Args:
        flat: shape (pixels of all slices,).
        shape_B2: rows and columns of each; one slice at least.
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
class Wanted:
    """Slices of a batch, as asked of whoever supplies them."""

    positions_B: npt.NDArray[np.int64]
    """In the store."""

    halvings_B: npt.NDArray[np.int64]
    """How often each is halved before it is given out."""

    @staticmethod
    def whole(positions_B: npt.NDArray[np.int64]) -> Wanted:
        """Ask for slices as they are stored."""
        return Wanted(positions_B, np.zeros_like(positions_B))


class ReadAhead:
    """Reads slices from the disk. A `loading.slice_source.SliceSupply`.

    Args:
        store: open for reading; must outlive this.
        level: the store's level to read.
        shape_N2: rows and columns of every slice at that level.
        pinned: use page-locked memory, and watch the current CUDA stream.
    """

    def __init__(
        self,
        store: Store,
        level: int,
        shape_N2: npt.NDArray[np.int64],
        *,
        pinned: bool,
    ) -> None:
        self._store = store
        self._level = level
        self._shape_N2 = shape_N2
        self._pinned = pinned
        self._num_readers = num_readers(past_cache=store.past_cache(level))
        self._readers = Readers(self._num_readers)
        self._desk = _Desk()
        self._free: list[_Slot] = []
        self._asked: deque[_Filling] = deque()
        self._taken: deque[_Slot] = deque()

    def ask(self, wanted: Sequence[Wanted]) -> None:
        """Begin to read a batch."""
        slot = self._free.pop() if self._free else _Slot(pinned=self._pinned)
        positions = np.concatenate([feed.positions_B for feed in wanted])
        halvings = np.concatenate([feed.halvings_B for feed in wanted])
        slices = slot.lay_out(halved_shape(self._shape_N2[positions], halvings))
        share = max(-(-len(slices) // self._num_readers), LEAST_SHARE)
        parts = [slice(first, first + share) for first in range(0, len(slices), share)]
        reads = [
            self._readers.submit(
                partial(self._read, slot, positions[part], halvings[part], slices[part])
            )
            for part in parts
        ]
        lengths = [len(feed.positions_B) for feed in wanted]
        self._asked.append(_Filling(slot, slices, lengths, reads))

    def take(self) -> tuple[Slices, ...]:
        """Wait until the oldest batch asked for is there."""
        filling = self._asked[0]
        end_s = time.monotonic() + PATIENCE_S
        try:
            for read in filling.reads:
                # Raises what the reader raised.
                read.result(max(0.0, end_s - time.monotonic()))
        except futures.TimeoutError as error:
            raise LoaderError(
                f"{self._store.path} gave no batch within {PATIENCE_S:.0f} s; its disk "
                "or network does not answer: check it, then continue with --resume"
            ) from error
        self._taken.append(self._asked.popleft().slot)
        return tuple(filling.feeds())

    def give_back(self) -> None:
        """Let the oldest batch taken be overwritten when the GPU has read it."""
        slot = self._taken.popleft()
        slot.mark()
        self._free.append(slot)

    def forget(self) -> None:
        """Give back what was taken, wait for reads under way, drop the others."""
        while self._taken:
            self.give_back()
        _end(read for filling in self._asked for read in filling.reads)
        # A read that the disk has not answered would write to what comes next.
        self._free += [filling.slot for filling in self._asked if filling.has_ended()]
        self._asked.clear()

    def close(self) -> None:
        """End the threads and let go of the memory."""
        self.forget()
        self._readers.close()
        while self._free:
            self._free.pop().wait()

    def _read(
        self,
        slot: _Slot,
        positions_B: npt.NDArray[np.int64],
        halvings_B: npt.NDArray[np.int64],
        slices: Slices,
    ) -> None:
        """Fill slices of a slot."""
        slot.wait()
        jobs = zip(positions_B.tolist(), halvings_B.tolist(), slices, strict=True)
        for position, halvings, out_HW in jobs:
            if halvings == 0:
                self._store.read_into(position, self._level, out_HW)
                continue
            # A thread's own memory, small enough to stay in the processor's cache.
            whole_HW = self._desk.array(*self._shape_N2[position].tolist())
            self._store.read_into(position, self._level, whole_HW)
            halve_into(whole_HW, halvings, out_HW)


def _end(reads: Iterator[futures.Future[None]]) -> None:
    """Cancel reads, and wait for those that run."""
    futures.wait([read for read in reads if not read.cancel()], PATIENCE_S)


class _Desk(threading.local):
    """Each reading thread's memory for the slice that it halves."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)
        self._whole_HW = np.empty((0, 0), np.uint16)

    def array(self, rows: int, columns: int) -> npt.NDArray[np.uint16]:
        """An array of that shape, on a page; what it holds is undefined."""
        if self._whole_HW.shape != (rows, columns):
            num_bytes = 2 * rows * columns
            if num_bytes > len(self._bytes):
                self._bytes = empty_bytes(num_bytes)
            flat = self._bytes[:num_bytes].view(np.uint16)
            self._whole_HW = flat.reshape(rows, columns)
        return self._whole_HW


class _Slot:
    """Memory for the slices of a batch, one behind the other."""

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._bytes = np.empty(0, np.uint8)
        self._read_by_gpu: torch.cuda.Event | None = None

    def lay_out(self, shape_B2: npt.NDArray[np.int64]) -> Slices:
        """Slices of these shapes, in the order given; what they hold is undefined."""
        num_bytes = 2 * int(shape_B2[:, 0] @ shape_B2[:, 1])
        if num_bytes > len(self._bytes):
            self.wait()
            allocate = _pinned_bytes if self._pinned else empty_bytes
            self._bytes = allocate(num_bytes)
        return divide(self._bytes[:num_bytes].view(np.uint16), shape_B2)

    def mark(self) -> None:
        """Note the work that the current CUDA stream has been given until now."""
        if self._pinned:
            self._read_by_gpu = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._read_by_gpu.record()

    def wait(self) -> None:
        """Wait until that work is done."""
        if self._read_by_gpu is not None:
            self._read_by_gpu.synchronize()


def _pinned_bytes(num_bytes: int) -> npt.NDArray[np.uint8]:
    """Page-locked memory that begins on a page, as O_DIRECT wants it."""
    memory = torch.empty(num_bytes + DIRECT_BYTES, dtype=torch.uint8, pin_memory=True)
    aligned: npt.NDArray[np.uint8] = memory.numpy()
    return aligned[-memory.data_ptr() % DIRECT_BYTES :][:num_bytes]


@dataclass(frozen=True, slots=True)
class _Filling:
    """A batch being read into a slot."""

    slot: _Slot
    slices: Slices
    lengths: Sequence[int]
    """Slices of each feed."""

    reads: Sequence[futures.Future[None]]

    def has_ended(self) -> bool:
        """Whether no read writes to the slot any more."""
        return all(read.done() for read in self.reads)

    def feeds(self) -> Iterator[Slices]:
        """The slices of each feed."""
        first = 0
        for length in self.lengths:
            yield self.slices[first : first + length]
            first += length


Job = Callable[[], object]


class Readers:
    """Some threads that do jobs in the order given, until closed or gone."""

    def __init__(self, count: int) -> None:
        jobs: SimpleQueue[Job | None] = SimpleQueue()
        for _ in range(count):
            threading.Thread(target=_work, args=(jobs,), daemon=True).start()
        self._jobs = jobs
        self._dismiss = weakref.finalize(self, _dismiss, jobs, count)

    def submit(self, job: Job) -> Future[None]:
        """Have a job done; what is given back ends with it, and has what it raised."""
        future: Future[None] = Future()
        self._jobs.put(partial(_do, job, future))
        return future

    def close(self) -> None:
        """Let each thread end, behind all jobs given before."""
        self._dismiss()


def _work(jobs: SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # while this waits for the next, nobody holds what the last one read


def _do(job: Job, future: Future[None]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        job()
    except BaseException as error:  # noqa: BLE001 - raised where it is waited for
        future.set_exception(error)
        del job, future  # the error holds this frame
    else:
        future.set_result(None)


def _dismiss(jobs: SimpleQueue[Job | None], count: int) -> None:
    for _ in range(count):
        jobs.put(None)
