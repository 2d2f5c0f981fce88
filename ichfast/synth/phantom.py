"""A head and its bleeds as functions of position: HU of one axial slice at a time.

Promises:

1. A slice depends on the anatomy, the grid, the height and the bleeds; on nothing else.
2. A bleed that changes a slice by `hemorrhage.MIN_CONTRAST_HU` over less than
   `hemorrhage.MIN_AREA_MM2` is not in it: the slice is drawn, and labelled, as if the
   bleed were not there, mass effect included.

Skin and skull come from outlines, the skull base from its floor, the brain from the
distance to the nearest water, everything else from the tables of ellipsoids in
`ichfast.synth.anatomy`. A slice is thick: what slants is blurred, and a bleed is the
mean over the thickness.

Shape letters: H rows and W columns of a slice, or of the box around the head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ichfast.synth import anatomy as table
from ichfast.synth.anatomy import BASE_TOP_MM, Anatomy
from ichfast.synth.canvas import (
    Canvas,
    Ellipsoid,
    Field,
    Grid,
    blend,
    look_up,
    ramp,
)
from ichfast.synth.hemorrhage import (
    MIN_AREA_MM2,
    MIN_CONTRAST_HU,
    SUBTYPES,
    Bleed,
    covered_angles,
    extra_axial_depth,
    midline_shift,
    reach,
)
from ichfast.synth.scanner import THICK_MM
from ichfast.synth.skullbase import SkullBase

CEREBRUM_MM = 28.0
"""The interhemispheric fissure and the falx begin at this height."""

MIDBRAIN_MM = 48.0
"""Below it the two halves of the midbrain and the cerebellum are one piece."""

BLOOD_EDGE_MM = 2.4
"""How much softer the edge of a bleed is than a sharp one."""

MIN_SHARE = 0.2
"""A pixel with less blood than this does not show the bleed."""

STEPS = (-0.35, 0.0, 0.35)
"""Planes, in parts of the thickness, over which a bleed is averaged."""


class _Plane(NamedTuple):
    """Where a slice lies."""

    height: float
    """At the head's axis, mm."""
    thickness_mm: float


class _Organs(NamedTuple):
    """The ellipsoids of one head."""

    face: tuple[Ellipsoid, ...]
    base: tuple[Ellipsoid, ...]
    cisterns: tuple[Ellipsoid, ...]
    ventricles: tuple[Ellipsoid, ...]
    nuclei: tuple[Ellipsoid, ...]
    calcifications: tuple[Ellipsoid, ...]


class _Room(NamedTuple):
    """Where the brain is in one slice, shape (H, W) each."""

    plane: _Plane
    weight_HW: Field
    """1 in the brain's room, 0 outside, between on the edge."""
    dome_HW: Field
    """Depth under the skull, mm; negative outside."""
    floor_HW: Field | None
    """Distance to the skull base, mm; negative below it."""
    fold_HW: Field
    """Distance to the middle of the nearest fold, mm."""

    @property
    def depth_HW(self) -> Field:
        """Distance to the nearest bone, mm; negative outside the room."""
        if self.floor_HW is None:
            return self.dome_HW
        return np.minimum(self.dome_HW, self.floor_HW)


class _Brain(NamedTuple):
    """The fields of one slice that the bleeds need, shape (H, W) each."""

    room: _Room
    sulcus_HW: Field
    """Distance to the nearest water around the brain, mm."""
    cisterns_HW: Field
    """1 in the cisterns, 0 outside."""
    ventricles_HW: Field


class Phantom:
    """A patient's head in the slices of one series.

    Args:
        anatomy: The patient.
        grid: The pixels, and how the head lies in them.
        edge_mm: Width of a sharp edge, as the scanner's kernel blurs it.
    """

    def __init__(self, anatomy: Anatomy, grid: Grid, *, edge_mm: float = 0.8) -> None:
        self._anatomy = anatomy
        self._grid = grid
        self._edge_mm = max(grid.spacing_mm, edge_mm)
        self._min_pixels = MIN_AREA_MM2 / grid.spacing_mm**2
        self._canvas = Canvas(
            grid,
            reach_mm=(anatomy.half_width + 14.0, anatomy.half_length + 16.0),
            warp=anatomy.warp,
            fold_offset=anatomy.fold_offset,
        )
        self._organs = _place_organs(anatomy)
        self._base = SkullBase(anatomy, self._canvas, edge_mm=self._edge_mm)

    def draw(
        self,
        surround_HW: Field,
        height: float,
        bleeds: Sequence[Bleed] = (),
        *,
        thickness_mm: float = THICK_MM,
    ) -> tuple[Field, tuple[str, ...]]:
        """Draw the slice at a height.

        Args:
            surround_HW: The slice without the head, HU, float32, of the grid's rows
                and columns: air and the head holder. Not changed.
            height: Above the orbitomeatal line at the head's axis, mm.
            bleeds: Those of the whole head, wherever they lie.
            thickness_mm: Of the slice.

        Returns:
            HU without noise, float32, of the shape of `surround_HW`; and the subtypes
            that the slice shows, in the order of `SUBTYPES`.
        """
        plane = _Plane(height, thickness_mm)
        near = [each for each in bleeds if self._sizes(each, plane).max() > 0.1]
        box = self._canvas.box
        head_HW, seen = self._draw_head(surround_HW[box], plane, near)
        if len(seen) < len(near):
            return self.draw(surround_HW, height, seen, thickness_mm=thickness_mm)
        hu_HW = surround_HW.copy()
        hu_HW[box] = head_HW
        shown = {bleed.subtype for bleed in seen}
        return hu_HW, tuple(name for name in SUBTYPES if name in shown)

    def _draw_head(
        self, surround_HW: Field, plane: _Plane, bleeds: Sequence[Bleed]
    ) -> tuple[Field, list[Bleed]]:
        """Draw the box around the head, and tell which bleeds are large enough."""
        canvas, organs, height = self._canvas, self._organs, plane.height
        outline = table.outlines(
            self._anatomy, height, roll=self._grid.roll, pitch=self._grid.pitch
        )
        slant_mm = min(1.2 * plane.thickness_mm * outline.slope, 14.0)
        edge_mm = max(2.0 * self._edge_mm, slant_mm)
        fold_HW = np.abs(canvas.fold_distance(height))
        skin_HW = canvas.depth(outline.skin_A)
        dome_HW = canvas.depth(outline.brain_A)
        skull_HW = canvas.depth(outline.skull_A)
        room_HW, bone_HW = ramp(dome_HW, edge_mm), ramp(skull_HW, edge_mm)
        hu_HW = self._draw_scalp(skin_HW, fold_HW, height)
        hu_HW = blend(surround_HW, hu_HW, ramp(skin_HW, self._edge_mm))
        base = self._base.cut(height, plane.thickness_mm)
        if base:
            canvas.paint(hu_HW, organs.face, height)
            room_HW *= base.room_HW
            bone_HW *= base.bone_HW
        floor_HW = base.depth_HW if base else None
        room = _Room(plane, room_HW, dome_HW, floor_HW, fold_HW)
        hu_HW = blend(hu_HW, self._draw_bone(skull_HW, room), bone_HW)
        if base:
            canvas.paint(hu_HW, organs.base, height)
        brain_HW, seen = self._draw_brain(room, bleeds)
        return blend(hu_HW, brain_HW, room_HW), seen

    def _draw_scalp(self, skin_HW: Field, fold_HW: Field, height: float) -> Field:
        """Skin, fat and muscle by the depth under the skin."""
        hu_HW = look_up(table.scalp_table(self._anatomy), skin_HW)
        if height < BASE_TOP_MM:  # muscles with fat between them
            fat_HW = np.clip(1.7 - fold_HW, 0.0, 1.0)
            fat_HW *= np.clip((skin_HW - 9.0) * 0.3, 0.0, 1.0)
            hu_HW -= fat_HW * np.float32(100.0)
        return hu_HW

    def _draw_bone(self, skull_HW: Field, room: _Room) -> Field:
        """Bone by the distance to the nearer table of the skull."""
        depth_HW, height = np.minimum(skull_HW, -room.depth_HW), room.plane.height
        bone_HW = look_up(table.bone_table(self._anatomy, height), depth_HW)
        trabeculae_HW = np.clip((depth_HW - 1.5) * 90.0, 0.0, 110.0)
        bone_HW += trabeculae_HW * self._canvas.fine_HW
        return bone_HW

    def _sulcus_distance(self, room: _Room, bleeds: Sequence[Bleed]) -> Field:
        """Distance to the nearest water around the brain, mm."""
        atrophy, height = self._anatomy.atrophy, room.plane.height
        dome_HW = room.dome_HW
        for bleed in bleeds:
            if bleed.thickness:  # pushes the brain's surface inwards
                size = float(self._sizes(bleed, room.plane).min())
                pushed_A = extra_axial_depth(bleed, size)
                dome_HW = dome_HW - self._canvas.around(pushed_A)
        depth_HW = room._replace(dome_HW=dome_HW).depth_HW
        beyond_HW = np.maximum(depth_HW - np.float32(12.0 + 6.0 * atrophy), 0.0)
        folded_HW = room.fold_HW + beyond_HW * np.float32(0.4)  # sulci end in the depth
        surface_HW = depth_HW - np.float32(0.4 + 2.6 * atrophy)
        sulcus_HW: Field = np.minimum(folded_HW, surface_HW)
        if height > CEREBRUM_MM:  # the fissure has cortex on both its sides
            box = self._canvas.box_around(0.0, 0.0, 9.0, 95.0)
            x, y = self._canvas.x_HW[box], self._canvas.y_HW[box]
            fissure = np.abs(x) - np.float32(1.3 * atrophy - 0.2)
            callosum_mm = np.float32(np.clip((84.0 - height) * 1.3, 0.0, 36.0))
            fissure += np.maximum(callosum_mm - np.abs(y), 0.0)
            if height < MIDBRAIN_MM:
                fissure += np.maximum(y + 30.0, 0.0)
            np.minimum(sulcus_HW[box], fissure, out=sulcus_HW[box])
        return sulcus_HW

    def _draw_brain(
        self, room: _Room, bleeds: Sequence[Bleed]
    ) -> tuple[Field, list[Bleed]]:
        """The brain with its bleeds, and those of them that are seen."""
        canvas, organs, height = self._canvas, self._organs, room.plane.height
        shift_mm = midline_shift(bleeds, height)
        brain = _Brain(
            room=room,
            sulcus_HW=self._sulcus_distance(room, bleeds),
            cisterns_HW=canvas.mark(organs.cisterns, height),
            ventricles_HW=canvas.mark(organs.ventricles, height, shift_mm=shift_mm),
        )
        hu_HW = look_up(table.brain_table(self._anatomy, height), brain.sulcus_HW)
        canvas.paint(hu_HW, organs.nuclei, height, shift_mm=shift_mm, soft_mm=3.0)
        water_HW = np.maximum(brain.cisterns_HW, brain.ventricles_HW)
        hu_HW += water_HW * (np.float32(table.CSF_HU) - hu_HW)
        canvas.paint(hu_HW, table.BRAINSTEM, height, soft_mm=3.0)
        canvas.paint(hu_HW, organs.calcifications, height, shift_mm=shift_mm)
        canvas.paint(hu_HW, table.DARK_BAR, height, soft_mm=6.0)
        if height > CEREBRUM_MM:
            self._paint_falx(hu_HW, height, shift_mm)
        seen = self._paint_bleeds(hu_HW, brain, bleeds)
        # Beam hardening: brighter under the skull.
        hu_HW += np.maximum(10.0 - room.depth_HW, 0.0) * np.float32(0.8)
        return hu_HW, seen

    def _paint_falx(self, brain_HW: Field, height: float, shift_mm: float) -> None:
        box = self._canvas.box_around(0.0, 0.0, 8.0, 95.0)
        x, y = self._canvas.x_HW[box], self._canvas.y_HW[box]
        bow = np.float32(0.4 * shift_mm) * np.exp(-((y / 50.0) ** 2))
        falx = np.clip(1.5 - np.abs(x - bow), 0.0, 1.0)
        callosum_mm = np.float32(np.clip((88.0 - height) * 1.4, 0.0, 48.0))
        falx *= np.clip((np.abs(y) - callosum_mm) * 0.2, 0.0, 1.0)
        if height < MIDBRAIN_MM:
            falx *= y < 0.0
        brain_HW[box] += falx * (48.0 - brain_HW[box])

    def _paint_bleeds(
        self, brain_HW: Field, brain: _Brain, bleeds: Sequence[Bleed]
    ) -> list[Bleed]:
        """Paint the bleeds that are large enough to be seen, and return them."""
        seen, room = [], brain.room
        for bleed in bleeds:
            weight_HW = self._blood(bleed, brain)
            blood_HW = bleed.hu + np.float32(2.5) * self._canvas.coarse_HW
            before_HW = self._unpushed(room) if bleed.thickness else brain_HW
            after_HW = brain_HW + weight_HW * (blood_HW - brain_HW)
            is_seen_HW = np.abs(after_HW - before_HW) > MIN_CONTRAST_HU
            is_seen_HW &= weight_HW > MIN_SHARE
            # What lies in the blurred edge of the skull is as bright as bone.
            is_seen_HW &= room.weight_HW > 0.97
            if np.count_nonzero(is_seen_HW) < self._min_pixels:
                continue
            seen.append(bleed)
            if bleed.radius:
                oedema_HW = self._blob(bleed, room.plane, 1.4, 6.0)
                oedema_HW *= np.minimum(20.0 - brain_HW, 0.0)
                brain_HW += oedema_HW
            brain_HW += weight_HW * (blood_HW - brain_HW)
        return seen

    def _unpushed(self, room: _Room) -> Field:
        """Grey and white matter if no bleed pushed them."""
        cortex = table.brain_table(self._anatomy, room.plane.height)
        return look_up(cortex, self._sulcus_distance(room, ()))

    def _blood(self, bleed: Bleed, brain: _Brain) -> Field:
        """Share of blood in each pixel of a thick slice."""
        edge_mm = self._edge_mm + BLOOD_EDGE_MM
        if bleed.radius:
            return self._blob(bleed, brain.room.plane, 1.0, edge_mm)
        sizes = self._sizes(bleed, brain.room.plane)
        if bleed.thickness:
            weights = [
                ramp(
                    self._canvas.around(extra_axial_depth(bleed, size))
                    - brain.room.dome_HW,
                    edge_mm,
                )
                for size in sizes
                if size
            ]
            return sum(weights[1:], weights[0]) / np.float32(len(sizes))
        if bleed.subtype == "subarachnoid":
            width_mm = np.float32(2.2 + 0.6 * self._anatomy.atrophy)
            weight_HW = ramp(width_mm - brain.sulcus_HW, edge_mm)
            np.maximum(weight_HW, brain.cisterns_HW, out=weight_HW)
            weight_HW *= self._canvas.around(covered_angles(bleed))
        else:  # settles in the ventricles
            level_HW = ramp(self._canvas.y_HW - np.float32(bleed.y), 2.0 + edge_mm)
            weight_HW = brain.ventricles_HW * level_HW
        # It thins out towards its ends.
        weight_HW *= np.float32(np.clip(3.0 * sizes, 0.0, 1.0).mean())
        return weight_HW

    def _blob(
        self, bleed: Bleed, plane: _Plane, growth: float, edge_mm: float
    ) -> Field:
        """Share of a lobed intraparenchymal bleed in each pixel."""
        canvas = self._canvas
        weight_HW = np.zeros_like(canvas.x_HW)
        reach_mm = 1.5 * growth * bleed.radius + edge_mm
        box = canvas.box_around(bleed.x, bleed.y, reach_mm, reach_mm)
        away = np.hypot(
            canvas.x_HW[box] - np.float32(bleed.x),
            canvas.y_HW[box] - np.float32(bleed.y),
        )
        lobes = 1.0 + np.float32(0.16) * canvas.coarse_HW[box]
        for size in self._sizes(bleed, plane):
            radius_mm = np.float32(growth * bleed.radius * size)
            weight_HW[box] += ramp(radius_mm * lobes - away, edge_mm) if size else 0.0
        weight_HW[box] /= np.float32(len(STEPS))
        return weight_HW

    def _sizes(self, bleed: Bleed, plane: _Plane) -> npt.NDArray[np.float64]:
        """Size of a bleed, 0 to 1, in the planes of a thick slice."""
        x, y = bleed.x, bleed.y
        if not bleed.radius:
            x = 0.8 * self._anatomy.half_width * math.cos(bleed.angle)
            y = 0.8 * self._anatomy.half_length * math.sin(bleed.angle)
        height = plane.height + float(self._canvas.rise(x, y))
        return np.array(
            [reach(bleed, height + step * plane.thickness_mm) for step in STEPS]
        )


def _place_organs(anatomy: Anatomy) -> _Organs:
    """Put the organs of the tables into a head."""
    growth = anatomy.atrophy
    sinus, cistern = anatomy.sinus, 0.6 + 0.8 * growth
    calcified = zip(table.CALCIFICATIONS, anatomy.calcified_hu, strict=True)
    shapes = [shape._replace(hu=hu) for shape, hu in calcified if hu]
    return _Organs(
        face=table.place(table.FACE, anatomy)
        + table.place(table.SINUSES, anatomy, scale=(sinus, sinus)),
        base=table.place(table.BASE, anatomy),
        cisterns=table.place(table.CISTERNS, anatomy, scale=(cistern, cistern)),
        ventricles=table.place(
            table.VENTRICLES, anatomy, scale=(0.65 + 0.9 * growth, 1.0), uneven=3.0
        ),
        nuclei=table.place(table.NUCLEI, anatomy),
        calcifications=table.place(shapes, anatomy, uneven=5.0),
    )
