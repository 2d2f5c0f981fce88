"""The skull base: a landscape of fossae and ridges below the brain.

Its floor has a height at each place. A slice shows the brain where it lies above the
floor, and bone a little below it. The bowls of the table are cut by each other: where
two meet, a ridge rises, as the petrous ridge does between the middle and the posterior
fossa.

Shape letters: H rows and W columns of the box around the head.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ichfast.synth.anatomy import BASE_TOP_MM, Anatomy, size_of
from ichfast.synth.canvas import Canvas, Field, ramp

RISE_MM = 26.0
"""Height of a fossa's rim above its floor."""

RELIEF_MM = 1.2
"""Deviation of the small ridges and pits."""

FRONT_BONE_MM, BACK_BONE_MM = 3.0, 6.0
"""Thickness of the bone at the front and at the back of the head."""

MIN_FLATNESS = 0.35
"""Lower limit of the distance to the floor, in parts of the height above it: a wall is
far from what lies high above its foot."""

FOSSAE = (
    (0.0, 40.0, -24.0, 52.0, 38.0),  # posterior
    (0.0, 24.0, -70.0, 15.0, 17.0),  # foramen magnum
    (36.0, -20.0, -4.0, 28.0, 22.0),  # middle
    (0.0, -12.0, 12.0, 9.0, 8.0),  # sella
    (0.0, -28.0, 22.0, 16.0, 12.0),  # planum
    (26.0, -52.0, 29.0, 26.0, 26.0),  # anterior, over the orbit
    (0.0, -58.0, 19.0, 10.0, 22.0),  # cribriform plate
)
"""Bowls of the skull base: x, y and height of the deepest point, radii, mm."""


class BaseSection(NamedTuple):
    """What a slice cuts from the skull base, shape (H, W) each."""

    room_HW: Field
    """1 above the floor, 0 below it."""
    bone_HW: Field
    """1 in the bone and above it, 0 below it."""
    depth_HW: Field
    """Distance to the floor, mm; negative below it."""


class SkullBase:
    """The skull base of a patient in the slices of one series.

    Args:
        anatomy: The patient.
        canvas: The pixels.
        edge_mm: Width of a sharp edge.
    """

    def __init__(self, anatomy: Anatomy, canvas: Canvas, *, edge_mm: float) -> None:
        self._edge_mm = edge_mm
        floor_HW = _floor(anatomy, canvas.x_HW, canvas.y_HW)
        floor_HW += np.float32(RELIEF_MM) * canvas.coarse_HW
        down_HW, right_HW = np.gradient(floor_HW, np.float32(canvas.spacing_mm))
        self._floor_HW: Field = floor_HW - canvas.rise_HW
        self._flatness_HW: Field = 1.0 / np.sqrt(1.0 + down_HW**2 + right_HW**2)
        back_HW = np.clip((canvas.y_HW + np.float32(90.0)) / 180, 0.0, 1.0)
        self._bone_mm: Field = FRONT_BONE_MM + back_HW * (BACK_BONE_MM - FRONT_BONE_MM)
        self._top_mm = float(self._floor_HW.max())

    def cut(self, height: float, thickness_mm: float) -> BaseSection | None:
        """Cut the skull base; None where the whole slice lies above it.

        Args:
            height: Of the slice at the head's axis, mm.
            thickness_mm: Of the slice: it blurs a level floor more than a wall.
        """
        if height > self._top_mm + thickness_mm + self._edge_mm:
            return None
        above_HW = height - self._floor_HW
        near_HW = above_HW * self._flatness_HW
        sharp_HW = 1.0 / (
            thickness_mm * self._flatness_HW + np.float32(2.0 * self._edge_mm)
        )
        above_HW *= np.maximum(self._flatness_HW, np.float32(MIN_FLATNESS))
        return BaseSection(
            room_HW=ramp(near_HW * sharp_HW, 1.0),
            bone_HW=ramp((near_HW + self._bone_mm) * sharp_HW, 1.0),
            depth_HW=above_HW,
        )


def _floor(anatomy: Anatomy, x_HW: Field, y_HW: Field) -> Field:
    """Height of the floor below the brain, mm, at most `BASE_TOP_MM`."""
    wide, long = size_of(anatomy)
    x_HW, y_HW = x_HW / np.float32(wide), y_HW / np.float32(long)
    floor_HW = np.full_like(x_HW, BASE_TOP_MM)
    for fossa, larger in zip(FOSSAE, anatomy.asymmetry, strict=True):
        x, y, deepest, x_radius, y_radius = fossa
        for side in (1.0, -1.0) if x else (1.0,):
            u_HW = (x_HW - np.float32(side * x)) / np.float32(x_radius)
            v_HW = (y_HW - np.float32(y)) / np.float32(y_radius)
            bowl_HW = u_HW * u_HW + v_HW * v_HW
            bowl_HW *= bowl_HW
            bowl_HW *= np.float32(RISE_MM)
            bowl_HW += np.float32(deepest + 20.0 * side * larger)
            np.minimum(floor_HW, bowl_HW, out=floor_HW)
    return floor_HW
