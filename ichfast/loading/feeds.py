"""What the DALI graph is fed, a batch at a time: numbers for each slice, and slices.

`Schedule` says which slices a call is about. `ColumnFeeds` gives the numbers, only
those that the graph uses; `SliceFeeds` the slices, from a `SliceSupply`. DALI calls
both once a batch.

Shape letters: N slices of the store, B slices of the batch, C windows, K classes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ichfast.augment.config import AugmentConfig
from ichfast.augment.geometry import count_halvings, halved_shape
from ichfast.augment.parameters import Parameters, draw
from ichfast.loading.config import MIN_SIZE, OWN, DataConfig, neighbours, window_columns
from ichfast.loading.dali import wrap_columns, wrap_device_slices, wrap_host_slices
from ichfast.loading.graph import FEEDS, HALVING_FEEDS, RESAMPLE_FEEDS, SLICE_FEEDS
from ichfast.loading.prefetch import Wanted
from ichfast.loading.sampler import Sampler
from ichfast.loading.slice_source import SliceSupply
from ichfast.store.store import Store
from ichfast.windows import MIN_WIDTH_HU

DRAWN_SLICES = 256
"""Small batches are drawn several at once, up to so many slices: it is the calls into
NumPy that cost, not the numbers."""


class Schedule:
    """The slices of each call of the epoch that runs."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._first_batch = 0
        self._order = sampler.order(0)
        self.epoch = 0
        self.running = False
        """From `start` until all batches have come out."""

        self._stopped = False

    def start(self, epoch: int, first_batch: int) -> None:
        """Begin an epoch: call 0 is about its batch `first_batch`."""
        self.epoch = epoch
        self._first_batch = first_batch
        self._order = self._sampler.order(epoch)
        self._stopped = False
        self.running = True

    def stop(self) -> None:
        """Every further call is behind the last."""
        self._stopped = True

    def picked(self, call: int) -> npt.NDArray[np.int64]:
        """Store positions of a call's slices; empty behind the last."""
        picked_B = self._sampler.batch(self._order, self._first_batch + call)
        return picked_B[:0] if self._stopped else picked_B

    def picked_or_stop(self, call: int) -> npt.NDArray[np.int64]:
        """Likewise, but raise StopIteration behind the last, as DALI expects."""
        picked_B = self.picked(call)
        if len(picked_B) == 0:
            raise StopIteration
        return picked_B


class Scale:
    """The size of the images, and how often slices are halved on the way to it."""

    def __init__(self, shape_N2: npt.NDArray[np.int64], size: int) -> None:
        """Begin with a size, pixels; `shape_N2` is that of the slices as read."""
        self.shape_N2 = shape_N2
        self.set_size(size)

    def set_size(self, size: int) -> None:
        """Change the side of the images, pixels."""
        self.size = size
        rows_N, columns_N = self.shape_N2.T
        self.halvings_N = count_halvings(rows_N, columns_N, size)


class ColumnFeeds:
    """Gives DALI the numbers of a batch: targets, positions and parameters.

    What a graph that is not whole cannot use is withheld until its batch comes out.
    """

    def __init__(
        self,
        store: Store,
        sampler: Sampler,
        schedule: Schedule,
        augment: AugmentConfig,
        config: DataConfig,
        *,
        scale: Scale,
        whole: bool,
    ) -> None:
        """Decide the feeds; `whole` says whether the graph is."""
        self._schedule = schedule
        self._augment = augment
        self._seed = sampler.seed
        self._batch_size = config.batch_size
        self._num_drawn = max(1, DRAWN_SLICES // config.batch_size)
        self._drawn: dict[str, npt.NDArray[Any]] = {}
        self._withheld: deque[dict[str, npt.NDArray[Any]]] = deque()
        self._scale = scale
        self._labels_NK = store.labels_NK()
        windows_differ = OWN in config.windows or any(augment.window_jitter)
        if windows_differ:
            self._center_NC, self._width_NC = window_columns(store, config.windows)
        unused = {
            *SLICE_FEEDS,
            *(() if windows_differ else ("center", "width")),
            *(() if augment.max_lighting > 0 else ("contrast", "brightness")),
            *(() if augment.cutout_probability > 0 else ("corners", "sides")),
        }
        used = [name for name in FEEDS if name not in unused]
        halvings = [
            f"{name}.{step}"
            for step in range(_most_halvings(scale, sampler))
            for name in HALVING_FEEDS
        ]
        self.feeds = (*used, *halvings) if whole else RESAMPLE_FEEDS
        self._withheld_names = [name for name in used if name not in self.feeds]

    def start(self) -> None:
        """Forget what was withheld in an epoch that has ended."""
        self._withheld.clear()

    def __call__(self, info: Any) -> tuple[Any, ...]:
        """The numbers of one batch, in the order of `feeds`."""
        self._schedule.picked_or_stop(info.iteration)
        place = info.iteration % self._num_drawn
        if place == 0:
            self._drawn = self._draw(info.iteration)
        rows = slice(place * self._batch_size, (place + 1) * self._batch_size)
        if self._withheld_names:
            self._withheld.append(
                {name: self._drawn[name][rows] for name in self._withheld_names}
            )
        return wrap_columns(self._drawn[name][rows] for name in self.feeds)

    def take_withheld(self) -> dict[str, npt.NDArray[Any]]:
        """What was withheld of the next batch that comes out, by name of its feed."""
        return self._withheld.popleft()

    def _draw(self, first_call: int) -> dict[str, npt.NDArray[Any]]:
        """The numbers of some batches, one behind the other."""
        calls = range(first_call, first_call + self._num_drawn)
        picked_B = np.concatenate([self._schedule.picked(call) for call in calls])
        drawn = draw(
            self._augment,
            seed=self._seed,
            epoch=self._schedule.epoch,
            slices_B=picked_B,
            source_shape_B2=(
                self._scale.shape_N2[picked_B]
                / 2.0 ** self._scale.halvings_N[picked_B, np.newaxis]
            ),
            size=self._scale.size,
        )
        names = (*self.feeds, *self._withheld_names)
        return {name: self._column(name, picked_B, drawn) for name in names}

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
                return self._center_NC[picked_B] + drawn.center_shift_B[:, np.newaxis]
            case "width":
                width_BC = self._width_NC[picked_B] + drawn.width_shift_B[:, np.newaxis]
                return np.maximum(width_BC, MIN_WIDTH_HU)
        return _DRAWN[stem](drawn)


def _most_halvings(scale: Scale, sampler: Sampler) -> int:
    """As many as the largest slice and the smallest size need."""
    longest = scale.shape_N2[sampler.slices_N].max(axis=0)
    return int(count_halvings(longest[:1], longest[1:], MIN_SIZE)[0])


_DRAWN: dict[str, Callable[[Parameters], npt.NDArray[np.float32]]] = {
    "matrix": lambda drawn: drawn.matrix_B33,
    "contrast": lambda drawn: drawn.contrast_B[:, np.newaxis],
    "brightness": lambda drawn: drawn.brightness_B[:, np.newaxis],
    "corners": lambda drawn: _flat(drawn.hole_corner_BM2),
    "sides": lambda drawn: _flat(drawn.hole_side_BM2),
}
"""Feeds that are as drawn."""


def _flat(pair_BM2: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return pair_BM2.reshape(len(pair_BM2), -1)


class SliceFeeds:
    """Gives DALI the slices of a batch, and asks for those of later ones."""

    def __init__(
        self,
        store: Store,
        schedule: Schedule,
        supply: SliceSupply,
        config: DataConfig,
        *,
        scale: Scale | None,
        num_ahead: int,
        pinned: bool,
    ) -> None:
        """Decide the feeds.

        Args:
            store: open for reading.
            schedule: of the epoch that runs.
            supply: where the slices come from.
            config: whether neighbours are seen.
            scale: how often the supply halves slices; None: the graph does it.
            num_ahead: batches that are asked for before their turn.
            pinned: the supply's memory is page-locked.
        """
        self._schedule = schedule
        self._supply = supply
        self._scale = scale
        self._num_ahead = num_ahead
        self._pinned = pinned
        self.feeds = SLICE_FEEDS[: 3 if config.neighbours else 1]
        self._neighbours_N = neighbours(store) if config.neighbours else ()

    def start(self) -> None:
        """Ask for the first batches of the epoch that begins."""
        for call in range(self._num_ahead):
            self._ask(call)

    def __call__(self, info: Any) -> tuple[Any, ...]:
        """The slices of one batch, in the order of `feeds`."""
        self._schedule.picked_or_stop(info.iteration)
        self._ask(info.iteration + self._num_ahead)
        return tuple(self._wrap(slices) for slices in self._supply.take())

    def _ask(self, call: int) -> None:
        picked_B = self._schedule.picked(call)
        if len(picked_B):
            others = [other_N[picked_B] for other_N in self._neighbours_N]
            self._supply.ask([self._want(feed_B) for feed_B in (picked_B, *others)])

    def _want(self, positions_B: npt.NDArray[np.int64]) -> Wanted:
        if self._scale is None:
            return Wanted.whole(positions_B)
        return Wanted(positions_B, self._scale.halvings_N[positions_B])

    def _wrap(self, slices: Any) -> Any:
        if isinstance(slices, torch.Tensor):
            return wrap_device_slices(slices)
        return wrap_host_slices(slices, pinned=self._pinned)
