"""The task of a loader peer, and the dataset and transforms that peers share.

Shape letters: H rows, W columns, N slices of an epoch, B slices of a batch, S side
of the output.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ichfast.augment.config import AugmentConfig
from ichfast.augment.reference import LOGIT_EPSILON
from ichfast.loading.batch import Batch
from ichfast.loading.config import DataConfig
from ichfast.loading.sampler import Sampler
from ichfast.store.store import Store
from ichfast.windows import HU_OFFSET, Normalization, Window

Transform = Callable[[Any], Tensor]
"""Maps a slice as read to (1, S, S) float16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderTask:
    """One epoch of a loader: the slices, and how they become images."""

    store_path: Path
    positions_N: npt.NDArray[np.int64]
    data: DataConfig
    """Settings of ichfast's loader: among them level, size and batch size."""

    window: Window
    normalization: Normalization
    augment: AugmentConfig
    workers: int
    """Processes of a DataLoader; 0 loads in the calling process."""

    device: str
    png_dir: Path
    """Folder of the files that `bench.peers.fastai_png` reads."""

    npy_dir: Path
    """Folder of the files that `bench.peers.dali_numpy` reads."""

    beton_dir: Path
    """Folder of the file that `bench.peers.ffcv_arrays` reads."""

    shuffle: bool = True
    """False gives the slices in order, with the last, short batch."""

    @property
    def level(self) -> int:
        """Level of the store that is read."""
        assert isinstance(self.data.level, int)
        return self.data.level

    @property
    def size(self) -> int:
        """Side of the model's input, pixels."""
        return self.data.size

    @property
    def batch_size(self) -> int:
        """Slices in a batch."""
        return self.data.batch_size

    @property
    def sampler(self) -> Sampler:
        """The order of ichfast's own loader."""
        return Sampler(
            slices_N=self.positions_N, batch_size=self.batch_size, shuffle=self.shuffle
        )


WORKER_TIMEOUT_S = 60.0
"""Longest wait for a batch of a DataLoader, seconds; its workers may have died."""

Sample = tuple[Tensor, int]
"""A slice, (1, S, S) float16, and its store position."""


class StoredSlices(Dataset[Sample]):
    """Slices of a store by position, each read as uint16 and transformed."""

    def __init__(self, task: LoaderTask, transform: Transform) -> None:
        self._task = task
        self._transform = transform
        self._store: Store | None = None

    def __getitem__(self, position: int) -> Sample:
        if self._store is None:  # a worker opens its own
            self._store = Store(self._task.store_path)
        stored_HW = self._store.slice_HW(position, self._task.level, check=False)
        return self._transform(stored_HW), position


class _Positions:
    """The batches of an epoch as lists of store positions: a batch sampler."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self.epoch = self.first_batch = 0

    def __iter__(self) -> Iterator[list[int]]:
        order_N = self._sampler.order(self.epoch)
        for iteration in range(self.first_batch, len(self._sampler)):
            yield self._sampler.batch(order_N, iteration).tolist()


class DataLoaderPeer:
    """A PyTorch DataLoader as its documentation advises: a `loading.batch.Loader`.

    Workers persist over epochs, prefetch, and start before the clock. The order depends
    on the epoch only. The augmentation of a slice does not: it comes from the random
    state of the peer's library. Close it after use.

    Source:
        PyTorch's tuning guide: several workers, pinned memory for a GPU,
        persistent workers; one thread in each.
    """

    def __init__(self, task: LoaderTask, dataset: Dataset[Sample]) -> None:
        workers: dict[str, Any] = {}
        if task.workers:
            workers = {
                "persistent_workers": True,
                "prefetch_factor": 4,
                "multiprocessing_context": "forkserver",
                "timeout": WORKER_TIMEOUT_S,
            }
        self._device = task.device
        self._sampler = task.sampler
        self._positions = _Positions(self._sampler)
        with Store(task.store_path) as store:
            self._labels_NK = torch.from_numpy(store.labels_NK())
        self._loader = DataLoader(
            dataset,
            batch_sampler=self._positions,
            num_workers=task.workers,
            pin_memory=task.device != "cpu",
            **workers,
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
        self._positions.epoch, self._positions.first_batch = epoch, first_batch
        for images_BCHW, indices_B in self._loader:
            yield Batch(
                images_BCHW=images_BCHW.to(self._device, non_blocking=True),
                targets_BK=self._labels_NK[indices_B].to(self._device),
                indices_B=indices_B,
            )

    def close(self) -> None:
        """End the workers."""
        del self._loader


def window_values(stored_1SS: Tensor, window: Window) -> Tensor:
    """Apply a window.

    Args:
        stored_1SS: Stored numbers, any real type.
        window: Center and width in HU.

    Returns:
        Values in [0, 1], float32, of the same shape.
    """
    low = window.center - window.width / 2 + HU_OFFSET
    return ((stored_1SS.float() - low) / window.width).clamp_(0.0, 1.0)


def normalize(value_1SS: Tensor, normalization: Normalization) -> Tensor:
    """Normalize windowed values for a model.

    Args:
        value_1SS: Values in [0, 1].
        normalization: Mean and deviation of one channel.

    Returns:
        float16 of the same shape.
    """
    return ((value_1SS - normalization.mean[0]) / normalization.std[0]).half()


def relight(value_1SS: Tensor, augment: AugmentConfig) -> Tensor:
    """Change brightness, then contrast, in logit space, each with its probability.

    Args:
        value_1SS: Values in [0, 1]. May be overwritten.
        augment: Gives probability and amount.

    Source:
        fastai v1 `brightness` and `contrast`.
    """
    amount, chance = augment.max_lighting, augment.lighting_probability
    brightness, contrast = 0.0, 1.0
    if random.random() < chance:
        change = 0.5 * (1.0 + random.uniform(-amount, amount))
        brightness = math.log(change / (1.0 - change))
    if random.random() < chance:
        contrast = math.exp(-math.log1p(-amount) * random.uniform(-1.0, 1.0))
    if brightness == 0.0 and contrast == 1.0:
        return value_1SS
    logit_1SS = torch.logit(value_1SS, eps=LOGIT_EPSILON)
    return logit_1SS.add_(brightness).mul_(contrast).sigmoid_()


def cut_holes(value_1SS: Tensor, augment: AugmentConfig) -> Tensor:
    """Cut fastai's square holes into one windowed slice.

    Args:
        value_1SS: Values in [0, 1]. Overwritten.
        augment: Gives probability, number and side of the holes.
    """
    if random.random() >= augment.cutout_probability:
        return value_1SS
    size = value_1SS.shape[-1]
    side = random.randint(*augment.cutout_side)
    for _ in range(random.randint(*augment.cutout_holes)):
        top = random.randrange(size) - (side + 1) // 2
        left = random.randrange(size) - (side + 1) // 2
        value_1SS[
            ..., max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)
        ] = 0.0
    return value_1SS
