"""Windows, lighting and holes on a CPU: a table a slice, looked up by NumPy.

What becomes of a pixel depends on its stored number alone, and a window has few numbers
between black and white. So these are windowed, lit and normalised, once a slice, in
place of every pixel, and one look-up gives all channels. DALI has no look-up with a
table a slice on a CPU, and what it has instead takes four times as long (bench/LOG.md,
2026-11). On a GPU all this is part of its graph (`ichfast.loading.graph`).

Shape letters: B slices of the batch, S side of the images, Z slices that each is seen
with, itself among them (1, or 3 with neighbours), C windows, T stored numbers of a
table, M holes a slice has room for, X holes of all slices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ichfast.augment.reference import light
from ichfast.windows import (
    HU_OFFSET,
    NUM_STORED_VALUES,
    Normalization,
    Window,
    window_values,
)

Numbers = npt.NDArray[np.float32]

SIGMOID_REACH = 4.5
"""Widths from its center at which a sigmoid window is black or white, to 2e-8."""


class Shader:
    """Makes images of resampled slices.

    Args:
        windows: C windows, in channel order.
        normalization: per window.
    """

    def __init__(self, windows: Sequence[Window], normalization: Normalization) -> None:
        self._windows = windows
        self._normalization = normalization
        self._center_1C = np.array([[each.center for each in windows]], np.float32)
        self._width_1C = np.array([[each.width for each in windows]], np.float32)
        self._air_C = self._tables({})[0, 0]

    def __call__(
        self, warped_BSSZ: npt.NDArray[np.uint16], numbers: Mapping[str, Numbers]
    ) -> npt.NDArray[np.float16]:
        """Window, light, normalise and cut holes.

        Args:
            warped_BSSZ: stored numbers.
            numbers: what differs by slice, as `loading.graph.FEEDS` has it: center and
                width, (B, C) HU; contrast and brightness, (B, 1); corners and sides,
                (B, 2M) pixels. What is not there changes nothing.

        Returns:
            Shape (B, S, S, Z * C), float16, C order.
        """
        table_BTC = self._tables(numbers)
        if len(table_BTC) == 1:
            table_BTC = table_BTC.repeat(len(warped_BSSZ), axis=0)
        image_BSSZC = np.empty((*warped_BSSZ.shape, len(self._windows)), np.float16)
        for warped_SSZ, table_TC, image_SSZC in zip(
            warped_BSSZ, table_BTC, image_BSSZC, strict=True
        ):
            # Clipped: numbers above the table's last are as white as that.
            table_TC.take(warped_SSZ, axis=0, out=image_SSZC, mode="clip")
        if "corners" in numbers:
            self._cut(image_BSSZC, numbers["corners"], numbers["sides"])
        return image_BSSZC.reshape(*warped_BSSZ.shape[:3], -1)

    def _tables(self, numbers: Mapping[str, Numbers]) -> npt.NDArray[np.float16]:
        """What each stored number, from 0 on, becomes: (B, T, C).

        (1, T, C) if all slices are alike.
        """
        center_BC = numbers.get("center", self._center_1C)
        width_BC = numbers.get("width", self._width_1C)
        shades = []
        for c, window in enumerate(self._windows):
            center_B1, width_B1 = center_BC[:, [c]], width_BC[:, [c]]
            first, last = _span(center_B1, width_B1, window.shape)
            hu_T = np.arange(first, last + 1, dtype=np.float32) - HU_OFFSET
            value_BT = window_values(hu_T, center_B1, width_B1, window.shape)
            if "contrast" in numbers:
                value_BT = light(value_BT, numbers["contrast"], numbers["brightness"])
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
        image_BSSZC: npt.NDArray[np.float16],
        corners: Numbers,
        sides: Numbers,
    ) -> None:
        """Fill holes with air, unlit and through the windows that were asked for."""
        corner_BM2, side_BM2 = (
            each.reshape(len(image_BSSZC), -1, 2) for each in (corners, sides)
        )
        slice_X, hole_X = np.nonzero(side_BM2[..., 0])
        start_X2 = corner_BM2[slice_X, hole_X]
        stop_X2 = start_X2 + side_BM2[slice_X, hole_X]
        ends_X4 = np.concatenate([start_X2, stop_X2], axis=1).clip(0).astype(int)
        for b, (top, left, bottom, right) in zip(
            slice_X.tolist(), ends_X4.tolist(), strict=True
        ):
            image_BSSZC[b, top:bottom, left:right] = self._air_C


def _span(center_B1: Numbers, width_B1: Numbers, shape: str) -> tuple[int, int]:
    """The stored numbers at which all windows are black, and white, or the ends."""
    reach = SIGMOID_REACH if shape == "sigmoid" else 0.5
    black = float((center_B1 - reach * width_B1).min()) + HU_OFFSET
    white = float((center_B1 + reach * width_B1).max()) + HU_OFFSET
    last = NUM_STORED_VALUES - 1
    return min(max(math.floor(black), 0), last), min(max(math.ceil(white), 0), last)
