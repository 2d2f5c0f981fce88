"""A head and its bleeds as functions of position: HU of one axial slice at a time.

Promises:

1. A slice depends on the anatomy, the grid, the height and the bleeds; on nothing else.
2. A bleed that covers less than `synth.hemorrhage.MIN_AREA_MM2` of a slice is not in
   it: the slice is drawn, and labelled, as if the bleed were not there, mass effect
   included.

Skin and skull come from outlines, the brain from the distance to the nearest water
around it, everything else from ellipsoids. Each layer is one look-up in a table, on
the box around the head only, which is why a slice takes milliseconds.

Shape letters: H rows and W columns of a slice, or of the box around the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ichfast.synth.anatomy import (
    BASE,
    BASE_TOP_MM,
    BRAINSTEM,
    CISTERNS,
    CSF_HU,
    DARK_BAR,
    FACE,
    NUCLEI,
    SINUSES,
    VENTRICLES,
    Anatomy,
    bone_table,
    brain_table,
    calcifications,
    outlines,
    scalp_table,
)
from ichfast.synth.canvas import Canvas, Field, Grid, look_up, ramp
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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Brain:
    """The fields of one slice that the bleeds need, shape (H, W) each."""

    height: float
    depth_mm: Field
    """Depth inside the inner table of the skull; negative outside the brain's room."""
    room: Field
    """1 in the brain's room, 0 outside, between on the edge."""
    sulcus_mm: Field
    """Distance to the nearest water around the brain."""
    ventricles: Field
    """1 in the ventricles, 0 outside."""
    cisterns: Field


class Phantom:
    """A patient's head in the slices of one series.

    Args:
        anatomy: the patient.
        grid: the pixels, and where the head lies in them.
    """

    def __init__(self, anatomy: Anatomy, grid: Grid) -> None:
        self._anatomy = anatomy
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
            surround_HW: the slice without the head, HU, float32, of the grid's rows
                and columns: air and the head holder. Not changed.
            height: mm above the orbitomeatal line.
            bleeds: those of the whole head; what does not reach this height is left
                out.

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
        """The box around the head, and the bleeds large enough to be seen."""
        canvas = self._canvas
        outline = outlines(self._anatomy, height)
        # A slice is 5 mm thick: where the skull slants, its edge is blurred.
        edge_mm = max(2.0 * canvas.edge_mm, min(6.0 * outline.slope, 14.0))
        fold_HW = canvas.fold_distance(height)
        depth_HW = canvas.depth(outline.inner_A)
        sulcus_HW = self._sulcus_distance(height, depth_HW, np.abs(fold_HW), bleeds)

        hu_HW = self._scalp(surround_HW, canvas.depth(outline.skin_A), height, fold_HW)
        if height < BASE_TOP_MM:
            self._paint_face(hu_HW, height)
        self._paint_skull(
            hu_HW, height, canvas.depth(outline.outer_A), depth_HW, edge_mm
        )
        brain_HW = look_up(brain_table(self._anatomy, height), sulcus_HW)
        brain = _Brain(
            height=height,
            depth_mm=depth_HW,
            room=ramp(depth_HW, edge_mm),
            sulcus_mm=sulcus_HW,
            ventricles=np.zeros_like(depth_HW),
            cisterns=np.zeros_like(depth_HW),
        )
        self._paint_deep(brain_HW, brain, midline_shift(bleeds, height))
        seen = self._paint_bleeds(brain_HW, brain, bleeds)
        # Beam hardening: brighter under the skull.
        brain_HW += np.maximum(10.0 - depth_HW, 0.0) * np.float32(0.8)
        brain_HW -= hu_HW
        brain_HW *= brain.room
        hu_HW += brain_HW
        if height < BASE_TOP_MM:
            for shape in BASE:
                canvas.paint(hu_HW, shape, height)
        return hu_HW, seen

    def _sulcus_distance(
        self, height: float, depth_HW: Field, fold_HW: Field, bleeds: Sequence[Bleed]
    ) -> Field:
        """Distance to the nearest water around the brain, mm. Overwrites `fold_HW`."""
        atrophy = self._anatomy.atrophy
        for bleed in bleeds:
            if bleed.thickness:  # pushes the brain's surface inwards
                pushed_A = extra_axial_depth(bleed, height)
                depth_HW = depth_HW - self._canvas.around(pushed_A)
        beyond_HW = np.maximum(depth_HW - np.float32(12.0 + 6.0 * atrophy), 0.0)
        beyond_HW *= np.float32(0.4)  # sulci end in the depth
        fold_HW += beyond_HW
        surface_HW = depth_HW - np.float32(0.4 + 2.6 * atrophy)
        sulcus_HW: Field = np.minimum(fold_HW, surface_HW, out=fold_HW)
        if height > CEREBRUM_MM:
            self._split_hemispheres(sulcus_HW, height)
        return sulcus_HW

    def _split_hemispheres(self, sulcus_HW: Field, height: float) -> None:
        """Give the interhemispheric fissure cortex on both its sides."""
        box = self._canvas.box_around(0.0, 0.0, 9.0, 95.0, 0.0)
        x, y = self._canvas.x_HW[box], self._canvas.y_HW[box]
        fissure = np.abs(x) - np.float32(1.3 * self._anatomy.atrophy - 0.2)
        callosum_mm = np.float32(np.clip((84.0 - height) * 1.3, 0.0, 36.0))
        fissure += np.maximum(callosum_mm - np.abs(y), 0.0)
        if height < 48.0:  # the midbrain and the cerebellum are one piece
            fissure += np.maximum(y + 30.0, 0.0)
        np.minimum(sulcus_HW[box], fissure, out=sulcus_HW[box])

    def _scalp(
        self, surround_HW: Field, skin_HW: Field, height: float, fold_HW: Field
    ) -> Field:
        hu_HW = look_up(scalp_table(self._anatomy), skin_HW)
        if height < BASE_TOP_MM:  # muscles with fat between them
            fat_HW = np.clip(1.7 - np.abs(fold_HW), 0.0, 1.0)
            fat_HW *= np.clip((skin_HW - 9.0) * 0.3, 0.0, 1.0)
            hu_HW -= fat_HW * np.float32(130.0)
        hu_HW -= surround_HW
        hu_HW *= ramp(skin_HW, self._canvas.edge_mm)
        hu_HW += surround_HW
        return hu_HW

    def _paint_face(self, hu_HW: Field, height: float) -> None:
        for shape in FACE:
            self._canvas.paint(hu_HW, shape, height)
        size = self._anatomy.sinus
        for shape in SINUSES:
            scaled = shape._replace(
                x_radius=shape.x_radius * size, y_radius=shape.y_radius * size
            )
            self._canvas.paint(hu_HW, scaled, height)

    def _paint_skull(
        self,
        hu_HW: Field,
        height: float,
        outer_HW: Field,
        inner_HW: Field,
        edge_mm: float,
    ) -> None:
        """Paint bone inside the outer table, by the distance to the nearer table."""
        depth_HW = np.minimum(outer_HW, -inner_HW)
        bone_HW = look_up(bone_table(self._anatomy, height), depth_HW)
        trabeculae_HW = np.clip((depth_HW - 1.5) * 90.0, 0.0, 110.0)
        trabeculae_HW *= self._canvas.fine_HW
        bone_HW += trabeculae_HW
        bone_HW -= hu_HW
        bone_HW *= ramp(outer_HW, edge_mm)
        hu_HW += bone_HW

    def _paint_deep(self, brain_HW: Field, brain: _Brain, shift_mm: float) -> None:
        canvas, height, atrophy = self._canvas, brain.height, self._anatomy.atrophy
        for shape in NUCLEI:
            canvas.paint(brain_HW, shape, height, shift_mm=shift_mm, soft_mm=3.0)
        wide = 0.6 + 0.8 * atrophy
        for shape in CISTERNS:
            grown = shape._replace(
                x_radius=shape.x_radius * wide, y_radius=shape.y_radius * wide
            )
            canvas.mark(brain.cisterns, grown, height, shift_mm=0.0)
        wide = 0.65 + 0.9 * atrophy
        for shape in VENTRICLES:
            grown = shape._replace(x_radius=shape.x_radius * wide)
            canvas.mark(brain.ventricles, grown, height, shift_mm=shift_mm)
        water_HW = np.maximum(brain.cisterns, brain.ventricles)
        water_HW *= np.float32(CSF_HU) - brain_HW
        brain_HW += water_HW
        for shape in BRAINSTEM:
            canvas.paint(brain_HW, shape, height, soft_mm=1.5)
        for shape in calcifications(self._anatomy):
            canvas.paint(brain_HW, shape, height, shift_mm=shift_mm)
        canvas.paint(brain_HW, DARK_BAR, height, soft_mm=6.0)
        if height > CEREBRUM_MM:
            self._paint_falx(brain_HW, height, shift_mm)

    def _paint_falx(self, brain_HW: Field, height: float, shift_mm: float) -> None:
        box = self._canvas.box_around(0.0, 0.0, 8.0, 95.0, 0.0)
        x, y = self._canvas.x_HW[box], self._canvas.y_HW[box]
        bow = np.float32(0.4 * shift_mm) * np.exp(-((y / 50.0) ** 2))
        falx = np.clip(1.5 - np.abs(x - bow), 0.0, 1.0)
        callosum_mm = np.float32(np.clip((88.0 - height) * 1.4, 0.0, 48.0))
        falx *= np.clip((np.abs(y) - callosum_mm) * 0.2, 0.0, 1.0)
        if height < 48.0:
            falx *= y < 0.0
        brain_HW[box] += falx * (48.0 - brain_HW[box])

    def _paint_bleeds(
        self, brain_HW: Field, brain: _Brain, bleeds: Sequence[Bleed]
    ) -> list[Bleed]:
        """Paint the bleeds that are large enough to be seen, and return them."""
        seen = []
        needed = MIN_AREA_MM2 / self._canvas.pixel_mm2
        for bleed in bleeds:
            weight_HW = self._blood(bleed, brain)
            # What lies in the blurred edge of the skull is as bright as bone.
            if np.count_nonzero((weight_HW > 0.6) & (brain.room > 0.97)) < needed:
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
                return ramp(self._canvas.around(thickness_A) - brain.depth_mm, 1.0)
            case "subarachnoid":
                width_mm = np.float32(2.2 + 0.6 * self._anatomy.atrophy)
                weight_HW: Field = np.clip(width_mm - brain.sulcus_mm, 0.0, 1.0)
                np.maximum(weight_HW, brain.cisterns, out=weight_HW)
                weight_HW *= self._canvas.around(covered_angles(bleed))
                return weight_HW
            case "intraventricular":
                level_HW = ramp(self._canvas.y_HW - np.float32(bleed.y), 2.0)
                return brain.ventricles * level_HW
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
