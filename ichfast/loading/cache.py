"""Slices that a loader reads once and keeps in memory, packed if they are so stored.

`HostSlices` copies or unpacks each batch out of host memory. `DeviceSlices` gathers or
unpacks it on the device. Both give the same bits as reading from the disk
(`ichfast.loading.prefetch`).

Host memory holds one copy for all ranks of a machine. A device's memory holds all
slices that the epochs of its rank may need: a whole training split for any number of
ranks.

Shape letters: N slices of the store, R slices kept, B slices of a batch, H rows,
W columns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing

import numpy as np
import numpy.typing as npt
import torch

from ichfast.errors import LoaderError, StoreError
from ichfast.loading.gather import gather_slices, load_kernels, unpack_slices
from ichfast.loading.prefetch import ReadAhead, SliceRequest
from ichfast.loading.shared_memory import share_memory
from ichfast.loading.store_level import Level, StoreLevel, StoreRecords
from ichfast.store.levels import SMALL_LEVEL, halve_into
from ichfast.store.packed_shards import unpack_record
from ichfast.system.memory import available_memory
from ichfast.system.ranks import Ranks
from ichfast.system.terminal import progress
from ichfast.system.upload import upload

CHUNK_SLICES = 64
"""Slices that are read at a time to fill the memory."""

RESERVED_SHARE = 0.1
"""Share of the free memory that is left for everything else."""

GIB = 2**30


class _Layout:
    """Where slices, or their records, lie one after another in memory.

    Args:
        level: the slices, or their records.
        kept_R: store positions in the order of the memory, each once.
    """

    def __init__(self, level: Level, kept_R: npt.NDArray[np.int64]) -> None:
        self.length_N = level.shape_N2.prod(axis=1)
        """Pixels of each slice, or half the bytes of its record."""

        length_R = self.length_N[kept_R]
        self.first_N = np.full(len(self.length_N), -1, dtype=np.int64)
        """The first pixel of each slice in the memory; -1 if it is not kept."""

        self.first_N[kept_R] = np.cumsum(length_R) - length_R
        self.num_pixels = int(length_R.sum())

    def part(self, position: int) -> slice:
        """The part of the memory that holds the slice at a store position."""
        first = int(self.first_N[position])
        return slice(first, first + int(self.length_N[position]))


class HostSlices(ReadAhead):
    """Slices in this machine's memory. A `loading.slice_source.SliceSource`.

    The threads of `ReadAhead` copy or unpack them into batches, and halve them, as if
    they read from the disk. A batch in one piece is uploaded at once; slices that DALI
    read in place would be uploaded one by one, from memory that must be page-locked
    first.

    All ranks build it with the same arguments, and those of a machine read a part each.

    Args:
        level: the level to read; only needed to build the cache.
        kept_R: store positions that any rank may request, each once.
        packed: keep records, of a packed level.
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
        packed: bool,
        pinned: bool,
        ranks: Ranks,
    ) -> None:
        kept = StoreRecords(level) if packed else level
        self._packed = packed
        self._layout = _Layout(kept, kept_R)
        num_bytes = 2 * self._layout.num_pixels
        _check_fit(
            num_bytes,
            available_memory(),
            "host memory can spare",
            "none",
            _smaller(level, kept_R, packed=packed),
        )
        with share_memory(num_bytes, ranks) as shared:
            self._memory = shared.memory.view(np.uint16)
            own_R = kept_R[shared.own_part(len(kept_R))]
            for position, stored_HW in _read_all(
                kept, own_R, pinned=False, ranks=ranks
            ):
                self._memory[self._layout.part(position)] = stored_HW.ravel()
        super().__init__(level, pinned=pinned)

    def _read_into(
        self, position: int, halvings: int, out_HW: npt.NDArray[np.uint16]
    ) -> None:
        kept = self._memory[self._layout.part(position)]
        if self._packed:
            try:
                unpack_record(kept.view(np.uint8), halvings, out_HW)
            except StoreError as error:
                raise LoaderError(
                    f"slice {position} of {self._level.store.path} was damaged in host "
                    f"memory, after it had been checked: {error}; check the "
                    "machine's memory, then continue with --resume"
                ) from error
        elif halvings:
            stored_HW = kept.reshape(self._level.shape_N2[position])
            halve_into(stored_HW, halvings, out_HW)
        else:
            out_HW[...] = kept.reshape(out_HW.shape)

    def close(self) -> None:
        """End the threads and free the memory."""
        super().close()
        self._memory = np.empty(0, np.uint16)


class DeviceSlices:
    """Slices in a device's memory, all of one shape.

    A `loading.slice_source.SliceSource`. Batches are gathered, or unpacked, on torch's
    current stream.

    Args:
        level: the level to read; only needed to build the cache.
        kept_R: store positions that this rank may request, each once.
        packed: keep records, of a packed level, if the device can unpack them.
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
        packed: bool,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        self._shape = _one_shape(level.shape_N2[kept_R], level.level)
        self._device = device
        self._packed = packed and (device.type == "cpu" or bool(load_kernels(device)))
        kept = StoreRecords(level) if self._packed else level
        self._layout = _Layout(kept, kept_R)
        if device.type == "cuda":
            _check_fit(
                2 * self._layout.num_pixels,
                torch.cuda.mem_get_info(device)[0],
                "the GPU can spare",
                "host or none",
                _smaller(level, kept_R, packed=self._packed),
            )
        self._memory = torch.empty(
            self._layout.num_pixels, dtype=torch.int16, device=device
        )
        self._num_damaged = torch.zeros((), dtype=torch.int64, device=device)
        self._requested: deque[Sequence[SliceRequest]] = deque()
        self._taken: deque[tuple[torch.Tensor, ...]] = deque()
        pinned = device.type == "cuda"
        for position, stored_HW in _read_all(kept, kept_R, pinned=pinned, ranks=ranks):
            self._memory[self._layout.part(position)].copy_(
                torch.from_numpy(stored_HW.view(np.int16).ravel()), non_blocking=True
            )

    def request(self, batch: Sequence[SliceRequest]) -> None:
        """Announce a batch that will be taken, given the slices of each feed."""
        self._requested.append(batch)

    def take(self) -> tuple[torch.Tensor, ...]:
        """Return the slices of each feed of the oldest batch requested."""
        self._taken.append(tuple(map(self._pick, self._requested.popleft())))
        return self._taken[-1]

    def _pick(self, feed: SliceRequest) -> torch.Tensor:
        rows, columns = self._shape
        first_B = self._layout.first_N[feed.positions_B]
        if not self._packed:
            rows_B = upload(first_B // (rows * columns), self._device)
            return gather_slices(self._memory.view(-1, rows, columns), rows_B)
        sizes_B = 2 * self._layout.length_N[feed.positions_B].astype(np.int32)
        stored_BHW, errors_B = unpack_slices(
            self._memory.view(torch.uint8),
            upload(2 * first_B, self._device),
            upload(sizes_B, self._device),
            self._shape,
        )
        self._num_damaged += errors_B.sum()
        return stored_BHW

    def release(self) -> None:
        """Drop the oldest batch taken. Torch reuses its memory after queued work."""
        self._taken.popleft()

    def discard(self) -> None:
        """Release all batches taken, and drop all requests.

        The host waits for the device here, and not in `take`.

        Raises:
            LoaderError: records could not be unpacked since the last call.
        """
        self._taken.clear()
        self._requested.clear()
        num_damaged = int(self._num_damaged) if self._packed else 0
        if num_damaged:
            self._num_damaged.zero_()
            raise LoaderError(
                f"{num_damaged} packed slices were damaged in the memory of "
                f"{self._device}, after they had been checked, and came out empty; "
                "check the GPU's memory (nvidia-smi -q -d ECC), then continue with "
                "--resume"
            )

    def close(self) -> None:
        """Free the memory."""
        self._taken.clear()
        self._requested.clear()
        self._memory = self._memory.new_empty(0)


def _read_all(
    level: Level,
    kept_R: npt.NDArray[np.int64],
    *,
    pinned: bool,
    ranks: Ranks,
) -> Iterator[tuple[int, npt.NDArray[np.uint16]]]:
    """Read all slices in chunks; yield the store position of each, and the slice."""
    firsts = range(0, len(kept_R), CHUNK_SLICES)
    chunks = [kept_R[first : first + CHUNK_SLICES] for first in firsts]
    reader = ReadAhead(level, pinned=pinned)
    label = "cache" if ranks.writes else ""
    with closing(reader), progress(label, len(kept_R), "slice") as bar:
        for chunk in chunks[:1]:
            reader.request([SliceRequest.unhalved(chunk)])
        for number, chunk in enumerate(chunks):
            if number + 1 < len(chunks):
                reader.request([SliceRequest.unhalved(chunks[number + 1])])
            (slices,) = reader.take()
            yield from zip(chunk.tolist(), slices, strict=True)
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


def _smaller(
    level: StoreLevel, kept_R: npt.NDArray[np.int64], *, packed: bool
) -> Iterator[str]:
    """Say what to do so that slices take less memory."""
    if not level.store.is_packed:
        share = "third" if level.level == SMALL_LEVEL else "quarter"
        command = f"`ichfast pack {level.store.path} NEW`"
        yield f"pack the store, to a {share}, with {command}"
    elif not packed:
        num_bytes = int(level.store.record_bytes_N(level.level)[kept_R].sum())
        yield (
            f"keep them packed in {num_bytes / GIB:.1f} GiB (data.cache_packed=true, "
            "and on a GPU CuPy)"
        )
    if level.level > SMALL_LEVEL:
        yield f"read a quarter of the bytes with data.level={SMALL_LEVEL}"


def _check_fit(
    needed_bytes: int,
    free_bytes: int,
    where: str,
    instead: str,
    smaller: Iterable[str],
) -> None:
    spare_bytes = (1 - RESERVED_SHARE) * free_bytes
    if needed_bytes > spare_bytes:
        remedies = ", or ".join([f"take --cache {instead}", *smaller])
        raise LoaderError(
            f"the slices to keep take {needed_bytes / GIB:.1f} GiB, {where} "
            f"{spare_bytes / GIB:.1f} GiB; {remedies}"
        )
