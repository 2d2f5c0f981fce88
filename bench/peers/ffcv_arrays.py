"""FFCV: one file of int16 arrays, its loader, and operations compiled by numba.

`augment.parameters.draw` draws, so the images equal those of ichfast; a test checks
that. `bench.peers.ffcv_operations` holds the operations.

FFCV reuses the memory of its images, so a `Batch` gets a copy. Everything is compiled
in the first epoch. FFCV sets the threads of torch to its own number, in the whole
process.

Source:
    FFCV 1.0.2, docs.ffcv.io, "Writing a dataset to FFCV format" (int16 for uint16) and
    "Tuning Guide": a file that fits in memory is left to the page cache, and there are
    as many workers as cores.

Shape letters: N slices, B slices of a batch, H rows, W columns.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ffcv.fields import IntField, NDArrayField
from ffcv.fields.decoders import IntDecoder
from ffcv.loader import Loader
from ffcv.transforms import ToTensor, ToTorchImage
from ffcv.traversal_order.base import TraversalOrder
from ffcv.writer import DatasetWriter

from bench.harness.measure import BenchError
from bench.peers.ffcv_operations import Halve, ParallelDecoder, Show
from bench.peers.task import LoaderTask
from ichfast.augment.geometry import count_halvings
from ichfast.loading.batch import Batch
from ichfast.loading.sampler import Sampler
from ichfast.store.store import Store

WRITE_LIMIT_S = 120.0
"""Limit for FFCV's writer, seconds; it waits for ever if its worker dies."""

END_POLL_S = 0.6
"""Wait for FFCV's thread, which checks every 0.5 s whether it should end."""


def make(task: LoaderTask) -> FfcvPeer:
    """Build the peer and write its file."""
    return FfcvPeer(task)


class FfcvPeer:
    """FFCV's loader and its file, as a `loading.batch.Loader`. Close it after use."""

    def __init__(self, task: LoaderTask) -> None:
        self._device = task.device
        # Rows of the file, in the order in which ichfast's own loader gives slices.
        rows_N = np.arange(len(task.positions_N))
        self._sampler = replace(task.sampler, slices_N=rows_N)
        self._order = _Order(self._sampler)
        self._show = Show(task)
        self._running: Any = None
        with Store(task.store_path) as store:
            self._labels_NK = torch.from_numpy(store.labels_NK())
        task.beton_dir.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(dir=task.beton_dir)
        try:
            path = Path(self._folder.name, "slices.beton")
            _write_elsewhere(task, path)
            self._loader = self._open(task, path)
        except BaseException:
            self._folder.cleanup()
            raise

    def _open(self, task: LoaderTask, path: Path) -> Any:
        halvings = [Halve() for _ in range(_count_halvings(task))]
        images = [ParallelDecoder(), *halvings, self._show, ToTensor(), ToTorchImage()]
        return Loader(
            str(path),
            batch_size=task.batch_size,
            num_workers=len(os.sched_getaffinity(0)),
            os_cache=True,
            order=self._order,
            drop_last=False,  # the sampler has dropped what it should
            pipelines={"stored": images, "position": [IntDecoder(), ToTensor()]},
        )

    def __len__(self) -> int:
        """Batches in one epoch."""
        return len(self._sampler)

    @property
    def num_slices(self) -> int:
        """Slices in one epoch."""
        return self._sampler.num_slices

    def epoch(self, epoch: int, *, first_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from `first_batch` on, on the task's device."""
        self._end()
        self._order.first_batch, self._show.epoch = first_batch, epoch
        self._loader.next_epoch = epoch
        self._running = iter(self._loader)
        for images_BCHW, position_B1 in self._running:
            indices_B = position_B1[:, 0].clone()
            yield Batch(
                images_BCHW=images_BCHW.to(self._device, copy=True),
                targets_BK=self._labels_NK[indices_B].to(self._device),
                indices_B=indices_B,
            )

    def close(self) -> None:
        """End FFCV's thread and remove the file."""
        self._end()
        self._folder.cleanup()

    def _end(self) -> None:
        """End an epoch that was left early: its thread waits for room in a queue."""
        if self._running is None:
            return
        self._running.close()
        self._running.join(END_POLL_S)
        while self._running.is_alive():
            with suppress(queue.Empty):
                self._running.output_queue.get_nowait()
            self._running.join(END_POLL_S)
        self._running = None


class _Order(TraversalOrder):  # type: ignore[misc]  # FFCV has no types
    """The sampler's order of rows, from `first_batch` on."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self.first_batch = 0

    def __call__(self, _loader: Any) -> _Order:
        """Return this object: FFCV calls the order that it gets."""
        return self

    def sample_order(self, epoch: int) -> npt.NDArray[np.int64]:
        order_N = self._sampler.order(epoch)
        return order_N[self.first_batch * self._sampler.batch_size :]


class _Slices:
    """The dataset that is written: slices of the store and their positions."""

    def __init__(self, task: LoaderTask) -> None:
        self._task = task
        self._store: Store | None = None

    def __len__(self) -> int:
        return len(self._task.positions_N)

    def __getitem__(self, row: int) -> tuple[npt.NDArray[np.int16], int]:
        if self._store is None:  # FFCV's worker opens its own
            self._store = Store(self._task.store_path)
        position = int(self._task.positions_N[row])
        stored_HW = self._store.slice_HW(position, self._task.level)
        # FFCV advises int16, which stored numbers fit in, for uint16.
        return stored_HW.view(np.int16), position


def _write_elsewhere(task: LoaderTask, path: Path) -> None:
    """Write the file from a fresh process: FFCV's writer forks, and may not return."""
    process = multiprocessing.get_context("forkserver").Process(
        target=_write, args=(task, path)
    )
    process.start()
    process.join(WRITE_LIMIT_S)
    if process.exitcode != 0:
        process.kill()
        process.join()
        raise BenchError(
            f"FFCV's writer did not write {path}: exit status {process.exitcode} "
            f"within {WRITE_LIMIT_S:.0f} s, expected 0; see what it printed, or leave "
            "ffcv out of --peers"
        )


def _write(task: LoaderTask, path: Path) -> None:
    dtype = np.dtype(np.int16)
    fields = {"stored": NDArrayField(dtype, _shape(task)), "position": IntField()}
    writer = DatasetWriter(str(path), fields, num_workers=1)
    writer.from_indexed_dataset(_Slices(task))


def _count_halvings(task: LoaderTask) -> int:
    rows, columns = (np.array([side]) for side in _shape(task))
    return int(count_halvings(rows, columns, task.size)[0])


def _shape(task: LoaderTask) -> tuple[int, ...]:
    """Give rows and columns of the slices."""
    with Store(task.store_path) as store:
        return store.slice_HW(int(task.positions_N[0]), task.level).shape
