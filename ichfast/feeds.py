"""What the DALI graph is fed, a batch at a time: numbers for each slice, and slices.

`Schedule` says which slices a call is about. `ColumnFeeds` gives the numbers, only
those that the graph uses; `SliceFeeds` the slices, from a `SliceSupply`. DALI calls
both once a batch.

Shape letters: N slices of the store, B slices of the batch, C windows, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ichfast.augment import AugmentConfig
from ichfast.channels import OWN, neighbours, window_columns
from ichfast.dataconfig import MIN_SIZE, DataConfig
from ichfast.draws import Parameters, draw
from ichfast.geometry import count_halvings
from ichfast.pipeline import (
    FEEDS,
    HALVING_FEEDS,
    LOGIT_STEPS,
    LOGIT_ZERO,
    SLICE_FEEDS,
    wrap_device_slices,
    wrap_host_slices,
)
from ichfast.sampler import Sampler
from ichfast.store import Store
from ichfast.supply import SliceSupply
from ichfast.twin import MIN_WIDTH_HU


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


class ColumnFeeds:
    """Gives DALI the numbers of a batch: targets, positions and parameters."""

    def __init__(
        self,
        store: Store,
        sampler: Sampler,
        schedule: Schedule,
        augment: AugmentConfig,
        config: DataConfig,
        *,
        shape_N2: npt.NDArray[np.int64],
    ) -> None:
        """Decide the feeds; `shape_N2` is that of the slices at the level read."""
        self._schedule = schedule
        self._augment = augment
        self._seed = sampler.seed
        self._shape_N2 = shape_N2
        self._labels_NK = store.labels_NK()
        windows_differ = OWN in config.windows or any(augment.window_jitter)
        if windows_differ:
            self._center_NC, self._width_NC = window_columns(store, config.windows)
        # Steps that halve: as many as the largest slice and the smallest size need.
        longest = shape_N2[sampler.slices_N].max(axis=0)
        steps = range(int(count_halvings(longest[:1], longest[1:], MIN_SIZE)[0]))
        unused = {
            *SLICE_FEEDS,
            *(() if windows_differ else ("center", "width")),
            *(() if augment.max_lighting > 0 else ("contrast", "brightness")),
            *(() if augment.cutout_probability > 0 else ("corners", "sides")),
        }
        self.feeds = (
            *(name for name in FEEDS if name not in unused),
            *(f"{name}.{step}" for step in steps for name in HALVING_FEEDS),
        )
        self.set_size(config.size)

    def set_size(self, size: int) -> None:
        """Change the side of the output, pixels."""
        self._size = size
        rows_N, columns_N = self._shape_N2.T
        self._halvings_N = count_halvings(rows_N, columns_N, size)

    def __call__(self, info: Any) -> tuple[npt.NDArray[Any], ...]:
        """The numbers of one batch, in the order of `feeds`."""
        picked_B = self._schedule.picked_or_stop(info.iteration)
        drawn = draw(
            self._augment,
            seed=self._seed,
            epoch=self._schedule.epoch,
            slices_B=picked_B,
            source_shape_B2=(
                self._shape_N2[picked_B] / 2.0 ** self._halvings_N[picked_B, np.newaxis]
            ),
            size=self._size,
        )
        return tuple(self._column(name, picked_B, drawn) for name in self.feeds)

    def _column(
        self, name: str, picked_B: npt.NDArray[np.int64], drawn: Parameters
    ) -> npt.NDArray[Any]:
        stem, _, step = name.partition(".")
        match stem:
            case "halves":
                return self._halvings_N[picked_B] > int(step)
            case "halved":  # odd sides are rounded up
                shrink = 2.0 ** (int(step) + 1)
                return np.ceil(self._shape_N2[picked_B] / shrink).astype(np.float32)
            case "target":
                return self._labels_NK[picked_B]
            case "index":
                return picked_B[:, np.newaxis]
            case "size":
                return np.full((len(picked_B), 2), self._size, dtype=np.float32)
            case "center":
                return self._center_NC[picked_B] + drawn.center_shift_B[:, np.newaxis]
            case "width":
                width_BC = self._width_NC[picked_B] + drawn.width_shift_B[:, np.newaxis]
                return np.maximum(width_BC, MIN_WIDTH_HU)
        return _DRAWN[stem](drawn)


_DRAWN: dict[str, Callable[[Parameters], npt.NDArray[np.float32]]] = {
    "matrix": lambda drawn: drawn.matrix_B33,
    # These two in steps of the graph's logit grid.
    "contrast": lambda drawn: drawn.contrast_B[:, np.newaxis] * np.float32(LOGIT_STEPS),
    "brightness": lambda drawn: (
        drawn.brightness_B[:, np.newaxis] * np.float32(LOGIT_STEPS)
        + np.float32(LOGIT_ZERO)
    ),
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
        num_ahead: int,
        pinned: bool,
    ) -> None:
        """Decide the feeds; `num_ahead` batches are asked for before their turn."""
        self._schedule = schedule
        self._supply = supply
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
            self._supply.ask([picked_B, *others])

    def _wrap(self, slices: Any) -> Any:
        if isinstance(slices, torch.Tensor):
            return wrap_device_slices(slices)
        return wrap_host_slices(slices, pinned=self._pinned)
