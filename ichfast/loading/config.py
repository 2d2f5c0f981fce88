"""How stored slices become a model's input: the settings, and what they settle.

Shape letters: N slices of the store.

What the channels of a slice are: its windows, or its neighbours in the series.

Shape letters: N slices of the store, C windows.

Mean and standard deviation that a model's input is normalised by.

Shape letters: N slices, C windows, V stored values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ichfast.errors import LoaderError
from ichfast.loading.sampler import check_sampling
from ichfast.store.store import Store
from ichfast.windows import (
    NUM_STORED_VALUES,
    PRESETS,
    Normalization,
    Window,
    are_windows,
    parse_window,
    window_table,
)

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
    """What an epoch trains on: a name of `loading.sampler.SAMPLINGS`."""

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


OWN = "own"
"""The window that a slice's own header asks for."""

OWN_FALLBACK = PRESETS["brain"]
"""What stands in where the header asks for none that makes sense."""


def parse_windows(names: Sequence[str]) -> tuple[Window, ...]:
    """Windows by name, as `windows.parse_window`; ``own`` gives its stand-in.

    Raises:
        WindowError: a name that is no window.
    """
    return tuple(OWN_FALLBACK if name == OWN else parse_window(name) for name in names)


def window_columns(
    store: Store, names: Sequence[str]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Center and width of every window for every slice, HU.

    Args:
        store: whose table holds the slices' own windows.
        names: C windows; ``own`` differs from slice to slice.

    Returns:
        Two arrays of shape (N, C), float32.
    """
    windows = parse_windows(names)
    asked_C2 = np.array([(w.center, w.width) for w in windows], dtype=np.float32)
    center_NC = np.tile(asked_C2[:, 0], (len(store), 1))
    width_NC = np.tile(asked_C2[:, 1], (len(store), 1))
    own_center_N = store.table["window_center"].to_numpy(np.float64, na_value=np.nan)
    own_width_N = store.table["window_width"].to_numpy(np.float64, na_value=np.nan)
    given_N = are_windows(own_center_N, own_width_N)
    for channel, name in enumerate(names):
        if name == OWN:
            center_NC[given_N, channel] = own_center_N[given_N]
            width_NC[given_N, channel] = own_width_N[given_N]
    return center_NC, width_NC


def neighbours(store: Store) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The slice before and the slice after each slice, along its series.

    At the ends of a series, and where the neighbour has another shape, a slice is
    its own neighbour.

    Returns:
        Store positions, two arrays of shape (N,), int64.
    """
    series_N = store.table["series"].to_numpy(dtype=object)
    shape_N2 = store.table[["rows", "columns"]].to_numpy()
    here_N = np.arange(len(store), dtype=np.int64)
    fits = (series_N[1:] == series_N[:-1]) & (shape_N2[1:] == shape_N2[:-1]).all(axis=1)
    before_N, after_N = here_N.copy(), here_N.copy()
    before_N[1:][fits] -= 1
    after_N[:-1][fits] += 1
    return before_N, after_N


NUM_MEASURED = 256
"""Slices that the data's own figures are measured on, spread over the split."""

IMAGENET = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""What ImageNet's weights expect of three channels."""

IMAGENET_GREY = Normalization(mean=(0.449,), std=(0.226,))
"""The mean over the three, for a single channel."""


def measure_normalization(
    store: Store, slices_N: npt.NDArray[np.int64], config: DataConfig
) -> Normalization:
    """Settle a recipe's ``normalize`` on figures.

    Args:
        store: read for ``data``.
        slices_N: store positions of the training split.
        config: windows, level and the kind of normalisation.
    """
    num_windows = len(config.windows)
    if config.normalize == "none":
        return Normalization(mean=(0.0,) * num_windows, std=(1.0,) * num_windows)
    if config.normalize == "imagenet":
        return IMAGENET if num_windows == 3 else IMAGENET_GREY
    level = choose_level(store, config)
    picked_N = slices_N[np.linspace(0, len(slices_N) - 1, NUM_MEASURED).astype(int)]
    center_NC, width_NC = window_columns(store, config.windows)
    sums_2C = np.zeros((2, num_windows))
    num_pixels = 0
    for position in np.unique(picked_N):
        stored_HW = store.slice_HW(int(position), level)
        count_V = np.bincount(stored_HW.ravel(), minlength=NUM_STORED_VALUES)
        num_pixels += stored_HW.size
        for channel, window in enumerate(parse_windows(config.windows)):
            own = replace(
                window,
                center=float(center_NC[position, channel]),
                width=float(width_NC[position, channel]),
            )
            value_V = window_table(own, mean=0.0, std=1.0).astype(np.float64)
            sums_2C[:, channel] += count_V @ value_V, count_V @ value_V**2
    mean_C, square_C = sums_2C / num_pixels
    std_C = np.sqrt(square_C - mean_C**2)
    std_C[std_C < 1e-6] = 1.0  # nothing varies: an empty window
    return Normalization(mean=tuple(mean_C.tolist()), std=tuple(std_C.tolist()))
