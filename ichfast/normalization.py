"""Mean and standard deviation that a model's input is normalised by.

Shape letters: N slices, C windows, V stored values.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ichfast.channels import parse_windows, window_columns
from ichfast.loading.config import DataConfig, choose_level
from ichfast.store.store import Store
from ichfast.windows import NUM_STORED_VALUES, Normalization, window_table

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
