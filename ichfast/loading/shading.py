"""Windows, lighting and holes on a CPU: one table per slice, looked up by NumPy.

The result for a pixel depends only on its stored number, and a window has few numbers
between black and white. So these numbers are windowed, lit and normalised once per
slice, instead of every pixel, and one look-up gives all channels. DALI has no look-up
with a table per slice on a CPU, and its alternative takes four times as long
(bench/LOG.md, 2026-11). On a GPU these steps are part of the graph
(`ichfast.loading.graph`).

Shape letters: B slices of the batch, S side of the images, D slices of a slab,
C windows, T stored numbers of a table, M holes of a slice (used or not), X used holes
of all slices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ichfast.augment.reference import Numbers, change_values
from ichfast.windows import (
    HU_OFFSET,
    NUM_STORED_VALUES,
    Normalization,
    Window,
    window_values,
)

SIGMOID_REACH = 4.5
"""Distance from its center at which a sigmoid window is black or white, in widths; the
error is 2e-8."""


class Shader:
    """Makes images from resampled slices.

    Args:
        windows: C windows, in channel order.
        normalization: mean and standard deviation per window.
    """

    def __init__(self, windows: Sequence[Window], normalization: Normalization) -> None:
        self._windows = windows
        self._normalization = normalization
        self._center_1C = np.array([[each.center for each in windows]], np.float32)
        self._width_1C = np.array([[each.width for each in windows]], np.float32)
        self._air_C = self._tables({})[0, 0]

    def __call__(
        self, warped_BSSD: npt.NDArray[np.uint16], numbers: Mapping[str, Numbers]
    ) -> npt.NDArray[np.float16]:
        """Window, light, normalise and cut holes.

        Args:
            warped_BSSD: stored numbers, uint16.
            numbers: parameters by the name of their feed in `loading.graph`: center and
                width, shape (B, C), HU; those of `change_values`, shape (B, 1); corners
                and sides, shape (B, 2M), pixels. A missing one changes nothing.

        Returns:
            Shape (B, S, S, D * C), float16, C order.
        """
        table_BTC = self._tables(numbers)
        if len(table_BTC) == 1:
            table_BTC = table_BTC.repeat(len(warped_BSSD), axis=0)
        image_BSSDC = np.empty((*warped_BSSD.shape, len(self._windows)), np.float16)
        for warped_SSD, table_TC, image_SSDC in zip(
            warped_BSSD, table_BTC, image_BSSDC, strict=True
        ):
            # Numbers above the end of the table are as white as its last entry.
            table_TC.take(warped_SSD, axis=0, out=image_SSDC, mode="clip")
        if "corners" in numbers:
            self._cut(image_BSSDC, numbers["corners"], numbers["sides"])
        return image_BSSDC.reshape(*warped_BSSD.shape[:3], -1)

    def _tables(self, numbers: Mapping[str, Numbers]) -> npt.NDArray[np.float16]:
        """Shaded values of the stored numbers from 0 on, shape (B, T, C).

        The shape is (1, T, C) if all slices have the same table.
        """
        center_BC = numbers.get("center", self._center_1C)
        width_BC = numbers.get("width", self._width_1C)
        shades = []
        for c, window in enumerate(self._windows):
            center_B1, width_B1 = center_BC[:, [c]], width_BC[:, [c]]
            first, last = _span(center_B1, width_B1, window.shape)
            hu_T = np.arange(first, last + 1, dtype=np.float32) - HU_OFFSET
            value_BT = window_values(hu_T, center_B1, width_B1, window.shape)
            value_BT = change_values(value_BT, numbers)
            value_BT -= np.float32(self._normalization.mean[c])
            value_BT /= np.float32(self._normalization.std[c])
            shades.append((first, last, value_BT.astype(np.float16)))
        num_entries = 1 + max(last for _, last, _ in shades)
        table_BTC = np.empty(
            (len(shades[0][2]), num_entries, len(shades)), dtype=np.float16
        )
        for c, (first, last, shade_BT) in enumerate(shades):
            table_BTC[:, :first, c] = shade_BT[:, :1]
            table_BTC[:, first : last + 1, c] = shade_BT
            table_BTC[:, last + 1 :, c] = shade_BT[:, -1:]
        return table_BTC

    def _cut(
        self,
        image_BSSDC: npt.NDArray[np.float16],
        corners: Numbers,
        sides: Numbers,
    ) -> None:
        """Fill holes with air, unlit, through the windows before any jitter."""
        corner_BM2, side_BM2 = (
            each.reshape(len(image_BSSDC), -1, 2) for each in (corners, sides)
        )
        slice_X, hole_X = np.nonzero(side_BM2[..., 0])
        start_X2 = corner_BM2[slice_X, hole_X]
        stop_X2 = start_X2 + side_BM2[slice_X, hole_X]
        ends_X4 = np.concatenate([start_X2, stop_X2], axis=1).clip(0).astype(int)
        for b, (top, left, bottom, right) in zip(
            slice_X.tolist(), ends_X4.tolist(), strict=True
        ):
            image_BSSDC[b, top:bottom, left:right] = self._air_C


def _span(center_B1: Numbers, width_B1: Numbers, shape: str) -> tuple[int, int]:
    """Stored numbers at which all windows are black and white, clipped to the range."""
    reach = SIGMOID_REACH if shape == "sigmoid" else 0.5
    black = float((center_B1 - reach * width_B1).min()) + HU_OFFSET
    white = float((center_B1 + reach * width_B1).max()) + HU_OFFSET
    last = NUM_STORED_VALUES - 1
    return min(max(math.floor(black), 0), last), min(max(math.ceil(white), 0), last)
