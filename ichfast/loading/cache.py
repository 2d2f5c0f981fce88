"""Slices that a loader keeps in memory: read once, given out from there.

`HostSlices` hands DALI views, without a copy. `DeviceSlices` gathers each batch on the
device. Both give, bit for bit, what `ichfast.loading.prefetch` reads from the disk.

Host memory holds one copy for all ranks of a machine. A device's holds all slices that
its rank's epochs may need: a training split whole, whatever the number of ranks.

Shape letters: N slices of the store, R slices kept, B slices of a batch, H rows,
W columns.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ichfast.augment.geometry import halved_shape
from ichfast.errors import LoaderError
from ichfast.loading.gather import gather_slices
from ichfast.loading.prefetch import ReadAhead, Slices, Wanted, divide
from ichfast.loading.shared_memory import share_memory
from ichfast.store.levels import halve_into
from ichfast.store.store import Store
from ichfast.system.memory import available_memory
from ichfast.system.ranks import Ranks
from ichfast.system.terminal import progress

CHUNK_SLICES = 64
"""Slices read at a time to fill the memory."""

SPARED_SHARE = 0.1
"""Of the memory that is free, so much is left for everything else."""

GIB = 2**30

Taken = TypeVar("Taken")
"""The slices of a feed, as a batch has them."""


class _Turns(Generic[Taken]):
    """Batches asked for and taken, in turn. What was taken is held until given back."""

    def __init__(self) -> None:
        self._asked: deque[Sequence[Wanted]] = deque()
        self._taken: deque[tuple[Taken, ...]] = deque()

    def ask(self, wanted: Sequence[Wanted]) -> None:
        """Note a batch that will be taken."""
        self._asked.append(wanted)

    def give_back(self) -> None:
        """Let go of the oldest batch taken; torch reuses it behind the queued work."""
        self._taken.popleft()

    def forget(self) -> None:
        """Give back what was taken, and drop what was asked for."""
        self._taken.clear()
        self._asked.clear()


class HostSlices(_Turns[Slices]):
    """Slices in this machine's memory. A `loading.slice_source.SliceSupply`.

    All ranks are to build it alike: each of a machine reads a part.

    Args:
        store: open for reading; only needed to build this.
        level: the store's level to read.
        shape_N2: rows and columns of every slice at that level.
        kept_R: store positions that may be asked for on any rank, each once.
        pinned: lock the memory, so that it can be uploaded without a copy.
        ranks: who builds it.

    Raises:
        LoaderError: the slices do not fit.
        StoreError: a shard is damaged, gone, or cannot be read.
    """

    def __init__(
        self,
        store: Store,
        level: int,
        shape_N2: npt.NDArray[np.int64],
        kept_R: npt.NDArray[np.int64],
        *,
        pinned: bool,
        ranks: Ranks,
    ) -> None:
        shape_R2 = shape_N2[kept_R]
        ends = np.cumsum(shape_R2.prod(axis=1))
        num_bytes = 2 * int(ends[-1])
        _check_fit(num_bytes, available_memory(), "host memory can spare", "none")
        self._row_N = _rows(len(store), kept_R)
        super().__init__()
        self._shape_N2 = shape_N2
        with share_memory(num_bytes, ranks) as shared:
            self._memory = shared.memory.view(np.uint16)
            self._slices = [
                part.reshape(shape)
                for part, shape in zip(
                    np.split(self._memory, ends[:-1]), shape_R2.tolist(), strict=True
                )
            ]
            own = shared.own_part(len(kept_R))
            for first, slices in _read_all(
                store, level, shape_N2, kept_R[own], pinned=False, ranks=ranks
            ):
                for row, stored_HW in enumerate(slices, own.start + first):
                    self._slices[row][...] = stored_HW
        self._unlock = _lock(self, self._memory) if pinned else None

    def take(self) -> tuple[Slices, ...]:
        """Views of the slices, which nothing overwrites; new ones if any is halved."""
        self._taken.append(tuple(self._give(feed) for feed in self._asked.popleft()))
        return self._taken[-1]

    def _give(self, feed: Wanted) -> Slices:
        kept = [self._slices[row] for row in self._row_N[feed.positions_B].tolist()]
        if not feed.halvings_B.any():
            return kept
        shape_B2 = halved_shape(self._shape_N2[feed.positions_B], feed.halvings_B)
        out = divide(np.empty(shape_B2.prod(axis=1).sum(), np.uint16), shape_B2)
        jobs = zip(kept, feed.halvings_B.tolist(), out, strict=True)
        for stored_HW, halvings, out_HW in jobs:
            if halvings == 0:
                out_HW[...] = stored_HW
            else:
                halve_into(stored_HW, halvings, out_HW)
        return out

    def close(self) -> None:
        """Let go of the memory. What was taken must be in use no longer."""
        if self._unlock is not None:
            torch.cuda.synchronize()  # uploads may be under way
            self._unlock()
        self.forget()
        self._slices = []
        self._memory = np.empty(0, np.uint16)


class DeviceSlices(_Turns[torch.Tensor]):
    """Slices in a device's memory, all of one shape.

    A `loading.slice_source.SliceSupply`.

    Args:
        store: open for reading; only needed to build this.
        level: the store's level to read.
        shape_N2: rows and columns of every slice at that level.
        kept_R: store positions that may be asked for, each once.
        device: where they are kept.
        ranks: who builds it; the one that writes shows the progress.

    Raises:
        LoaderError: the slices do not fit, or differ in shape.
        StoreError: a shard is damaged, gone, or cannot be read.
    """

    def __init__(
        self,
        store: Store,
        level: int,
        shape_N2: npt.NDArray[np.int64],
        kept_R: npt.NDArray[np.int64],
        *,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        shape = _one_shape(shape_N2[kept_R], level)
        if device.type == "cuda":
            free_bytes = torch.cuda.mem_get_info(device)[0]
            needed_bytes = 2 * len(kept_R) * shape[0] * shape[1]
            _check_fit(needed_bytes, free_bytes, "the GPU can spare", "host or none")
        self._device = device
        self._set_RHW = torch.empty(
            (len(kept_R), *shape), dtype=torch.int16, device=device
        )
        self._row_N = _rows(len(store), kept_R)
        super().__init__()
        pinned = device.type == "cuda"
        for first, slices in _read_all(
            store, level, shape_N2, kept_R, pinned=pinned, ranks=ranks
        ):
            for row, stored_HW in enumerate(slices, first):
                self._set_RHW[row].copy_(
                    torch.from_numpy(stored_HW.view(np.int16)), non_blocking=True
                )

    def take(self) -> tuple[torch.Tensor, ...]:
        """Gather the oldest batch asked for, on torch's current stream."""
        self._taken.append(
            tuple(
                gather_slices(
                    self._set_RHW,
                    torch.from_numpy(self._row_N[feed.positions_B]).to(
                        self._device, non_blocking=True
                    ),
                )
                for feed in self._asked.popleft()
            )
        )
        return self._taken[-1]

    def close(self) -> None:
        """Let go of the memory."""
        self.forget()
        self._set_RHW = self._set_RHW.new_empty(0)


def _rows(num_slices: int, kept_R: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where each slice of the store is kept, shape (N,); -1: it is not."""
    row_N = np.full(num_slices, -1, dtype=np.int64)
    row_N[kept_R] = np.arange(len(kept_R))
    return row_N


def _read_all(
    store: Store,
    level: int,
    shape_N2: npt.NDArray[np.int64],
    kept_R: npt.NDArray[np.int64],
    *,
    pinned: bool,
    ranks: Ranks,
) -> Iterator[tuple[int, Slices]]:
    """Read slices some at a time: the first one's row, and the slices."""
    firsts = range(0, len(kept_R), CHUNK_SLICES)
    chunks = [kept_R[first : first + CHUNK_SLICES] for first in firsts]
    reader = ReadAhead(store, level, shape_N2, pinned=pinned)
    label = "cache" if ranks.writes else ""
    with closing(reader), progress(label, len(kept_R), "slice") as bar:
        for chunk in chunks[:1]:
            reader.ask([Wanted.whole(chunk)])
        for number, first in enumerate(firsts):
            if number + 1 < len(chunks):
                reader.ask([Wanted.whole(chunks[number + 1])])
            (slices,) = reader.take()
            yield first, slices
            reader.give_back()
            bar.update(len(slices))


def _one_shape(shape_R2: npt.NDArray[np.int64], level: int) -> tuple[int, int]:
    """Rows and columns of all slices.

    Raises:
        LoaderError: they differ.
    """
    shapes, counts = np.unique(shape_R2, axis=0, return_counts=True)
    rows, columns = shapes[counts.argmax()].tolist()
    if len(shapes) > 1:
        num_others = counts.sum() - counts.max()
        raise LoaderError(
            f"--cache device keeps slices of one shape; at level {level} "
            f"{counts.max()} are {rows}x{columns} and {num_others} are not: take "
            "data.level=256, where all are 256x256, or --cache host"
        )
    return rows, columns


def _check_fit(needed_bytes: int, free_bytes: int, where: str, instead: str) -> None:
    spare_bytes = (1 - SPARED_SHARE) * free_bytes
    if needed_bytes > spare_bytes:
        raise LoaderError(
            f"the slices to keep take {needed_bytes / GIB:.1f} GiB, {where} "
            f"{spare_bytes / GIB:.1f} GiB; take --cache {instead}, or read a "
            "quarter of the bytes with data.level=256"
        )


def _lock(owner: object, memory: npt.NDArray[np.uint16]) -> Callable[[], object]:
    """Lock memory for CUDA in place, until called or `owner` is gone.

    Torch's own page-locked memory comes in sizes of 2**n bytes.
    """
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    status = runtime.cudaHostRegister(memory.ctypes.data, memory.nbytes, 0)
    if int(status) != 0:
        raise LoaderError(
            f"cannot lock {memory.nbytes / GIB:.1f} GiB of host memory for CUDA "
            f"({status}); raise the limit (`ulimit -l`), or take --cache none"
        )
    return weakref.finalize(owner, runtime.cudaHostUnregister, memory.ctypes.data)
