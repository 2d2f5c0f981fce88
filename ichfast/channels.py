"""What the channels of a slice are: its windows, or its neighbours in the series.

Shape letters: N slices of the store, C windows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ichfast.store.store import Store
from ichfast.windows import PRESETS, Window, are_windows, parse_window

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
