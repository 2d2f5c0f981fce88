"""Draws the augmentation of a slice as a pure function of (run seed, epoch, slice).

The numbers come from a counter-based generator. Each use has its own column of uniform
numbers and keeps it forever, so a setting that is added or switched on changes no other
draw.

Shape letters: B slices of the batch, M holes, U uniform numbers of a slice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ichfast.augment import geometry
from ichfast.augment.config import MAX_HOLES, AugmentConfig

Uniforms = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """Parameters drawn for the slices of a batch."""

    matrix_B33: npt.NDArray[np.float32]
    """Maps an output pixel to a source pixel, in homogeneous coordinates."""

    center_shift_B: npt.NDArray[np.float32]
    """Added to the center of every window, HU."""

    width_shift_B: npt.NDArray[np.float32]
    """Added to the width of every window, HU."""

    contrast_B: npt.NDArray[np.float32]
    """Factor in logit space, after the brightness; 1 changes nothing."""

    brightness_B: npt.NDArray[np.float32]
    """Offset in logit space, before the contrast; 0 changes nothing."""

    hole_corner_BM2: npt.NDArray[np.float32]
    """First row and column of each hole, output pixels; may lie outside the image."""

    hole_side_BM2: npt.NDArray[np.float32]
    """Rows and columns of each hole, output pixels; 0 for an unused hole."""

    is_depth_flipped_B: npt.NDArray[np.bool_]
    """Whether the slices above come first, and those below last."""


def draw(
    config: AugmentConfig,
    *,
    seed: int,
    epoch: int,
    slices_B: npt.NDArray[np.int64],
    source_shape_B2: npt.NDArray[np.floating],
    size: int,
    square_B33: Uniforms | None = None,
) -> Parameters:
    """Draw the parameters of some slices.

    Args:
        config: the distributions.
        seed: run seed.
        epoch: counted from 0.
        slices_B: store positions.
        source_shape_B2: rows and columns of the slices that the resample reads; a slice
            of 63 rows, halved, counts 31.5.
        size: side of the output, pixels.
        square_B33: matrices of `geometry.square`, which apply before what is drawn;
            None shows all pixels as squares.

    Returns:
        One row per slice, in the order of `slices_B`.
    """
    uniform_BU = _uniforms(seed, epoch, slices_B, _NUM_UNIFORMS)
    jitter = config.window_jitter
    contrast_B, brightness_B = _draw_lighting(config, uniform_BU)
    corner_BM2, side_BM2 = _draw_holes(config, uniform_BU, size)
    steps = _draw_steps(config, uniform_BU)
    if square_B33 is not None:
        steps.insert(0, square_B33)
    return Parameters(
        matrix_B33=geometry.to_pixels(steps, source_shape_B2, size),
        center_shift_B=_symmetric(uniform_BU[:, _CENTER], jitter[0]).astype("f4"),
        width_shift_B=_symmetric(uniform_BU[:, _WIDTH], jitter[1]).astype("f4"),
        contrast_B=contrast_B,
        brightness_B=brightness_B,
        hole_corner_BM2=corner_BM2,
        hole_side_BM2=side_BM2,
        is_depth_flipped_B=draw_depth_flips(
            config, seed=seed, epoch=epoch, slices_B=slices_B
        ),
    )


def draw_depth_flips(
    config: AugmentConfig, *, seed: int, epoch: int, slices_B: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Draw which slabs are flipped in depth: the only draw that decides what is read.

    Args:
        config: the distributions.
        seed: run seed.
        epoch: counted from 0.
        slices_B: store positions of the middle slices.

    Returns:
        Shape (B,), bool.
    """
    uniform_BU = _uniforms(seed, epoch, slices_B, _NUM_UNIFORMS)
    is_flipped_B: npt.NDArray[np.bool_] = (
        uniform_BU[:, _DEPTH_FLIP] < config.depth_flip_probability
    )
    return is_flipped_B


# Columns of the uniform numbers. A column never changes its use.
_FLIP, _IF_ROTATE, _ROTATE, _IF_ZOOM, _ZOOM = range(5)
_FOCUS, _IF_WARP, _WARP = slice(5, 7), 7, slice(8, 12)
_IF_BRIGHTNESS, _BRIGHTNESS, _IF_CONTRAST, _CONTRAST = range(12, 16)
_IF_CUTOUT, _HOLES, _SIDE, _CENTER, _WIDTH = range(16, 21)
_HOLE_CENTRES = slice(21, 21 + 2 * MAX_HOLES)
_IF_DIHEDRAL, _DIHEDRAL, _IF_SHIFT, _SHIFT = 61, 62, 63, slice(64, 66)
_DEPTH_FLIP = 66
_NUM_UNIFORMS = 67


def _symmetric(uniform: Uniforms, limit: float) -> Uniforms:
    """Map [0, 1) to the range from -limit to limit."""
    return (2.0 * uniform - 1.0) * limit


def _uniforms(
    seed: int, epoch: int, slices_B: npt.NDArray[np.int64], count: int
) -> Uniforms:
    """Uniform numbers in [0, 1), shape (B, count), keyed by (seed, epoch, slice).

    Source:
        SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number
        Generators", 2014): a counter stepped by the golden ratio and mixed. The keys
        are mixed one after another, so neighbouring slices are unrelated.
    """
    key = _mix(_mix(np.array([seed & _MASK64], np.uint64)) + np.uint64(epoch))
    start_B1 = _mix(key + slices_B.astype(np.uint64))[:, None]
    steps_U = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    return (_mix(start_B1 + steps_U) >> np.uint64(11)) * 2.0**-53


_MASK64 = 2**64 - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _draw_steps(config: AugmentConfig, uniform_BU: Uniforms) -> list[Uniforms]:
    """Matrices of the transforms that are switched on, in the order they apply.

    Source:
        fastai v1: it collects affine matrices in the order of `get_transforms`, reads
        the grid of the warp through them, and flips the resampled image.
    """
    steps = []
    if config.dihedral_probability:
        wanted_B = uniform_BU[:, _IF_DIHEDRAL] < config.dihedral_probability
        number_B = np.floor(8 * uniform_BU[:, _DIHEDRAL]).astype(np.int64)
        steps.append(geometry.symmetry(np.where(wanted_B, number_B, 0)))
    if config.max_rotation_deg:
        degrees_B = _symmetric(uniform_BU[:, _ROTATE], config.max_rotation_deg)
        wanted_B = uniform_BU[:, _IF_ROTATE] < config.affine_probability
        steps.append(geometry.rotation(np.deg2rad(np.where(wanted_B, degrees_B, 0.0))))
    if config.max_zoom != 1.0 or config.min_zoom != 1.0:
        steps.append(_draw_zoom(config, uniform_BU))
    if config.max_warp:
        moved_B4 = _symmetric(uniform_BU[:, _WARP], config.max_warp)
        wanted_B = uniform_BU[:, _IF_WARP] < config.affine_probability
        steps.append(geometry.warp(np.where(wanted_B[:, None], moved_B4, 0.0)))
    if config.max_shift:
        moved_B2 = _symmetric(uniform_BU[:, _SHIFT], config.max_shift)
        wanted_B = uniform_BU[:, _IF_SHIFT] < config.affine_probability
        steps.append(geometry.shift(np.where(wanted_B[:, None], moved_B2, 0.0)))
    if config.flip_probability:
        steps.append(geometry.mirror(uniform_BU[:, _FLIP] < config.flip_probability))
    return steps


def _draw_zoom(config: AugmentConfig, uniform_BU: Uniforms) -> Uniforms:
    reach = config.max_zoom - config.min_zoom
    factor_B = config.min_zoom + uniform_BU[:, _ZOOM] * reach
    if config.zoom_focus is not None:
        focus_B2 = np.tile(config.zoom_focus, (len(uniform_BU), 1))
        return geometry.zoom(factor_B, focus_B2)
    wanted_B = uniform_BU[:, _IF_ZOOM] < config.zoom_probability
    return geometry.zoom(np.where(wanted_B, factor_B, 1.0), uniform_BU[:, _FOCUS])


def _draw_lighting(
    config: AugmentConfig, uniform_BU: Uniforms
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Contrast factor and brightness offset, both in logit space."""
    amount = config.max_lighting
    change_B = 0.5 * (1.0 + _symmetric(uniform_BU[:, _BRIGHTNESS], amount))
    brightness_B = np.log(change_B / (1.0 - change_B))
    contrast_B = np.exp(_symmetric(uniform_BU[:, _CONTRAST], -np.log1p(-amount)))
    chance = config.lighting_probability
    return (
        np.where(uniform_BU[:, _IF_CONTRAST] < chance, contrast_B, 1.0).astype("f4"),
        np.where(uniform_BU[:, _IF_BRIGHTNESS] < chance, brightness_B, 0.0).astype(
            "f4"
        ),
    )


def _draw_holes(
    config: AugmentConfig, uniform_BU: Uniforms, size: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Corners and sides of the holes, which are squares around a uniform pixel.

    Source:
        fastai v1 `cutout`: a hole with an odd side reaches a pixel further up and left
        of its pixel than down and right.
    """
    min_holes, max_holes = config.cutout_holes
    min_side, max_side = config.cutout_side
    holes_B = np.floor(min_holes + uniform_BU[:, _HOLES] * (max_holes - min_holes + 1))
    side_B = np.floor(min_side + uniform_BU[:, _SIDE] * (max_side - min_side + 1))
    wanted_B = uniform_BU[:, _IF_CUTOUT] < config.cutout_probability
    used_BM = (np.arange(MAX_HOLES) < holes_B[:, None]) & wanted_B[:, None]
    uniform_BM2 = uniform_BU[:, _HOLE_CENTRES].reshape(-1, MAX_HOLES, 2)
    corner_BM2 = np.floor(uniform_BM2 * size) - np.ceil(side_B / 2)[:, None, None]
    side_BM2 = np.repeat((used_BM * side_B[:, None])[..., None], 2, axis=2)
    return corner_BM2.astype(np.float32), side_BM2.astype(np.float32)
