"""The source of a loader's slices: the disk, or memory that holds them all.

Shape letters: N slices of the store, R slices kept, B slices of a batch, H rows,
W columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ichfast.loading.cache import DeviceSlices, HostSlices
from ichfast.loading.config import DataConfig, slab_positions
from ichfast.loading.prefetch import ReadAhead, SliceRequest
from ichfast.loading.sampler import Sampler
from ichfast.loading.store_level import StoreLevel
from ichfast.store.store import Store
from ichfast.system.ranks import Ranks


class SliceSource(Protocol):
    """A queue of batches: they are taken in the order they were requested."""

    def request(self, batch: Sequence[SliceRequest]) -> None:
        """Announce a batch that will be taken.

        Args:
            batch: slices of each feed. Slices kept on the device are never halved here.
        """

    def take(self) -> tuple[Any, ...]:
        """Wait for the oldest batch requested, and return the slices of each feed.

        Returns:
            For each feed `loading.prefetch.Slices`, or an int16 tensor of shape
            (B, H, W) on the device. They do not change until the batch is released.

        Raises:
            StoreError: a shard is damaged, missing, or cannot be read.
            LoaderError: the disk does not respond.
        """

    def release(self) -> None:
        """Let the oldest batch taken be overwritten, after the work queued so far."""

    def discard(self) -> None:
        """Release all batches taken, and drop all requests.

        Raises:
            LoaderError: slices that were taken since the last call were damaged.
        """

    def close(self) -> None:
        """Free memory and threads."""


def make_slice_source(
    level: StoreLevel,
    sampler: Sampler,
    config: DataConfig,
    *,
    on_gpu: bool,
    ranks: Ranks,
) -> SliceSource:
    """Make the source that `config.cache` names. On a CPU, ``device`` means the host.

    Args:
        level: the level to read; its store must outlive the source.
        sampler: decides which slices may be requested.
        config: cache, whether it stays packed, and neighbours.
        on_gpu: the slices are for the current CUDA device.
        ranks: all processes that share the split. Those of one machine share host
            memory.

    Raises:
        LoaderError: slices do not fit where they are to be kept.
        StoreError: a shard is damaged, missing, or cannot be read.
    """
    if config.cache == "none":
        return ReadAhead(level, pinned=on_gpu)
    packed = level.store.is_packed and config.cache_packed
    if config.cache == "device" and on_gpu:
        picked_N = sampler.slices_N if sampler.shuffle else sampler.order(0)
        kept_R = _with_neighbours(picked_N, level.store, config)
        device = torch.device("cuda", torch.cuda.current_device())
        return DeviceSlices(level, kept_R, packed=packed, device=device, ranks=ranks)
    kept_R = _with_neighbours(sampler.slices_N, level.store, config)
    return HostSlices(level, kept_R, packed=packed, pinned=on_gpu, ranks=ranks)


def _with_neighbours(
    picked_N: npt.NDArray[np.int64], store: Store, config: DataConfig
) -> npt.NDArray[np.int64]:
    """Store positions of slices and of the neighbours read with them, sorted."""
    return np.unique(slab_positions(store, config.neighbours)[picked_N])
