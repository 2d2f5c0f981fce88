"""A head and its bleeds as functions of position: HU of one axial slice at a time.

Promises:

1. A slice depends on the anatomy, the grid, the height and the bleeds; on nothing else.
2. A bleed that covers less than `hemorrhage.MIN_AREA_MM2` of a slice is not in it: the
   slice is drawn, and labelled, as if the bleed were not there, mass effect included.

Skin and skull come from outlines, the brain from the distance to the nearest water,
everything else from the tables of ellipsoids in `ichfast.synth.anatomy`.

Shape letters: H rows and W columns of a slice, or of the box around the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ichfast.synth import anatomy as table
from ichfast.synth.anatomy import BASE_TOP_MM, Anatomy
from ichfast.synth.canvas import Canvas, Field, Grid, blend, look_up, ramp
from ichfast.synth.hemorrhage import (
    MIN_AREA_MM2,
    SUBTYPES,
    Bleed,
    covered_angles,
    extra_axial_depth,
    midline_shift,
    reach,
)

CEREBRUM_MM = 28.0
"""The interhemispheric fissure and the falx begin at this height."""

MIDBRAIN_MM = 48.0
"""Below it the two halves of the midbrain and the cerebellum are one piece."""

MIN_EDGE_MM = 0.7
"""Width of a sharp edge, as the scanner's kernel blurs it, if pixels are smaller."""


class _Brain(NamedTuple):
    """The fields of one slice that the bleeds need, shape (H, W) each."""

    height: float
    depth_HW: Field
    """Depth inside the skull, mm; negative outside the brain's room."""
    room_HW: Field
    """1 in the brain's room, 0 outside, between on the edge."""
    sulcus_HW: Field
    """Distance to the nearest water around the brain, mm."""
    cisterns_HW: Field
    """1 in the cisterns, 0 outside."""
    ventricles_HW: Field


class Phantom:
    """A patient's head in the slices of one series.

    Args:
        anatomy: The patient.
        grid: The pixels, and where the head lies in them.
    """

    def __init__(self, anatomy: Anatomy, grid: Grid) -> None:
        self._anatomy = anatomy
        self._edge_mm = max(grid.spacing_mm, MIN_EDGE_MM)
        self._min_pixels = MIN_AREA_MM2 / grid.spacing_mm**2
        self._canvas = Canvas(
            grid,
            reach_mm=(anatomy.half_width + 14.0, anatomy.half_length + 16.0),
            warp=anatomy.warp,
            fold_offset=anatomy.fold_offset,
        )

    def draw(
        self, surround_HW: Field, height: float, bleeds: Sequence[Bleed] = ()
    ) -> tuple[Field, tuple[str, ...]]:
        """Draw the slice at a height.

        Args:
            surround_HW: The slice without the head, HU, float32, of the grid's rows
                and columns: air and the head holder. Not changed.
            height: Above the orbitomeatal line, mm.
            bleeds: Those of the whole head, wherever they lie.

        Returns:
            HU without noise, float32, of the shape of `surround_HW`; and the subtypes
            that the slice shows, in the order of `SUBTYPES`.
        """
        near = [bleed for bleed in bleeds if reach(bleed, height) > 0.1]
        box = self._canvas.box
        head_HW, seen = self._draw_head(surround_HW[box], height, near)
        if len(seen) < len(near):
            return self.draw(surround_HW, height, seen)
        hu_HW = surround_HW.copy()
        hu_HW[box] = head_HW
        shown = {bleed.subtype for bleed in seen}
        return hu_HW, tuple(name for name in SUBTYPES if name in shown)

    def _draw_head(
        self, surround_HW: Field, height: float, bleeds: Sequence[Bleed]
    ) -> tuple[Field, list[Bleed]]:
        """Draw the box around the head, and tell which bleeds are large enough."""
        canvas = self._canvas
        outline = table.outlines(self._anatomy, height)
        # A slice is 5 mm thick: where the skull slants, its edge is blurred.
        edge_mm = max(2.0 * self._edge_mm, min(6.0 * outline.slope, 14.0))
        fold_HW = np.abs(canvas.fold_distance(height))
        depth_HW = canvas.depth(outline.brain_A)
        skin_HW = canvas.depth(outline.skin_A)
        hu_HW = self._draw_scalp(skin_HW, fold_HW, height)
        hu_HW = blend(surround_HW, hu_HW, ramp(skin_HW, self._edge_mm))
        if height < BASE_TOP_MM:
            size = self._anatomy.sinus
            canvas.paint(hu_HW, table.FACE, height)
            canvas.paint(hu_HW, table.SINUSES, height, scale=(size, size))
        skull_HW = canvas.depth(outline.skull_A)
        bone_HW = self._draw_bone(skull_HW, depth_HW, height)
        hu_HW = blend(hu_HW, bone_HW, ramp(skull_HW, edge_mm))

        shift_mm = midline_shift(bleeds, height)
        growth = self._anatomy.atrophy
        cistern, ventricle = 0.6 + 0.8 * growth, 0.65 + 0.9 * growth
        brain = _Brain(
            height=height,
            depth_HW=depth_HW,
            room_HW=ramp(depth_HW, edge_mm),
            sulcus_HW=self._sulcus_distance(depth_HW, fold_HW, height, bleeds),
            cisterns_HW=canvas.mark(table.CISTERNS, height, scale=(cistern, cistern)),
            ventricles_HW=canvas.mark(
                table.VENTRICLES, height, scale=(ventricle, 1.0), shift_mm=shift_mm
            ),
        )
        brain_HW = self._draw_brain(brain, shift_mm)
        seen = self._paint_bleeds(brain_HW, brain, bleeds)
        # Beam hardening: brighter under the skull.
        brain_HW += np.maximum(10.0 - depth_HW, 0.0) * np.float32(0.8)
        hu_HW = blend(hu_HW, brain_HW, brain.room_HW)
        if height < BASE_TOP_MM:
            canvas.paint(hu_HW, table.BASE, height)
        return hu_HW, seen

    def _draw_scalp(self, skin_HW: Field, fold_HW: Field, height: float) -> Field:
        """Skin, fat and muscle by the depth under the skin."""
        hu_HW = look_up(table.scalp_table(self._anatomy), skin_HW)
        if height < BASE_TOP_MM:  # muscles with fat between them
            fat_HW = np.clip(1.7 - fold_HW, 0.0, 1.0)
            fat_HW *= np.clip((skin_HW - 9.0) * 0.3, 0.0, 1.0)
            hu_HW -= fat_HW * np.float32(130.0)
        return hu_HW

    def _draw_bone(self, skull_HW: Field, brain_HW: Field, height: float) -> Field:
        """Bone by the distance to the nearer table of the skull."""
        depth_HW = np.minimum(skull_HW, -brain_HW)
        bone_HW = look_up(table.bone_table(self._anatomy, height), depth_HW)
        trabeculae_HW = np.clip((depth_HW - 1.5) * 90.0, 0.0, 110.0)
        bone_HW += trabeculae_HW * self._canvas.fine_HW
        return bone_HW

    def _sulcus_distance(
        self, depth_HW: Field, fold_HW: Field, height: float, bleeds: Sequence[Bleed]
    ) -> Field:
        """Distance to the nearest water around the brain, mm."""
        atrophy = self._anatomy.atrophy
        for bleed in bleeds:
            if bleed.thickness:  # pushes the brain's surface inwards
                pushed_A = extra_axial_depth(bleed, height)
                depth_HW = depth_HW - self._canvas.around(pushed_A)
        beyond_HW = np.maximum(depth_HW - np.float32(12.0 + 6.0 * atrophy), 0.0)
        folded_HW = fold_HW + beyond_HW * np.float32(0.4)  # sulci end in the depth
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

    def _draw_brain(self, brain: _Brain, shift_mm: float) -> Field:
        """The brain without bleeds, pushed `shift_mm` to the right."""
        canvas, height = self._canvas, brain.height
        cortex = table.brain_table(self._anatomy, height)
        hu_HW = look_up(cortex, brain.sulcus_HW)
        canvas.paint(hu_HW, table.NUCLEI, height, shift_mm=shift_mm, soft_mm=3.0)
        water_HW = np.maximum(brain.cisterns_HW, brain.ventricles_HW)
        hu_HW += water_HW * (np.float32(table.CSF_HU) - hu_HW)
        canvas.paint(hu_HW, table.BRAINSTEM, height, soft_mm=1.5)
        calcified = zip(table.CALCIFICATIONS, self._anatomy.calcified_hu, strict=True)
        shapes = [shape._replace(hu=hu) for shape, hu in calcified if hu]
        canvas.paint(hu_HW, shapes, height, shift_mm=shift_mm)
        canvas.paint(hu_HW, table.DARK_BAR, height, soft_mm=6.0)
        if height > CEREBRUM_MM:
            self._paint_falx(hu_HW, height, shift_mm)
        return hu_HW

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
        seen = []
        for bleed in bleeds:
            weight_HW = self._blood(bleed, brain)
            # What lies in the blurred edge of the skull is as bright as bone.
            is_seen_HW = (weight_HW > 0.6) & (brain.room_HW > 0.97)
            if np.count_nonzero(is_seen_HW) < self._min_pixels:
                continue
            seen.append(bleed)
            if bleed.radius:
                oedema_HW = ramp(self._blob_depth(bleed, brain.height, 1.45), 6.0)
                brain_HW += oedema_HW * np.minimum(20.0 - brain_HW, 0.0)
            blood_HW = np.float32(bleed.hu) + 2.5 * self._canvas.coarse_HW
            brain_HW += weight_HW * (blood_HW - brain_HW)
        return seen

    def _blood(self, bleed: Bleed, brain: _Brain) -> Field:
        """1 where there is blood, 0 where there is none."""
        match bleed.subtype:
            case "epidural" | "subdural":
                thickness_A = extra_axial_depth(bleed, brain.height)
                return ramp(self._canvas.around(thickness_A) - brain.depth_HW, 1.0)
            case "subarachnoid":
                width_mm = np.float32(2.2 + 0.6 * self._anatomy.atrophy)
                sulci_HW: Field = np.clip(width_mm - brain.sulcus_HW, 0.0, 1.0)
                np.maximum(sulci_HW, brain.cisterns_HW, out=sulci_HW)
                return sulci_HW * self._canvas.around(covered_angles(bleed))
            case "intraventricular":
                level_HW = ramp(self._canvas.y_HW - np.float32(bleed.y), 2.0)
                return brain.ventricles_HW * level_HW
            case _:
                return ramp(self._blob_depth(bleed, brain.height, 1.0), 1.2)

    def _blob_depth(self, bleed: Bleed, height: float, size: float) -> Field:
        """Depth inside a lobed intraparenchymal bleed, mm, negative outside it."""
        canvas = self._canvas
        radius_mm = np.float32(bleed.radius * size * reach(bleed, height))
        away_HW = np.hypot(
            canvas.x_HW - np.float32(bleed.x), canvas.y_HW - np.float32(bleed.y)
        )
        depth_HW: Field = radius_mm * (1.0 + 0.16 * canvas.coarse_HW) - away_HW
        return depth_HW
