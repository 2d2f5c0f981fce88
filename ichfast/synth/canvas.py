"""The pixels of a slice in the coordinates of a head, and shapes painted on them.

A canvas covers the box around the head and holds the place of each pixel in the head.
So shapes are given in millimetres of the head, independent of its rotation and position
in the slice. The coordinates are bent a little, so that ellipses do not look like
ellipses.

A slice cuts the head obliquely: roll and pitch lift one side and the back. So each
pixel has its own height, and the height of a slice is that at the head's axis.

Axes, in mm: x to the right of the image, y to the back of the head (down the image),
height from the orbitomeatal line up. Shape letters: H rows and W columns of the box,
A angles around the head's axis, from x towards y.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float32]
Box = tuple[slice, slice]

NUM_ANGLES = 2048
"""Length of every table over the angle around the head's axis."""

ANGLE_A = np.linspace(0.0, 2 * np.pi, NUM_ANGLES, endpoint=False)

TABLE_STEP_MM = 0.0625
"""Distance between two entries of a table over a depth."""

MAX_WARP_MM = 3.0
"""Upper limit of the bending along an axis."""

FOLD_SHAPE = (32, 512, 512)
FOLD_PLANE_MM, FOLD_PIXEL_MM = 4.0, 0.5
FOLD_WAVELENGTH_MM = 23.0
"""Two sulci lie half of this apart."""


class Ellipsoid(NamedTuple):
    """A shape in the head, or one of a pair left and right. Lengths in mm."""

    x: float
    y: float
    height: float
    x_radius: float
    y_radius: float
    half_height: float
    turn: float = 0.0
    """Rotation in the plane, degrees; positive: outwards at the front."""
    hu: float = 0.0
    texture_hu: float = 0.0
    """Deviation of cells or trabeculae around `hu`."""


class Grid(NamedTuple):
    """The pixels of a series, and where the head's axis lies in them."""

    rows: int
    columns: int
    spacing_mm: float
    rotation: float
    """Rotation of the head in the plane, rad."""
    x_mm: float
    """Distance of the axis to the right of the middle of the slice."""
    y_mm: float
    """Distance of the axis below the middle of the slice."""
    roll: float = 0.0
    """Rise of the slice to the right of the image, mm in each mm."""
    pitch: float = 0.0
    """Rise of the slice to the back of the head, mm in each mm."""


class Canvas:
    """The box of pixels around a head.

    Args:
        grid: The pixels, and where the head lies.
        reach_mm: Half the width and half the length of the box.
        warp: Six phases of the bending, rad.
        fold_offset: Row, column and height of this head in the field of folds, mm.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        reach_mm: tuple[float, float],
        warp: Sequence[float],
        fold_offset: Sequence[float],
    ) -> None:
        down = _span(grid.rows, grid.spacing_mm, grid.y_mm, reach_mm[1])
        right = _span(grid.columns, grid.spacing_mm, grid.x_mm, reach_mm[0])
        self.box: Box = (down[0], right[0])
        self.spacing_mm = grid.spacing_mm
        self._grid = grid
        self._first_mm = (float(down[1][0]), float(right[1][0]))
        self._fold_offset = fold_offset

        down_H1, right_1W = down[1][:, np.newaxis], right[1][np.newaxis]
        cos, sin = math.cos(grid.rotation), math.sin(grid.rotation)
        p = [np.float32(phase) for phase in warp]
        self.x_HW: Field = cos * right_1W + sin * down_H1
        self.x_HW += 1.2 * np.sin(down_H1 / 23 + p[0])
        self.x_HW += 0.9 * np.sin(right_1W / 17 + p[1]) * np.sin(down_H1 / 15 + p[2])
        self.y_HW: Field = cos * down_H1 - sin * right_1W
        self.y_HW += 1.2 * np.sin(right_1W / 21 + p[3])
        self.y_HW += 0.9 * np.sin(right_1W / 14 + p[4]) * np.sin(down_H1 / 18 + p[5])

        self.rise_HW: Field = self.rise(self.x_HW, self.y_HW)
        """Height of each pixel above the slice's height at the axis, mm."""

        self._radius_HW = np.hypot(self.x_HW, self.y_HW)
        turns_HW = np.arctan2(self.y_HW, self.x_HW) / np.float32(2 * np.pi)
        self._angle_HW = (turns_HW * NUM_ANGLES).astype(np.intp) % NUM_ANGLES
        self._fold_HW = self._fold_places(1.0)
        self.fine_HW: Field = folds()[0].ravel()[self._fold_places(5.0)]
        """Texture of the size of bone trabeculae and air cells, deviation 1."""
        self.coarse_HW: Field = folds()[1].ravel()[self._fold_places(1.6)]
        """Texture of the size of a bleed's lobes, deviation 1."""

    def around(self, table_A: Field) -> Field:
        """The entry of a table over the angle at each pixel."""
        return table_A.take(self._angle_HW, mode="clip")

    def depth(self, radius_A: Field) -> Field:
        """Depth of each pixel inside an outline, mm, negative outside it."""
        return self.around(radius_A) - self._radius_HW

    def fold_distance(self, height: float) -> Field:
        """Signed distance to the middle of the nearest fold, mm, roughly."""
        planes = folds()
        place = (height + self._fold_offset[2]) / FOLD_PLANE_MM
        lower, part = int(place), np.float32(place % 1.0)
        below, above = (planes[k % len(planes)] for k in (lower, lower + 1))
        plane = below + part * (above - below)
        # Mixing flattens the field, and a slope of 1 in 5 makes it a distance.
        plane *= np.float32(5.0 / np.hypot(part, 1.0 - part))
        return plane.take(self._fold_HW, mode="clip")

    def rise(self, x: Any, y: Any) -> Any:
        """Height of the slice at a place above its height at the axis, mm.

        Args:
            x: mm, a number or an array.
            y: mm, of the same shape.
        """
        return np.float32(self._grid.roll) * x + np.float32(self._grid.pitch) * y

    def sections(
        self,
        shapes: Iterable[Ellipsoid],
        height: float,
        *,
        shift_mm: float = 0.0,
        soft_mm: float = 1.0,
    ) -> Iterator[tuple[Ellipsoid, Box, Field]]:
        """Cut ellipsoids at a height.

        Args:
            shapes: Of the head.
            height: Of the slice, mm.
            shift_mm: Moves the shapes along x.
            soft_mm: Width of their edges.

        Yields:
            The shape, the box around it, and its weight there: 1 inside, 0 outside.
        """
        for shape in shapes:
            away_mm = height + float(self.rise(shape.x, shape.y)) - shape.height
            rest = 1.0 - (away_mm / shape.half_height) ** 2
            if rest < 0.03:
                continue
            a = shape.x_radius * rest**0.5
            b = shape.y_radius * rest**0.5
            turn = np.deg2rad(shape.turn)
            x = shape.x + shift_mm
            box = self.box_around(x, shape.y, a + soft_mm, b + soft_mm, turn)
            dx = self.x_HW[box] - np.float32(x)
            dy = self.y_HW[box] - np.float32(shape.y)
            cos, sin = np.cos(turn), np.sin(turn)
            u = dx * np.float32(cos / a) + dy * np.float32(sin / a)
            v = dy * np.float32(cos / b) - dx * np.float32(sin / b)
            u *= u
            v *= v
            u += v
            yield shape, box, ramp(1.0 - u, 2.0 * soft_mm / min(a, b))

    def paint(
        self, hu_HW: Field, shapes: Iterable[Ellipsoid], height: float, **place: Any
    ) -> None:
        """Paint ellipsoids over a slice.

        Args:
            hu_HW: HU, shape (H, W). Overwritten.
            shapes: Painted in their order.
            height: Of the slice, mm.
            place: The keyword arguments of `sections`.
        """
        for shape, box, weight in self.sections(shapes, height, **place):
            part = hu_HW[box]
            fill = shape.hu + np.float32(shape.texture_hu) * self.fine_HW[box]
            part += weight * (fill - part)

    def mark(self, shapes: Iterable[Ellipsoid], height: float, **place: Any) -> Field:
        """Mark the inside of ellipsoids.

        Args:
            shapes: In any order.
            height: Of the slice, mm.
            place: The keyword arguments of `sections`, without `soft_mm`.

        Returns:
            1 inside any of them, 0 outside, shape (H, W).
        """
        weight_HW = np.zeros_like(self.x_HW)
        for _, box, weight in self.sections(shapes, height, soft_mm=1.5, **place):
            np.maximum(weight_HW[box], weight, out=weight_HW[box])
        return weight_HW

    def box_around(
        self, x: float, y: float, x_radius: float, y_radius: float, turn: float = 0.0
    ) -> Box:
        """Find the rows and columns that hold an ellipse.

        Args:
            x: Centre, mm.
            y: Centre, mm.
            x_radius: Before the turn, mm.
            y_radius: Before the turn, mm.
            turn: In the plane, rad.
        """
        spacing_mm, rotation = self._grid.spacing_mm, self._grid.rotation
        cos, sin = np.cos(rotation), np.sin(rotation)
        cos2, sin2 = np.cos(turn + rotation) ** 2, np.sin(turn + rotation) ** 2
        middles = (sin * x + cos * y, cos * x - sin * y)
        halves = (
            (x_radius**2 * sin2 + y_radius**2 * cos2) ** 0.5 + MAX_WARP_MM,
            (x_radius**2 * cos2 + y_radius**2 * sin2) ** 0.5 + MAX_WARP_MM,
        )
        spans = []
        for middle, half, first in zip(middles, halves, self._first_mm, strict=True):
            start = max(int((middle - half - first) / spacing_mm), 0)
            stop = max(int((middle + half - first) / spacing_mm) + 2, start)
            spans.append(slice(start, stop))
        return spans[0], spans[1]

    def _fold_places(self, scale: float) -> npt.NDArray[np.intp]:
        """Index of each pixel in a plane of `folds`, which is periodic."""
        side = FOLD_SHAPE[1]
        row_mm = self.y_HW * scale + self._fold_offset[0]
        column_mm = self.x_HW * scale + self._fold_offset[1]
        row_HW = (row_mm / FOLD_PIXEL_MM).astype(np.intp) % side
        column_HW = (column_mm / FOLD_PIXEL_MM).astype(np.intp) % side
        return row_HW * side + column_HW


def blend(under_HW: Field, over_HW: Field, weight_HW: Field) -> Field:
    """Mix two fields.

    Args:
        under_HW: Result where the weight is 0.
        over_HW: Result where the weight is 1. Overwritten and returned.
        weight_HW: 0 to 1.
    """
    over_HW -= under_HW
    over_HW *= weight_HW
    over_HW += under_HW
    return over_HW


def ramp(depth_HW: Field, width: float) -> Field:
    """Turn a depth into a weight: 0 outside, 1 inside.

    Args:
        depth_HW: Positive inside, any unit.
        width: Over which the weight rises, centred on depth 0, in the same unit.
    """
    out_HW = depth_HW * np.float32(1.0 / width)
    out_HW += np.float32(0.5)
    return np.clip(out_HW, 0.0, 1.0, out=out_HW)


def make_table(knots_mm: Sequence[float], values: Sequence[float]) -> Field:
    """Tabulate a piecewise linear function of a depth from 0 on, for `look_up`.

    Args:
        knots_mm: Depths, ascending.
        values: Values there.
    """
    depth_mm = np.arange(0.0, knots_mm[-1] + TABLE_STEP_MM, TABLE_STEP_MM)
    return np.interp(depth_mm, knots_mm, values).astype(np.float32)


def look_up(table: Field, depth_HW: Field) -> Field:
    """Read a table's values; its ends extend.

    Args:
        table: Of `make_table`.
        depth_HW: Depths, mm.
    """
    index_HW = (depth_HW * np.float32(1.0 / TABLE_STEP_MM)).astype(np.intp)
    return table.take(index_HW, mode="clip")


@lru_cache(maxsize=1)
def folds() -> Field:
    """A periodic random field with one dominant wavelength, shape `FOLD_SHAPE`.

    Its zero crossings meander like sulci, from plane to plane too. Deviation 1;
    33 MB, made once a process.
    """
    white = np.random.default_rng(2019).standard_normal(FOLD_SHAPE, dtype=np.float32)
    z = np.fft.fftfreq(FOLD_SHAPE[0], FOLD_PLANE_MM)[:, np.newaxis, np.newaxis]
    y = np.fft.fftfreq(FOLD_SHAPE[1], FOLD_PIXEL_MM)[:, np.newaxis]
    x = np.fft.rfftfreq(FOLD_SHAPE[2], FOLD_PIXEL_MM)
    wave = np.sqrt(z * z + y * y + x * x) * FOLD_WAVELENGTH_MM
    band = np.exp(-(((wave - 1.0) / 0.25) ** 2)).astype(np.float32)
    field = np.fft.irfftn(np.fft.rfftn(white) * band, s=FOLD_SHAPE, axes=(0, 1, 2))
    return (field / field.std()).astype(np.float32)


def _span(
    pixels: int, spacing_mm: float, centre_mm: float, reach_mm: float
) -> tuple[slice, Field]:
    """Pixels within reach of a centre, and their offsets from it, mm."""
    all_mm = (np.arange(pixels) + 0.5 - pixels / 2) * spacing_mm - centre_mm
    within = np.flatnonzero(np.abs(all_mm) <= reach_mm)
    return slice(within[0], within[-1] + 1), all_mm[within].astype(np.float32)
