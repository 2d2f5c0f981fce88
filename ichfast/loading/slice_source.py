"""Where a loader's slices come from: the disk, or memory that holds them all.

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
from ichfast.loading.config import DataConfig, neighbours
from ichfast.loading.prefetch import ReadAhead, Wanted
from ichfast.loading.sampler import Sampler
from ichfast.store.store import Store
from ichfast.system.ranks import Ranks


class SliceSupply(Protocol):
    """Where a loader's slices come from: the disk, or memory."""

    def ask(self, wanted: Sequence[Wanted]) -> None:
        """Name a batch that will be taken, behind those named before.

        Args:
            wanted: slices of each feed. What stays on the device is not halved here.
        """

    def take(self) -> tuple[Any, ...]:
        """The slices of the oldest batch asked for, one value for each feed.

        Returns: For each feed `loading.prefetch.Slices`, or a (B, H, W) int16 tensor on
            the device. They stay as they are until given back.

        Raises:
            StoreError: a shard is damaged, gone, or cannot be read.
            LoaderError: the disk does not answer.
        """

    def give_back(self) -> None:
        """Whatever reads the oldest batch taken has been queued, or is done."""

    def forget(self) -> None:
        """Give back what was taken, and drop what was asked for."""

    def close(self) -> None:
        """Let go of memory and threads."""


def make_supply(
    store: Store,
    sampler: Sampler,
    config: DataConfig,
    shape_N2: npt.NDArray[np.int64],
    *,
    level: int,
    on_gpu: bool,
    ranks: Ranks,
) -> SliceSupply:
    """Make what `config.cache` asks for. On the CPU the device's memory is the host's.

    Args:
        store: open for reading; must outlive what is made.
        sampler: says which slices may be wanted.
        config: cache, and whether neighbours are seen.
        shape_N2: rows and columns of every slice at that level.
        level: the store's level to read.
        on_gpu: slices are wanted by the current CUDA device.
        ranks: who makes one; those of a machine keep slices in host memory together.

    Raises:
        LoaderError: slices that do not fit where they are to be kept.
        StoreError: a shard is damaged, gone, or cannot be read.
    """
    if config.cache == "none":
        return ReadAhead(store, level, shape_N2, pinned=on_gpu)
    if config.cache == "device" and on_gpu:
        picked_N = sampler.slices_N if sampler.shuffle else sampler.order(0)
        kept_R = _with_neighbours(picked_N, store, config)
        device = torch.device("cuda", torch.cuda.current_device())
        return DeviceSlices(store, level, shape_N2, kept_R, device=device, ranks=ranks)
    kept_R = _with_neighbours(sampler.slices_N, store, config)
    return HostSlices(store, level, shape_N2, kept_R, pinned=on_gpu, ranks=ranks)


def _with_neighbours(
    picked_N: npt.NDArray[np.int64], store: Store, config: DataConfig
) -> npt.NDArray[np.int64]:
    """Store positions of slices and of whatever else is seen with them, sorted."""
    others = neighbours(store) if config.neighbours else ()
    return np.unique(
        np.concatenate([picked_N, *(other_N[picked_N] for other_N in others)])
    )
