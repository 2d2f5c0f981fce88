"""FFCV's work on a slice: its decoder, and two operations compiled by numba.

FFCV's operations take 8-bit images, so these are written as its guide recommends: loops
over the slices of a batch, one loop for each thread. A value depends on one rounded
pixel only, so window, lighting and normalisation are one table for each slice, as in
ichfast. numba has no float16 on a CPU, so float16 passes through as uint16, as in
FFCV's `NormalizeImage`.

Sides that are halved must be even, and matrices affine, as in exp-30.

Source:
    FFCV 1.0.2, docs.ffcv.io, "Fast custom image transforms".

Shape letters: B slices of a batch, H rows, W columns, S side of the output, T entries
of a table, M holes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ffcv.fields.decoders import NDArrayDecoder
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.operation import Operation

from bench.peers.grid_sample import light
from bench.peers.task import LoaderTask, normalize, window_values
from ichfast.augment.parameters import Parameters, draw
from ichfast.windows import HU_OFFSET

Code = Callable[..., Any]
"""A function that FFCV calls, or that numba compiles."""


class ParallelDecoder(NDArrayDecoder):  # type: ignore[misc]  # FFCV has no types
    """FFCV's decoder on all threads; FFCV compiles it for one."""

    def generate_code(self) -> Code:
        """Return FFCV's code, marked as parallel."""
        return _in_parallel(super().generate_code())


class Halve(Operation):  # type: ignore[misc]  # FFCV has no types
    """Halves slices by means of 2x2 pixels, rounded as in `augment.reference.halve`."""

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, Any]:
        """Declare half the rows and columns of the same type."""
        shape = tuple(side // 2 for side in previous_state.shape)
        state = replace(previous_state, shape=shape)
        return state, AllocationQuery(shape, state.dtype)

    def generate_code(self) -> Code:
        """Return a loop over slices, which FFCV compiles."""
        my_range = Compiler.get_iterator()

        def halve(stored_BHW: Any, halved_BHW: Any) -> Any:
            num_slices, rows, columns = halved_BHW.shape
            for b in my_range(num_slices):
                for y in range(rows):
                    upper_W, lower_W = stored_BHW[b, 2 * y], stored_BHW[b, 2 * y + 1]
                    for x in range(columns):
                        upper = np.int32(upper_W[2 * x]) + np.int32(upper_W[2 * x + 1])
                        lower = np.int32(lower_W[2 * x]) + np.int32(lower_W[2 * x + 1])
                        total = np.int32(upper + lower)
                        # A quarter of the total; ties round to the even number.
                        halved_BHW[b, y, x] = (total + 1 + ((total >> 2) & 1)) >> 2
            return halved_BHW

        return _in_parallel(halve)


class Show(Operation):  # type: ignore[misc]  # FFCV has no types
    """Draws parameters for a batch, then resamples, looks values up and cuts holes."""

    def __init__(self, task: LoaderTask) -> None:
        super().__init__()
        self._task = task
        self.epoch = 0
        """The epoch that parameters are drawn for."""

        window = task.window
        low = window.center - window.width / 2 + HU_OFFSET
        self._first = math.floor(low)
        """The stored number of a table's first entry."""

        stored_T = torch.arange(self._first, math.ceil(low + window.width) + 1)
        self._value_T = window_values(stored_T, window)

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, Any]:
        """Declare (S, S, 1) float16, from a function that is not compiled."""
        shape, dtype = (self._task.size, self._task.size, 1), np.dtype(np.float16)
        state = replace(previous_state, jit_mode=False, shape=shape, dtype=dtype)
        return state, AllocationQuery(shape, dtype)

    def generate_code(self) -> Code:
        """Return a function of a batch that calls compiled functions."""
        warp, cut = _compile_warp(), _compile_cut()
        black = normalize(torch.zeros(1), self._task.normalization)
        black_bits = black.numpy().view(np.uint16)[0]

        def show(stored_BHW: Any, images_BSS1: Any, rows_B: Any) -> Any:
            drawn = self._draw(rows_B, stored_BHW.shape[1:])
            table_BT = self._tables(drawn)
            bits_BSS = images_BSS1.view(np.uint16)[..., 0]
            warp(stored_BHW, drawn.matrix_B33, table_BT, self._first, bits_BSS)
            cut(drawn.hole_corner_BM2, drawn.hole_side_BM2, black_bits, bits_BSS)
            return images_BSS1

        show.with_indices = True  # type: ignore[attr-defined]
        return show

    def _draw(
        self, rows_B: npt.NDArray[np.int64], source_shape: tuple[int, int]
    ) -> Parameters:
        return draw(
            self._task.augment,
            seed=0,
            epoch=self.epoch,
            slices_B=self._task.positions_N[rows_B],
            source_shape_B2=np.tile(np.array(source_shape, float), (len(rows_B), 1)),
            size=self._task.size,
        )

    def _tables(self, drawn: Parameters) -> npt.NDArray[np.uint16]:
        """Make tables from stored numbers of the window to bits of float16, (B, T)."""
        num_slices = len(drawn.contrast_B)
        lit_B11T = light(self._value_T.repeat(num_slices, 1, 1, 1), drawn)
        value_B11T = normalize(lit_B11T, self._task.normalization)
        return value_B11T.numpy().view(np.uint16).reshape(num_slices, -1)


def _in_parallel(code: Any) -> Code:
    """Mark code so that `Compiler.compile` uses all threads."""
    code.is_parallel = True
    return code


def _compile_warp() -> Code:
    """Compile a bilinear resample with air outside, and a look-up of its results."""
    my_range = Compiler.get_iterator()
    pixel = Compiler.compile(_pixel)

    def warp(
        stored_BHW: Any, matrix_B33: Any, table_BT: Any, first: int, bits_BSS: Any
    ) -> None:
        size = bits_BSS.shape[1]
        last_entry = table_BT.shape[1] - 1
        bottom, right = stored_BHW.shape[1] - 1, stored_BHW.shape[2] - 1
        for b in my_range(len(stored_BHW)):
            stored_HW, matrix_33, table_T = stored_BHW[b], matrix_B33[b], table_BT[b]
            for row in range(size):
                # Source coordinates of the row's first pixel.
                middle_y = row + 0.5
                x0 = matrix_33[0, 0] * 0.5 + matrix_33[0, 1] * middle_y
                y0 = matrix_33[1, 0] * 0.5 + matrix_33[1, 1] * middle_y
                x0, y0 = x0 + matrix_33[0, 2] - 0.5, y0 + matrix_33[1, 2] - 0.5
                for column in range(size):
                    x = x0 + matrix_33[0, 0] * column
                    y = y0 + matrix_33[1, 0] * column
                    left, top = math.floor(x), math.floor(y)
                    across, down = x - left, y - top
                    if 0 <= left < right and 0 <= top < bottom:
                        nw, ne = stored_HW[top, left], stored_HW[top, left + 1]
                        sw, se = stored_HW[top + 1, left], stored_HW[top + 1, left + 1]
                    else:
                        nw, ne = (
                            pixel(stored_HW, top, left),
                            pixel(stored_HW, top, left + 1),
                        )
                        sw, se = (
                            pixel(stored_HW, top + 1, left),
                            pixel(stored_HW, top + 1, left + 1),
                        )
                    upper = nw + (ne - nw) * across
                    lower = sw + (se - sw) * across
                    entry = int(np.rint(upper + (lower - upper) * down)) - first
                    bits_BSS[b, row, column] = table_T[min(max(entry, 0), last_entry)]

    return Compiler.compile(_in_parallel(warp))


def _pixel(stored_HW: Any, row: int, column: int) -> Any:
    """Return a pixel, or air outside the slice."""
    rows, columns = stored_HW.shape
    if 0 <= row < rows and 0 <= column < columns:
        return stored_HW[row, column]
    return np.int16(0)


def _compile_cut() -> Code:
    """Compile a loop that fills the holes."""
    my_range = Compiler.get_iterator()

    def cut(corner_BM2: Any, side_BM2: Any, black: Any, bits_BSS: Any) -> None:
        for b in my_range(len(corner_BM2)):
            for hole in range(corner_BM2.shape[1]):
                top, left = int(corner_BM2[b, hole, 0]), int(corner_BM2[b, hole, 1])
                rows, columns = int(side_BM2[b, hole, 0]), int(side_BM2[b, hole, 1])
                bits_BSS[
                    b,
                    max(top, 0) : max(top + rows, 0),
                    max(left, 0) : max(left + columns, 0),
                ] = black

    return Compiler.compile(_in_parallel(cut))
