"""The inputs of the DALI graph: numbers for each slice of a batch, and the slices.

DALI calls a feed once per batch. `ColumnFeeds` returns the numbers, `SliceFeeds` the
slices, and `Schedule` decides which slices a call is about. `LoaderFeeds` holds them
together for a loader.

Shape letters: N slices of the store, B slices of the batch, D slices of a slab,
C windows, K classes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ichfast.augment.config import AugmentConfig
from ichfast.augment.geometry import count_halvings, halved_shape, square
from ichfast.augment.parameters import Parameters, draw, draw_depth_flips
from ichfast.loading.config import (
    OWN,
    DataConfig,
    pixel_aspects,
    slab_positions,
    window_columns,
)
from ichfast.loading.dali import wrap_columns, wrap_device_slices, wrap_host_slices
from ichfast.loading.graph import (
    DRAWN_FEEDS,
    HALVING_FEEDS,
    RESAMPLE_FEEDS,
    SLICE_FEED,
    WINDOW_FEEDS,
)
from ichfast.loading.prefetch import SliceRequest, batches_ahead
from ichfast.loading.sampler import Sampler
from ichfast.loading.slice_source import SliceSource, make_slice_source
from ichfast.loading.store_level import StoreLevel
from ichfast.store.store import Store
from ichfast.system.ranks import Ranks
from ichfast.windows import MIN_WIDTH_HU

DRAWN_SLICES = 256
"""Small batches are drawn together, up to this many slices, because the calls into
NumPy cost more than the numbers."""

Columns = dict[str, npt.NDArray[Any]]
"""Arrays of shape (B, ...) by the name of their feed."""


class Schedule:
    """Decides which slices a call of the current epoch is about."""

    def __init__(self, sampler: Sampler) -> None:
        self.epoch = 0
        self.running = False
        """True from `start` until all batches of the epoch have come out."""

        self._sampler = sampler
        self._order = sampler.order(0)
        self._first_batch = 0
        self._stopped = False

    def start(self, epoch: int, first_batch: int) -> None:
        """Begin an epoch.

        Args:
            epoch: counted from 0.
            first_batch: the batch of the epoch that call 0 is about.
        """
        self.epoch = epoch
        self._first_batch = first_batch
        self._order = self._sampler.order(epoch)
        self._stopped = False
        self.running = True

    def stop(self) -> None:
        """End the epoch before its next call."""
        self._stopped = True

    def picked(self, call: int) -> npt.NDArray[np.int64]:
        """Store positions of a call's slices; empty after the last call."""
        picked_B = self._sampler.batch(self._order, self._first_batch + call)
        return picked_B[:0] if self._stopped else picked_B

    def picked_or_stop(self, call: int) -> npt.NDArray[np.int64]:
        """Store positions of a call's slices; StopIteration after the last call."""
        picked_B = self.picked(call)
        if len(picked_B) == 0:
            raise StopIteration
        return picked_B


class Scale:
    """The size of the images, and how often each slice is halved to reach it.

    Args:
        shape_N2: rows and columns of the slices as read.
        size: side of the images, pixels.
    """

    def __init__(self, shape_N2: npt.NDArray[np.int64], size: int) -> None:
        self.shape_N2 = shape_N2
        self.size = size
        self.halvings_N = self._count_halvings()

    def set_size(self, size: int) -> None:
        """Change the side of the images, pixels."""
        self.size = size
        self.halvings_N = self._count_halvings()

    def _count_halvings(self) -> npt.NDArray[np.int64]:
        return count_halvings(self.shape_N2[:, 0], self.shape_N2[:, 1], self.size)

    def max_halvings(self, slices_N: npt.NDArray[np.int64]) -> int:
        """Halvings of the slice, of those given, that is halved most often."""
        return int(self.halvings_N[slices_N].max())


class SliceNumbers:
    """Computes the numbers of slices: labels, sizes, windows and drawn parameters.

    Args:
        store: for labels, the slices' own windows, and the size of their pixels.
        config: windows, and whether pixels are shown as squares.
        augment: the distributions to draw from.
        seed: run seed.
        scale: size of the images and of the slices.
    """

    def __init__(
        self,
        store: Store,
        config: DataConfig,
        augment: AugmentConfig,
        seed: int,
        scale: Scale,
    ) -> None:
        self._augment = augment
        self._seed = seed
        self._scale = scale
        self._labels_NK = store.labels_NK()
        self._shape_N2 = store.table[["rows", "columns"]].to_numpy(np.int64)
        self._aspect_N = pixel_aspects(store.table) if config.square_pixels else None
        self._windows: Columns = {}
        """Center and width, shape (N, C) each, if windows differ by slice."""

        if OWN in config.windows or any(augment.window_jitter):
            columns = window_columns(store, config.windows)
            self._windows = dict(zip(WINDOW_FEEDS, columns, strict=True))

    def used(self) -> list[str]:
        """Names of the numbers that this augmentation and these windows need."""
        drawn = (
            name for name, each in DRAWN_FEEDS.items() if each.is_used(self._augment)
        )
        return ["target", "index", "matrix", "size", *self._windows, *drawn]

    def compute(
        self, names: Iterable[str], epoch: int, picked_B: npt.NDArray[np.int64]
    ) -> Columns:
        """Compute numbers of some slices.

        Args:
            names: names of feeds.
            epoch: counted from 0.
            picked_B: store positions.
        """
        halvings_B1 = self._scale.halvings_N[picked_B, np.newaxis]
        drawn = draw(
            self._augment,
            seed=self._seed,
            epoch=epoch,
            slices_B=picked_B,
            source_shape_B2=self._scale.shape_N2[picked_B] / 2.0**halvings_B1,
            size=self._scale.size,
            square_B33=self._square_B33(picked_B),
        )
        return {name: self._column(name, picked_B, drawn) for name in names}

    def _square_B33(
        self, picked_B: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64] | None:
        if self._aspect_N is None:
            return None
        return square(self._shape_N2[picked_B], self._aspect_N[picked_B])

    def _column(
        self, name: str, picked_B: npt.NDArray[np.int64], drawn: Parameters
    ) -> npt.NDArray[Any]:
        stem, _, step = name.partition(".")
        match stem:
            case "halves":
                return self._scale.halvings_N[picked_B] > int(step)
            case "halved":
                times_B = np.full(len(picked_B), int(step) + 1)
                shape_B2 = halved_shape(self._scale.shape_N2[picked_B], times_B)
                return shape_B2.astype(np.float32)
            case "target":
                return self._labels_NK[picked_B]
            case "index":
                return picked_B[:, np.newaxis]
            case "size":
                return np.full((len(picked_B), 2), self._scale.size, dtype=np.float32)
            case "center":
                return self._windows[stem][picked_B] + drawn.center_shift_B[:, None]
            case "width":
                width_BC = self._windows[stem][picked_B] + drawn.width_shift_B[:, None]
                return np.maximum(width_BC, MIN_WIDTH_HU)
            case "matrix":
                return drawn.matrix_B33
        return DRAWN_FEEDS[stem].values(drawn).reshape(len(picked_B), -1)


class ColumnFeeds:
    """Gives DALI the numbers of a batch.

    A graph that only resamples takes a few of them. The others are held back until the
    batch comes out.

    Args:
        numbers: computes the numbers.
        schedule: of the current epoch.
        batch_size: slices in a full batch.
        num_halvings: halving steps of a whole graph.
        whole: the graph does all steps, not only the resample.
    """

    def __init__(
        self,
        numbers: SliceNumbers,
        schedule: Schedule,
        *,
        batch_size: int,
        num_halvings: int,
        whole: bool,
    ) -> None:
        self._numbers = numbers
        self._schedule = schedule
        self._batch_size = batch_size
        self._num_drawn = max(1, DRAWN_SLICES // batch_size)
        self._drawn: Columns = {}
        self._held_back: deque[Columns] = deque()
        used = numbers.used()
        halvings = [
            f"{name}.{k}" for k in range(num_halvings) for name in HALVING_FEEDS
        ]
        self.feeds = (*used, *halvings) if whole else RESAMPLE_FEEDS
        self._other_names = [name for name in used if name not in self.feeds]

    def start(self) -> None:
        """Drop the numbers that an earlier epoch has held back."""
        self._held_back.clear()

    def __call__(self, info: Any) -> tuple[Any, ...]:
        """Return the numbers of one batch, in the order of `feeds`."""
        self._schedule.picked_or_stop(info.iteration)
        place = info.iteration % self._num_drawn
        if place == 0:
            calls = range(info.iteration, info.iteration + self._num_drawn)
            picked_B = np.concatenate([self._schedule.picked(call) for call in calls])
            names = (*self.feeds, *self._other_names)
            self._drawn = self._numbers.compute(names, self._schedule.epoch, picked_B)
        rows = slice(place * self._batch_size, (place + 1) * self._batch_size)
        if self._other_names:
            self._held_back.append(
                {name: self._drawn[name][rows] for name in self._other_names}
            )
        return wrap_columns(self._drawn[name][rows] for name in self.feeds)

    def take_held_back(self) -> Columns:
        """Return what was held back of the batch that comes out next."""
        return self._held_back.popleft()


class Slabs:
    """The slices that are read for each slice, in the order of the channels.

    A slab is flipped in depth by the order in which its slices are read.

    Args:
        store: open for reading.
        config: neighbours.
        augment: how often a slab is flipped.
        seed: run seed.
    """

    def __init__(
        self, store: Store, config: DataConfig, augment: AugmentConfig, seed: int
    ) -> None:
        self.augment = augment
        self.depth = config.slab_depth
        self._slab_ND = slab_positions(store, config.neighbours)
        self._seed = seed

    def positions_BD(
        self, epoch: int, picked_B: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Store positions of the slices of some slabs.

        Args:
            epoch: counted from 0.
            picked_B: store positions of the middle slices.
        """
        slab_BD = self._slab_ND[picked_B]
        if self.augment.depth_flip_probability:
            is_flipped_B = draw_depth_flips(
                self.augment, seed=self._seed, epoch=epoch, slices_B=picked_B
            )
            slab_BD[is_flipped_B] = slab_BD[is_flipped_B, ::-1]
        return slab_BD


class SliceFeeds:
    """Gives DALI the slabs of a batch, and requests those of later batches.

    Args:
        schedule: of the current epoch.
        source: where the slices come from.
        slabs: the slices to read.
        batch_size: slabs in a full batch.
        scale: how often the source halves slices; None if the graph halves them.
        pinned: the source's memory is page-locked.
    """

    def __init__(
        self,
        schedule: Schedule,
        source: SliceSource,
        slabs: Slabs,
        *,
        batch_size: int,
        scale: Scale | None,
        pinned: bool,
    ) -> None:
        self._schedule = schedule
        self._source = source
        self._slabs = slabs
        self._scale = scale
        self._num_ahead = batches_ahead(batch_size)
        self._pinned = pinned
        self.feeds = tuple(f"{SLICE_FEED}.{k}" for k in range(slabs.depth))

    def start(self) -> None:
        """Request the first batches of the epoch that begins."""
        for call in range(self._num_ahead):
            self._request(call)

    def __call__(self, info: Any) -> tuple[Any, ...]:
        """Return the slabs of one batch, in the order of `feeds`."""
        self._schedule.picked_or_stop(info.iteration)
        self._request(info.iteration + self._num_ahead)
        return tuple(self._wrap(slices) for slices in self._source.take())

    def _request(self, call: int) -> None:
        picked_B = self._schedule.picked(call)
        if len(picked_B):
            slab_BD = self._slabs.positions_BD(self._schedule.epoch, picked_B)
            self._source.request([self._halved(each_B) for each_B in slab_BD.T])

    def _halved(self, positions_B: npt.NDArray[np.int64]) -> SliceRequest:
        if self._scale is None:
            return SliceRequest.unhalved(positions_B)
        return SliceRequest(positions_B, self._scale.halvings_N[positions_B])

    def _wrap(self, slices: Any) -> Any:
        if isinstance(slices, torch.Tensor):
            return wrap_device_slices(slices)
        return wrap_host_slices(slices, pinned=self._pinned)


class LoaderFeeds:
    """All inputs of a loader's graph, from the start of an epoch to its end.

    Args:
        store: open for reading; must outlive the feeds.
        sampler: the order of the slices.
        config: settings of the loader.
        level: the store's level to read.
        augment: the distributions to draw from.
        whole: the graph does all steps, not only the resample.
        on_gpu: the graph runs on the current CUDA device.
        ranks: all processes that share the split.

    Raises:
        LoaderError: slices do not fit where they are to be kept.
        StoreError: a shard is damaged, missing, or cannot be read.
    """

    def __init__(  # noqa: PLR0913 - all that a loader was made with
        self,
        store: Store,
        sampler: Sampler,
        config: DataConfig,
        *,
        level: int,
        augment: AugmentConfig,
        whole: bool,
        on_gpu: bool,
        ranks: Ranks,
    ) -> None:
        self._store = store
        self._sampler = sampler
        self._config = config
        self._whole = whole
        store_level = StoreLevel(store, level, config.check)
        self._scale = Scale(store_level.shape_N2, config.size)
        self.schedule = Schedule(sampler)
        self.source = make_slice_source(
            store_level, sampler, config, on_gpu=on_gpu, ranks=ranks
        )
        self._slabs = Slabs(store, config, augment, sampler.seed)
        self.slices = SliceFeeds(
            self.schedule,
            self.source,
            self._slabs,
            batch_size=config.batch_size,
            scale=None if whole else self._scale,
            pinned=on_gpu,
        )
        self.augment = augment
        self.columns = self._make_columns()

    def _make_columns(self) -> ColumnFeeds:
        numbers = SliceNumbers(
            self._store, self._config, self.augment, self._sampler.seed, self._scale
        )
        return ColumnFeeds(
            numbers,
            self.schedule,
            batch_size=self._config.batch_size,
            num_halvings=self._max_halvings(),
            whole=self._whole,
        )

    def _max_halvings(self) -> int:
        return self._scale.max_halvings(self._sampler.slices_N)

    def set_size(self, size: int) -> bool:
        """Change the side of the images, pixels, between two epochs.

        Returns:
            True if the graph needs another number of halving steps, and so must be
            built again. A step that is never used costs as much as the resample.
        """
        before = self._max_halvings()
        self._scale.set_size(size)
        if not self._whole or self._max_halvings() == before:
            return False
        self.columns = self._make_columns()
        return True

    def set_augment(self, augment: AugmentConfig) -> None:
        """Draw from other distributions; the graph must be built again."""
        self.augment = self._slabs.augment = augment
        self.columns = self._make_columns()

    def start(self, epoch: int, first_batch: int) -> None:
        """Begin an epoch.

        Args:
            epoch: counted from 0.
            first_batch: the first batch that comes out.
        """
        self.schedule.start(epoch, first_batch)
        self.columns.start()
        self.slices.start()
