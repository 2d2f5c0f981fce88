"""Settings of a loader, and what they mean for a store.

They decide the size and the level that is read, the channels (windows of a slice and
of its neighbours in the series) and the normalisation.

Shape letters: N slices of the store, D slices of a slab, C windows, V stored values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

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
"""Limits of the side of an image, pixels."""

GROWING_SHARE = 2 / 3
"""Share of the epochs in which the images grow."""

MAX_NEIGHBOURS = 2
"""Upper limit of neighbours below a slice, and above it."""

SIZE_STEP = 32
"""Step of growing sizes, pixels. The backbones halve an image five times, so 32 pixels
are one pixel of their smallest map."""

NORMALIZATIONS = ("imagenet", "data", "none")
"""Sources of the normalisation."""

CACHES = ("none", "host", "device")
"""Places where a loader may keep its slices."""

CHECKS = ("first", "always", "never")
"""When a loader compares a slice with its checksum."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Settings that turn stored slices into a model's input.

    Example:
        >>> import ichfast
        >>> config = ichfast.DataConfig(windows=("brain", "subdural", "bone"))
        >>> config.num_channels
        3
    """

    size: int = 224
    """Side of the square images, pixels."""

    grow_from: int | None = None
    """Side in the first epoch of training; it grows to `size`. None keeps one size."""

    batch_size: int = 64
    """Slices in a batch, per device."""

    level: int | str = 512
    """Store level to read, or ``auto``: the smallest level that is at least `size`."""

    square_pixels: bool = True
    """Show a slice whose pixels are not square (`pixel_aspects`) in its proportions in
    mm, whole, with air beside it. False shows every pixel as a square."""

    windows: tuple[str, ...] = ("brain",)
    """Windows through which each slice is seen, a channel each: a preset's name,
    CENTER/WIDTH, or ``own`` for the window in the slice's header."""

    neighbours: int = 0
    """Slices of the series below and above that are channels too, 0 to
    `MAX_NEIGHBOURS`. The channels go from the lowest slice of this slab to the highest,
    and through all windows in each. At an end of the series its last slice repeats. The
    whole slab has the geometry, the windows and the augmentation of its middle
    slice."""

    normalize: str = "none"
    """``imagenet``, ``data`` (figures of the training slices) or ``none``."""

    sampling: str = "all"
    """Slices of a training epoch: a name of `loading.sampler.SAMPLINGS`."""

    bag_slices: int = 16
    """Slices of a study or series that a batch has together, if these have labels that
    their slices lack. A divisor of `batch_size` then."""

    cache: str = "none"
    """Read each slice once and keep it in ``host`` memory, one copy for all ranks of a
    machine, or in the memory of each ``device`` (on a CPU, the host's). Does not change
    a bit of any batch."""

    cache_packed: bool = True
    """Keep the slices of a packed store packed in the cache, in about a quarter of the
    memory. Does not change a bit of any batch."""

    check: str = "first"
    """Compare a slice with its checksum the ``first`` time that a loader reads it from
    the store, ``always`` or ``never``; packed ones always. Does not change a bit of any
    batch."""

    def __post_init__(self) -> None:
        _expect(
            MIN_SIZE <= self.size <= MAX_SIZE,
            f"size is from {MIN_SIZE} to {MAX_SIZE} pixels",
            self.size,
        )
        _expect(
            self.grow_from is None or MIN_SIZE <= self.grow_from <= self.size,
            f"grow_from is from {MIN_SIZE} to data.size ({self.size}) pixels",
            self.grow_from,
        )
        _expect(self.batch_size >= 1, "batch_size must be at least 1", self.batch_size)
        _expect(self.bag_slices >= 1, "bag_slices must be at least 1", self.bag_slices)
        _expect(
            isinstance(self.windows, tuple),
            'windows is a tuple of names, such as ("brain",)',
            self.windows,
        )
        count = len(self.windows)
        _expect(count >= 1, "windows takes at least 1 window", count)
        _expect(
            0 <= self.neighbours <= MAX_NEIGHBOURS,
            f"neighbours is from 0 to {MAX_NEIGHBOURS} slices",
            self.neighbours,
        )
        for name, values in (
            ("normalize", NORMALIZATIONS),
            ("cache", CACHES),
            ("check", CHECKS),
        ):
            found = getattr(self, name)
            rule = f"{name} is {', '.join(values[:-1])} or {values[-1]}"
            _expect(found in values, rule, found)
        parse_windows(self.windows)
        check_sampling(self.sampling)

    def size_in_epoch(self, epoch: int, num_epochs: int) -> int:
        """Side of the training images in an epoch, pixels.

        It grows evenly over the first `GROWING_SHARE` of the epochs, in steps of
        `SIZE_STEP`, and is `size` after that.

        Args:
            epoch: counted from 0.
            num_epochs: number of epochs in the whole run.
        """
        if self.grow_from is None:
            return self.size
        share = min(1.0, epoch / (GROWING_SHARE * num_epochs))
        grown = int(share * (self.size - self.grow_from)) // SIZE_STEP * SIZE_STEP
        return self.size if share == 1.0 else self.grow_from + grown

    @property
    def slab_depth(self) -> int:
        """Slices of a slab: one, and its neighbours below and above."""
        return 2 * self.neighbours + 1

    @property
    def num_channels(self) -> int:
        """Channels of the images."""
        return self.slab_depth * len(self.windows)

    @property
    def shown_channels(self) -> slice:
        """Channels of the middle slice that a picture shows.

        Three windows are red, green and blue. Of another number the first is grey.
        """
        first = self.neighbours * len(self.windows)
        return slice(first, first + (3 if len(self.windows) == 3 else 1))


def _expect(valid: bool, rule: str, found: object) -> None:
    if not valid:
        raise LoaderError(f"data.{rule}, got {found!r}")


def choose_level(store: Store, config: DataConfig) -> int:
    """Choose the store level that a loader reads.

    Args:
        store: with one level or more.
        config: level and size.

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
            "with --levels"
        )
    return int(config.level)


def source_shapes(store: Store, level: int) -> npt.NDArray[np.int64]:
    """Rows and columns of every slice at a level.

    Args:
        store: with that level.
        level: the largest level holds slices of any shape, the others square ones.

    Returns:
        Shape (N, 2), int64.
    """
    if level == max(store.levels):
        return store.table[["rows", "columns"]].to_numpy(np.int64)
    return np.full((len(store), 2), level, dtype=np.int64)


MIN_ASPECT_ERROR = 0.01
"""Lower limit of the deviation from a square, of the height of a pixel over its width.
A side of 512 pixels is then 5 pixels off."""

MAX_ASPECT = 4.0
"""Upper limit of the longer side of a pixel over its shorter one. Beyond it the header
is wrong."""


def pixel_aspects(table: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Height of a pixel over its width; 1 where it is square, or that is not known.

    Args:
        table: a store's, N slices.

    Returns:
        Shape (N,), float64, from 1 / `MAX_ASPECT` to `MAX_ASPECT`.
    """
    row_N, column_N = (
        table[name].to_numpy(np.float64, na_value=np.nan)
        for name in ("row_spacing_mm", "column_spacing_mm")
    )
    is_given_N = (row_N > 0) & (column_N > 0)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        aspect_N = row_N / column_N
    is_plausible_N = (aspect_N >= 1 / MAX_ASPECT) & (aspect_N <= MAX_ASPECT)
    differs_N = is_given_N & is_plausible_N & (abs(aspect_N - 1) > MIN_ASPECT_ERROR)
    return np.where(differs_N, aspect_N, 1.0)


OWN = "own"
"""Name of the window in a slice's own header."""

OWN_FALLBACK = PRESETS["brain"]
"""Window of a slice whose header has none, or an invalid one."""


def parse_windows(names: Sequence[str]) -> tuple[Window, ...]:
    """Parse windows as `windows.parse_window` does; ``own`` gives `OWN_FALLBACK`.

    Raises:
        WindowError: a name is not a window.
    """
    return tuple(OWN_FALLBACK if name == OWN else parse_window(name) for name in names)


def window_columns(
    store: Store, names: Sequence[str]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Center and width of each window for each slice.

    Args:
        store: its table holds the slices' own windows.
        names: C windows; ``own`` differs by slice.

    Returns:
        Centers and widths, HU, shape (N, C) each, float32.

    Raises:
        WindowError: a name is not a window.
    """
    windows = parse_windows(names)
    window_C2 = np.array([(w.center, w.width) for w in windows], dtype=np.float32)
    center_NC = np.tile(window_C2[:, 0], (len(store), 1))
    width_NC = np.tile(window_C2[:, 1], (len(store), 1))
    own_center_N = store.table["window_center"].to_numpy(np.float64, na_value=np.nan)
    own_width_N = store.table["window_width"].to_numpy(np.float64, na_value=np.nan)
    given_N = are_windows(own_center_N, own_width_N)
    for channel, name in enumerate(names):
        if name == OWN:
            center_NC[given_N, channel] = own_center_N[given_N]
            width_NC[given_N, channel] = own_width_N[given_N]
    return center_NC, width_NC


def slab_positions(store: Store, neighbours: int) -> npt.NDArray[np.int64]:
    """Store positions of the slices of the slab around each slice.

    The last slice repeats at an end of a series, and next to a slice of another shape.

    Args:
        store: its slices lie one after another in their series.
        neighbours: slices below each slice, and above it.

    Returns:
        Shape (N, D), int64, from the lowest slice to the highest.
    """
    here_N = np.arange(len(store), dtype=np.int64)
    if neighbours == 0:
        return here_N[:, np.newaxis]
    series_N = store.table["series"].to_numpy(dtype=object)
    shape_N2 = store.table[["rows", "columns"]].to_numpy()
    fits = (series_N[1:] == series_N[:-1]) & (shape_N2[1:] == shape_N2[:-1]).all(axis=1)
    below_N, above_N = here_N.copy(), here_N.copy()
    below_N[1:][fits] -= 1
    above_N[:-1][fits] += 1
    slab = [here_N]
    for _ in range(neighbours):
        slab = [below_N[slab[0]], *slab, above_N[slab[-1]]]
    return np.stack(slab, axis=1)


NUM_MEASURED = 256
"""Slices, spread over the split, on which ``data`` is measured."""

IMAGENET = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""Normalisation of three windows for weights trained on ImageNet."""

IMAGENET_GREY = Normalization(mean=(0.449,), std=(0.226,))
"""Mean of `IMAGENET` over its channels, for each of another number of windows."""


def no_normalization(num_windows: int) -> Normalization:
    """Make a normalisation that leaves windowed values in [0, 1]."""
    return Normalization(mean=(0.0,) * num_windows, std=(1.0,) * num_windows)


def measure_normalization(
    store: Store, slices_N: npt.NDArray[np.int64], config: DataConfig
) -> Normalization:
    """Determine mean and standard deviation per window, as `config.normalize` asks.

    Args:
        store: read only for ``data``.
        slices_N: store positions of the training split.
        config: windows, level, the kind of normalisation, and whether slices are
            compared with their checksums.

    Raises:
        LoaderError: the store lacks the level to measure.
        StoreError: a shard is damaged, missing, or cannot be read.
    """
    num_windows = len(config.windows)
    if config.normalize == "none":
        return no_normalization(num_windows)
    if config.normalize == "imagenet":
        if num_windows == 3:
            return IMAGENET
        (mean,), (std,) = IMAGENET_GREY.mean, IMAGENET_GREY.std
        return Normalization(mean=(mean,) * num_windows, std=(std,) * num_windows)
    level = choose_level(store, config)
    picked_N = slices_N[np.linspace(0, len(slices_N) - 1, NUM_MEASURED).astype(int)]
    center_NC, width_NC = window_columns(store, config.windows)
    sums_2C = np.zeros((2, num_windows))
    num_pixels = 0
    for position in np.unique(picked_N):
        check = config.check != "never"
        stored_HW = store.slice_HW(int(position), level, check=check)
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
    std_C[std_C < 1e-6] = 1.0  # all values are the same
    return Normalization(mean=tuple(mean_C.tolist()), std=tuple(std_C.tolist()))
