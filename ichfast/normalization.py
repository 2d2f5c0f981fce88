"""Mean and standard deviation that a model's input is normalised by.

Shape letters: N slices, C windows, V stored values.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ichfast.loader import DataConfig, choose_level
from ichfast.pipeline import Normalization
from ichfast.store import Store
from ichfast.windows import NUM_STORED_VALUES, window_table

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
    num_channels = len(config.windows)
    if config.normalize == "none":
        return Normalization(mean=(0.0,) * num_channels, std=(1.0,) * num_channels)
    if config.normalize == "imagenet":
        return IMAGENET if num_channels == 3 else IMAGENET_GREY
    level = choose_level(store, config)
    picked_N = slices_N[np.linspace(0, len(slices_N) - 1, NUM_MEASURED).astype(int)]
    count_V = np.zeros(NUM_STORED_VALUES, dtype=np.int64)
    for position in np.unique(picked_N):
        stored_HW = store.slice_HW(int(position), level)
        count_V += np.bincount(stored_HW.ravel(), minlength=NUM_STORED_VALUES)
    share_V = count_V / count_V.sum()
    mean, std = [], []
    for window in config.parsed_windows():
        value_V = window_table(window, mean=0.0, std=1.0).astype(np.float64)
        mean.append(float(value_V @ share_V))
        std.append(float(np.sqrt((value_V - mean[-1]) ** 2 @ share_V)) or 1.0)
    return Normalization(mean=tuple(mean), std=tuple(std))
