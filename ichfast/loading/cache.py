"""Slices that a loader reads once and keeps in memory.

`HostSlices` copies each batch out of host memory, `DeviceSlices` gathers it on the
device. Both give the same bits as reading from the disk (`ichfast.loading.prefetch`).

Host memory holds one copy for all ranks of a machine. A device's memory holds all
slices that the epochs of its rank may need: a whole training split for any number of
ranks.

Shape letters: N slices of the store, R slices kept, B slices of a batch, H rows,
W columns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np
import numpy.typing as npt
import torch

from ichfast.errors import LoaderError
from ichfast.loading.gather import gather_slices
from ichfast.loading.prefetch import (
    ReadAhead,
    SliceRequest,
    Slices,
    StoreLevel,
    divide,
)
from ichfast.loading.shared_memory import share_memory
from ichfast.system.memory import available_memory
from ichfast.system.ranks import Ranks
from ichfast.system.terminal import progress
from ichfast.system.upload import upload

CHUNK_SLICES = 64
"""Slices that are read at a time to fill the memory."""

RESERVED_SHARE = 0.1
"""Share of the free memory that is left for everything else."""

GIB = 2**30


class HostSlices(ReadAhead):
    """Slices in this machine's memory. A `loading.slice_source.SliceSource`.

    The threads of `ReadAhead` copy them into batches, and halve them, as if they read
    from the disk. A batch in one piece is uploaded at once; slices that DALI read in
    place would be uploaded one by one, from memory that must be page-locked first.

    All ranks build it with the same arguments, and those of a machine read a part each.

    Args:
        level: the level to read; only needed to build the cache.
        kept_R: store positions that any rank may request, each once.
        pinned: give batches in page-locked memory, and wait for the current CUDA
            stream.
        ranks: all processes that build it.

    Raises:
        LoaderError: the slices do not fit.
        StoreError: a shard is damaged, missing, or cannot be read.
    """

    def __init__(
        self,
        level: StoreLevel,
        kept_R: npt.NDArray[np.int64],
        *,
        pinned: bool,
        ranks: Ranks,
    ) -> None:
        shape_R2 = level.shape_N2[kept_R]
        num_bytes = 2 * int(shape_R2.prod(axis=1).sum())
        _check_fit(num_bytes, available_memory(), "host memory can spare", "none")
        self._row_N = _rows(len(level.shape_N2), kept_R)
        with share_memory(num_bytes, ranks) as shared:
            self._slices = divide(shared.memory.view(np.uint16), shape_R2)
            own = shared.own_part(len(kept_R))
            for first, slices in _read_all(
                level, kept_R[own], pinned=False, ranks=ranks
            ):
                for row, stored_HW in enumerate(slices, own.start + first):
                    self._slices[row][...] = stored_HW
        super().__init__(level, pinned=pinned)

    def _read(self, positions_B: npt.NDArray[np.int64], slices: Slices) -> None:
        rows_B = self._row_N[positions_B]
        if isinstance(self._slices, np.ndarray) and isinstance(slices, np.ndarray):
            # One call, without the interpreter's lock. To clip needs no copy of `out`.
            self._slices.take(rows_B, axis=0, out=slices, mode="clip")
            return
        for row, out_HW in zip(rows_B.tolist(), slices, strict=True):
            out_HW[...] = self._slices[row]

    def _whole_HW(self, position: int) -> npt.NDArray[np.uint16]:
        return self._slices[self._row_N[position]]

    def close(self) -> None:
        """End the threads and free the memory."""
        super().close()
        self._slices = []


class DeviceSlices:
    """Slices in a device's memory, all of one shape.

    A `loading.slice_source.SliceSource`. Batches are gathered on torch's current
    stream.

    Args:
        level: the level to read; only needed to build the cache.
        kept_R: store positions that this rank may request, each once.
        device: where the slices are kept.
        ranks: all processes that build it; the rank that writes shows the progress.

    Raises:
        LoaderError: the slices do not fit, or differ in shape.
        StoreError: a shard is damaged, missing, or cannot be read.
    """

    def __init__(
        self,
        level: StoreLevel,
        kept_R: npt.NDArray[np.int64],
        *,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        shape = _one_shape(level.shape_N2[kept_R], level.level)
        if device.type == "cuda":
            free_bytes = torch.cuda.mem_get_info(device)[0]
            needed_bytes = 2 * len(kept_R) * shape[0] * shape[1]
            _check_fit(needed_bytes, free_bytes, "the GPU can spare", "host or none")
        self._device = device
        self._set_RHW = torch.empty(
            (len(kept_R), *shape), dtype=torch.int16, device=device
        )
        self._row_N = _rows(len(level.shape_N2), kept_R)
        self._requested: deque[Sequence[SliceRequest]] = deque()
        self._taken: deque[tuple[torch.Tensor, ...]] = deque()
        pinned = device.type == "cuda"
        for first, slices in _read_all(level, kept_R, pinned=pinned, ranks=ranks):
            for row, stored_HW in enumerate(slices, first):
                self._set_RHW[row].copy_(
                    torch.from_numpy(stored_HW.view(np.int16)), non_blocking=True
                )

    def request(self, batch: Sequence[SliceRequest]) -> None:
        """Announce a batch that will be taken, given the slices of each feed."""
        self._requested.append(batch)

    def take(self) -> tuple[torch.Tensor, ...]:
        """Return the slices of each feed of the oldest batch requested."""
        self._taken.append(tuple(map(self._pick, self._requested.popleft())))
        return self._taken[-1]

    def _pick(self, feed: SliceRequest) -> torch.Tensor:
        rows_B = upload(self._row_N[feed.positions_B], self._device)
        return gather_slices(self._set_RHW, rows_B)

    def release(self) -> None:
        """Drop the oldest batch taken. Torch reuses its memory after queued work."""
        self._taken.popleft()

    def discard(self) -> None:
        """Release all batches taken, and drop all requests."""
        self._taken.clear()
        self._requested.clear()

    def close(self) -> None:
        """Free the memory."""
        self.discard()
        self._set_RHW = self._set_RHW.new_empty(0)


def _rows(num_slices: int, kept_R: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Row of each store position in the cache, shape (N,); -1 if it is not kept."""
    row_N = np.full(num_slices, -1, dtype=np.int64)
    row_N[kept_R] = np.arange(len(kept_R))
    return row_N


def _read_all(
    level: StoreLevel,
    kept_R: npt.NDArray[np.int64],
    *,
    pinned: bool,
    ranks: Ranks,
) -> Iterator[tuple[int, Slices]]:
    """Read all slices in chunks; yield the first row of a chunk, and its slices."""
    firsts = range(0, len(kept_R), CHUNK_SLICES)
    chunks = [kept_R[first : first + CHUNK_SLICES] for first in firsts]
    reader = ReadAhead(level, pinned=pinned)
    label = "cache" if ranks.writes else ""
    with closing(reader), progress(label, len(kept_R), "slice") as bar:
        for chunk in chunks[:1]:
            reader.request([SliceRequest.unhalved(chunk)])
        for number, first in enumerate(firsts):
            if number + 1 < len(chunks):
                reader.request([SliceRequest.unhalved(chunks[number + 1])])
            (slices,) = reader.take()
            yield first, slices
            reader.release()
            bar.update(len(slices))


def _one_shape(shape_R2: npt.NDArray[np.int64], level: int) -> tuple[int, int]:
    """Rows and columns that all slices have in common.

    Raises:
        LoaderError: the slices differ in shape.
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
    spare_bytes = (1 - RESERVED_SHARE) * free_bytes
    if needed_bytes > spare_bytes:
        raise LoaderError(
            f"the slices to keep take {needed_bytes / GIB:.1f} GiB, {where} "
            f"{spare_bytes / GIB:.1f} GiB; take --cache {instead}, or read a "
            "quarter of the bytes with data.level=256"
        )
