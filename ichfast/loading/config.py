"""How stored slices become a model's input: the settings, and what they settle.

Shape letters: N slices of the store.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ichfast.channels import parse_windows
from ichfast.errors import LoaderError
from ichfast.sampling import check_sampling
from ichfast.store.store import Store

MIN_SIZE, MAX_SIZE = 32, 4096
"""Smallest and largest side of an input, pixels."""

GROWING_SHARE = 2 / 3
SIZE_STEP = 32
"""Of growing sizes. The backbones halve an image five times: 32 pixels make one more
of their smallest map."""

CACHES = ("none", "host", "device")
"""Where a loader may keep its slices."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """How stored slices become a model's input."""

    size: int = 224
    """Side of the square the model sees, pixels."""

    grow_from: int | None = None
    """Side in the first epoch of training, which grows to `size`; None: one size."""

    batch_size: int = 64
    """Slices in a batch, per device."""

    level: int | str = 512
    """Store level to read, or ``auto``: the smallest that is at least `size`."""

    windows: tuple[str, ...] = ("brain",)
    """One channel a window: preset names, CENTER/WIDTH, or ``own``: the header's."""

    neighbours: bool = False
    """Three channels from one window: the slice before, the slice, the one after."""

    normalize: str = "none"
    """``imagenet``; ``data``, mean and std of the training slices; or ``none``."""

    sampling: str = "all"
    """What an epoch trains on: a name of `sampling.SAMPLINGS`."""

    cache: str = "none"
    """Read each slice once and keep it: in ``host`` memory, one copy for all ranks of
    a machine, or in each ``device``'s (on a CPU, the host's). Changes no batch by a
    bit."""

    def __post_init__(self) -> None:
        if not MIN_SIZE <= self.size <= MAX_SIZE:
            raise LoaderError(
                f"data.size is from {MIN_SIZE} to {MAX_SIZE} pixels, got {self.size}"
            )
        if self.grow_from is not None and not MIN_SIZE <= self.grow_from <= self.size:
            raise LoaderError(
                f"data.grow_from is from {MIN_SIZE} to data.size ({self.size}) pixels, "
                f"got {self.grow_from}"
            )
        if self.batch_size < 1:
            raise LoaderError(
                f"data.batch_size must be at least 1, got {self.batch_size}"
            )
        if len(self.windows) not in (1, 3):
            raise LoaderError(
                "data.windows takes 1 window or 3, one a channel, "
                f"got {len(self.windows)}"
            )
        if self.neighbours and len(self.windows) > 1:
            raise LoaderError(
                "data.neighbours shows three slices through one window, "
                f"got {len(self.windows)} windows"
            )
        if self.normalize not in ("imagenet", "data", "none"):
            raise LoaderError(
                "data.normalize is imagenet, data or none, got " + repr(self.normalize)
            )
        if self.cache not in CACHES:
            raise LoaderError(
                f"data.cache is {', '.join(CACHES[:-1])} or {CACHES[-1]}, "
                f"got {self.cache!r}"
            )
        parse_windows(self.windows)
        check_sampling(self.sampling)

    def size_in_epoch(self, epoch: int, num_epochs: int) -> int:
        """Side of the training images in an epoch, pixels.

        It grows evenly over the first `GROWING_SHARE` of the epochs, in steps of
        `SIZE_STEP`; the rest is trained at `size`.

        Args:
            epoch: from 0.
            num_epochs: of the whole run.
        """
        if self.grow_from is None:
            return self.size
        share = min(1.0, epoch / (GROWING_SHARE * num_epochs))
        grown = int(share * (self.size - self.grow_from)) // SIZE_STEP * SIZE_STEP
        return self.size if share == 1.0 else self.grow_from + grown

    @property
    def num_channels(self) -> int:
        """Channels of the images: 1 or 3."""
        return 3 if self.neighbours else len(self.windows)


def choose_level(store: Store, config: DataConfig) -> int:
    """The store level that a loader reads.

    Raises:
        LoaderError: the store was prepared without that level.
    """
    if config.level == "auto":
        enough = [level for level in store.levels if level >= config.size]
        return min(enough, default=max(store.levels))
    if config.level not in store.levels:
        raise LoaderError(
            f"{store.path} has the levels {', '.join(map(str, store.levels))}, not "
            f"{config.level!r}; choose one with --set data.level=N, or prepare again "
            f"with --levels"
        )
    return int(config.level)


def source_shapes(store: Store, level: int) -> npt.NDArray[np.int64]:
    """Rows and columns of every slice at a level, shape (N, 2), int64."""
    if level == max(store.levels):
        return store.table[["rows", "columns"]].to_numpy(np.int64)
    return np.full((len(store), 2), level, dtype=np.int64)
