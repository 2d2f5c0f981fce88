"""Bounds of the graph's output for a slice, computed with the NumPy reference.

The tests and the self-test of `ichfast doctor` hold the graph to them. A tolerance on
values is not enough: on a checkerboard of single black and white pixels a tiny error of
the coordinates makes all the difference, and on a flat slice an error of a whole pixel
makes none. So each source of error is bounded where it arises, and the bound is carried
through the reference:

1. Coordinates. Graph and reference start from the same float32 matrix. The graph also
   multiplies it in float32, an error of 0.001 pixels. OpenCV, which DALI uses on the
   CPU, may round coordinates to 1/32 pixel, an error of 1/64; not all of its kernels
   do. `REACH` is the sum, across and down. Between four pixels the resample is
   bilinear, so its minimum and maximum within reach are at the ends of the reach, or at
   a pixel within it.
2. Rounding. The warp gives whole stored numbers. Float32 weights of numbers up to
   32,767 add an error of `SLACK` before rounding. Halving reads where four pixels meet,
   which is exact, and rounds as the reference does.
3. Windows and lighting increase with the stored number, so bounds of the number are
   bounds of the value. Where a window is black or white, no error is left.
4. Tables. A window that is the same for every slice is tabulated at every stored
   number: no error. Lighting goes through a grid of 2,048 steps per logit. The offset,
   brightness times contrast, is rounded to a step, and so is the sum of the offset and
   logit times contrast. Where the sum lies on the grid, both products are below 2**21
   steps, even at a contrast of 100, and float32 rounds each by a sixteenth of a step
   or less. Together an error of 1.125 steps, each 1 / (4 x 2,048) of the value (`LIT`),
   divided by the deviation.
5. Float16. The result is rounded to 11 bits: 2**-11 of its size (`HALF`).
6. Float32 in windows that differ by slice: `SINGLE`, of a value in [0, 1].

For holes only the fifth applies: a pixel inside is air, one outside is not.

Shape letters: H rows, W columns, S output size, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import numpy.typing as npt

from ichfast.augment.parameters import Parameters
from ichfast.augment.reference import resample, shade, source_places
from ichfast.windows import Window

REACH = 1 / 64 + 1e-3
SLACK = 0.01
LIT = 1.125 / (4 * 2048)
HALF = 2.0**-11
SINGLE = 2e-6

Numbers = npt.NDArray[np.float64]


def stored_bounds(
    stored_HW: npt.NDArray[np.uint16], matrix_33: npt.NDArray[np.float32], size: int
) -> tuple[Numbers, Numbers]:
    """Bounds of the stored number of each output pixel.

    Args:
        stored_HW: the slice that the resample reads.
        matrix_33: maps an output pixel to a source pixel.
        size: side of the output, pixels.

    Returns:
        Minimum and maximum, shape (size, size) each.
    """
    x_SS, y_SS = source_places(matrix_33, size)
    read = [
        resample(stored_HW, x_SS, y_SS)
        for x_SS, y_SS in product(_ends(x_SS), _ends(y_SS))
    ]
    return np.rint(np.min(read, axis=0) - SLACK), np.rint(np.max(read, axis=0) + SLACK)


def _ends(place_SS: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Both ends of a coordinate's reach, and the pixel within it if there is one."""
    pixel_SS = np.rint(place_SS)
    inside_SS = np.where(abs(pixel_SS - place_SS) < REACH, pixel_SS, place_SS)
    return place_SS - REACH, inside_SS, place_SS + REACH


def image_bounds(
    bounds: tuple[Numbers, Numbers],
    parameters: Parameters,
    row: int,
    *,
    windows: Sequence[Window],
    mean_C: Sequence[float],
    std_C: Sequence[float],
) -> tuple[Numbers, Numbers]:
    """Bounds of the graph's image of a slice.

    Args:
        bounds: minimum and maximum stored number of each pixel, from `stored_bounds`.
        parameters: drawn for a batch.
        row: the slice's row in `parameters`.
        windows: C windows.
        mean_C: mean per channel.
        std_C: standard deviation per channel.

    Returns:
        Minimum and maximum, shape (size, size, C) each.
    """
    low_SSC, high_SSC = (
        shade(each, parameters, row, windows=windows, mean_C=mean_C, std_C=std_C)
        for each in bounds
    )
    lit = parameters.contrast_B[row] != 1.0 or parameters.brightness_B[row] != 0.0
    width_C = (SINGLE + lit * LIT) / np.asarray(std_C)
    return (
        low_SSC - width_C - HALF * abs(low_SSC),
        high_SSC + width_C + HALF * abs(high_SSC),
    )
