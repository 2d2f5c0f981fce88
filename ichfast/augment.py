"""What is drawn for a slice, and the NumPy twin that applies it.

Promises:

1. The parameters of a slice are a pure function of (run seed, epoch, slice): the
   same whatever the batch, the rank, the number of workers or the order.
2. Nothing here keeps state, so there is none to save.
3. `apply_parameters` is the readable definition of the whole chain; the DALI
   graph in `ichfast.pipeline` is the fast one, and tests hold the two equal.

The chain: halve while the source is at least twice the output, one perspective
resample, one table a window, lighting, normalise, cut holes. Halving takes exact
2x2 means, as the store's small level does; the resample reads 2x2 pixels, so below
twice the output it skips none.

Coordinates are corner-based, x then y: the first pixel reaches from 0 to 1. A
matrix takes an output pixel to the source pixel it is read from.

Shape letters: B slices of the batch, H rows, W columns, C windows, S output size,
M holes, U uniform numbers a slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ichfast.errors import RecipeError
from ichfast.windows import HU_OFFSET, Window, apply_windows

MAX_HOLES = 20
"""Holes a slice's arrays have room for; unused ones have side zero."""

MIN_WIDTH_HU = 1.0
"""Jitter leaves a window at least this wide."""

LOGIT_EPSILON = 1e-7
"""Lighting keeps values this far from 0 and 1, as fastai v1 does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """The laws that parameters are drawn from. The default changes nothing.

    Source:
        The laws are fastai v1's `get_transforms` and `cutout`.
    """

    flip_probability: float = 0.0
    """Chance of a left-right flip."""

    affine_probability: float = 0.75
    """Chance of a rotation, of a zoom and of a warp, each on its own."""

    max_rotation_deg: float = 0.0
    """Rotation is uniform between minus and plus this angle, degrees."""

    min_zoom: float = 1.0
    max_zoom: float = 1.0
    """The zoom factor is uniform between the two."""

    zoom_focus: tuple[float, float] | None = None
    """Share of width and height the zoom keeps in place, and then every slice is
    zoomed; None draws the share, and whether to zoom."""

    max_warp: float = 0.0
    """Four-corner perspective warp: how far a corner moves, in half sides."""

    max_lighting: float = 0.0
    """Brightness and contrast in logit space; 0.2 is fastai's default."""

    lighting_probability: float = 0.75
    """Chance of a change of brightness, and of contrast, each on its own."""

    window_jitter: tuple[float, float] = (0.0, 0.0)
    """How far a window's center, and its width, may lie off, HU; uniform, one draw
    a slice for all its windows. The 4th place of the competition used (7, 15)."""

    cutout_probability: float = 0.0
    """Chance that holes are cut at all."""

    cutout_holes: tuple[int, int] = (4, 20)
    """Fewest and most holes, both included."""

    cutout_side: tuple[int, int] = (2, 30)
    """Smallest and largest side in pixels, both included; one for all holes."""

    def __post_init__(self) -> None:
        for name in (
            "flip_probability",
            "affine_probability",
            "lighting_probability",
            "cutout_probability",
        ):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise RecipeError(
                    f"augment.{name} is a chance between 0 and 1, "
                    f"got {getattr(self, name)}"
                )
        if not 0.0 < self.min_zoom <= self.max_zoom:
            raise RecipeError(
                "augment.min_zoom and max_zoom must rise and be above 0, "
                f"got {self.min_zoom} and {self.max_zoom}"
            )
        if not 0.0 <= self.max_warp < 0.5 or not 0.0 <= self.max_lighting < 1.0:
            raise RecipeError(
                "augment.max_warp is in [0, 0.5) and max_lighting in [0, 1), "
                f"got {self.max_warp} and {self.max_lighting}"
            )
        if not all(0.0 <= off < 1000.0 for off in self.window_jitter):
            raise RecipeError(
                "augment.window_jitter is two numbers of HU from 0 to 1000, "
                f"got {self.window_jitter}"
            )
        if not 1 <= self.cutout_holes[0] <= self.cutout_holes[1] <= MAX_HOLES:
            raise RecipeError(
                f"augment.cutout_holes is two rising numbers from 1 to {MAX_HOLES}, "
                f"got {self.cutout_holes}"
            )
        if not 1 <= self.cutout_side[0] <= self.cutout_side[1]:
            raise RecipeError(
                "augment.cutout_side is two rising numbers of pixels from 1, "
                f"got {self.cutout_side}"
            )


FASTAI = AugmentConfig(
    flip_probability=0.5,
    max_rotation_deg=10.0,
    max_zoom=1.1,
    max_warp=0.2,
    max_lighting=0.2,
)
"""fastai v1's `get_transforms()`."""

EXP_30 = replace(
    FASTAI,
    max_rotation_deg=30.0,
    max_zoom=1.4,
    max_warp=0.0,
    cutout_probability=0.5,
)
"""The reference's strongest: rotation 30, zoom 1.4, no warp, cutout."""

EXP_10_MIXUP = replace(FASTAI, max_rotation_deg=30.0, min_zoom=1.05, max_zoom=1.4)
"""The reference's for mixup: rotation 30, zoomed crops of 1.05 to 1.4."""

LIGHT = AugmentConfig(
    flip_probability=0.5,
    max_rotation_deg=15.0,
    max_zoom=1.2,
)
"""Flip, a little rotation and zoom: for short runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """What was drawn for the slices of a batch."""

    matrix_B33: npt.NDArray[np.float32]
    """Output pixel to source pixel, homogeneous coordinates."""

    center_shift_B: npt.NDArray[np.float32]
    """Added to the center of every window, HU."""

    width_shift_B: npt.NDArray[np.float32]
    """Added to the width of every window, HU."""

    contrast_B: npt.NDArray[np.float32]
    """Factor in logit space; 1 changes nothing."""

    brightness_B: npt.NDArray[np.float32]
    """Summand in logit space; 0 changes nothing."""

    hole_corner_BM2: npt.NDArray[np.float32]
    """First row and column of each hole, output pixels; may lie outside."""

    hole_side_BM2: npt.NDArray[np.float32]
    """Rows and columns of each hole, output pixels; 0 where there is none."""


def count_halvings(
    rows: npt.NDArray[np.integer], columns: npt.NDArray[np.integer], size: int
) -> npt.NDArray[np.int64]:
    """How often slices are halved before the resample: never below `size`.

    Args:
        rows: of the sources, shape (B,).
        columns: likewise.
        size: side of the output, pixels.

    Returns:
        Shape (B,), int64.
    """
    longer_B = np.maximum(rows, columns)
    return np.maximum(np.floor(np.log2(longer_B / size)), 0).astype(np.int64)


def draw(
    config: AugmentConfig,
    *,
    seed: int,
    epoch: int,
    slices_B: npt.NDArray[np.int64],
    source_shape_B2: npt.NDArray[np.floating],
    size: int,
) -> Parameters:
    """Draw the parameters of some slices.

    Args:
        config: the laws.
        seed: run seed.
        epoch: counted from 0.
        slices_B: store positions.
        source_shape_B2: rows and columns of what the resample reads; a slice of 63
            rows, halved, counts 31.5.
        size: side of the output, pixels.

    Returns:
        One row a slice, in the order of `slices_B`.
    """
    uniform_BU = _uniforms(seed, epoch, slices_B, _NUM_FIXED + 2 * MAX_HOLES)
    jitter = config.window_jitter
    contrast_B, brightness_B = _draw_lighting(config, uniform_BU)
    corner_BM2, side_BM2 = _draw_holes(config, uniform_BU, size)
    return Parameters(
        matrix_B33=_draw_matrix(config, uniform_BU, source_shape_B2, size),
        center_shift_B=_symmetric(uniform_BU[:, _CENTER], jitter[0]).astype("f4"),
        width_shift_B=_symmetric(uniform_BU[:, _WIDTH], jitter[1]).astype("f4"),
        contrast_B=contrast_B,
        brightness_B=brightness_B,
        hole_corner_BM2=corner_BM2,
        hole_side_BM2=side_BM2,
    )


# Columns of the uniform numbers; each is used for one thing only.
_FLIP, _IF_ROTATE, _ROTATE, _IF_ZOOM, _ZOOM, _FOCUS_X, _FOCUS_Y = range(7)
_IF_WARP, _WARP, _IF_BRIGHTNESS, _BRIGHTNESS = 7, slice(8, 12), 12, 13
_IF_CONTRAST, _CONTRAST, _IF_CUTOUT, _HOLES, _SIDE, _CENTER, _WIDTH = range(14, 21)
_NUM_FIXED = 21


def _symmetric(
    uniform: npt.NDArray[np.float64], limit: float
) -> npt.NDArray[np.float64]:
    """Uniform between minus and plus `limit`."""
    return (2.0 * uniform - 1.0) * limit


def _uniforms(
    seed: int, epoch: int, slices_B: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1), `count` a slice, keyed by (seed, epoch, slice).

    Source:
        SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number
        Generators", 2014): a counter stepped by the golden ratio and mixed. Each
        key is mixed in turn, so neighbouring slices share nothing.
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


def _draw_matrix(
    config: AugmentConfig,
    uniform_BU: npt.NDArray[np.float64],
    source_shape_B2: npt.NDArray[np.floating],
    size: int,
) -> npt.NDArray[np.float32]:
    """Compose the geometry in centred coordinates, half a side long."""
    matrix_B33 = _eye(len(uniform_BU))
    matrix_B33[:, 0, 0] = np.where(
        uniform_BU[:, _FLIP] < config.flip_probability, -1.0, 1.0
    )
    if config.max_zoom != 1.0 or config.min_zoom != 1.0:
        matrix_B33 = matrix_B33 @ _zoom(config, uniform_BU)
    if config.max_rotation_deg:
        matrix_B33 = matrix_B33 @ _rotation(config, uniform_BU)
    if config.max_warp:
        matrix_B33 = matrix_B33 @ _warp(config, uniform_BU)

    # Output pixels to centred coordinates, and back to source pixels, so that
    # the longer side of the source fills the output.
    from_pixels_33 = np.array([[2 / size, 0, -1], [0, 2 / size, -1], [0, 0, 1]])
    to_pixels_B33 = _eye(len(uniform_BU))
    half_B2 = source_shape_B2[:, ::-1] / 2
    to_pixels_B33[:, 0, 0] = to_pixels_B33[:, 1, 1] = half_B2.max(axis=1)
    to_pixels_B33[:, :2, 2] = half_B2
    return (to_pixels_B33 @ matrix_B33 @ from_pixels_33).astype(np.float32)


def _eye(count: int) -> npt.NDArray[np.float64]:
    return np.tile(np.eye(3), (count, 1, 1))


def _zoom(
    config: AugmentConfig, uniform_BU: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    zoom_B = config.min_zoom + uniform_BU[:, _ZOOM] * (
        config.max_zoom - config.min_zoom
    )
    if config.zoom_focus is None:
        wanted_B = uniform_BU[:, _IF_ZOOM] < config.affine_probability
        focus_B2 = uniform_BU[:, [_FOCUS_X, _FOCUS_Y]]
    else:
        wanted_B = np.ones(len(uniform_BU), dtype=bool)
        focus_B2 = np.tile(config.zoom_focus, (len(uniform_BU), 1))
    scale_B = np.where(wanted_B, 1.0 / zoom_B, 1.0)
    matrix_B33 = _eye(len(uniform_BU))
    matrix_B33[:, 0, 0] = matrix_B33[:, 1, 1] = scale_B
    matrix_B33[:, :2, 2] = (1.0 - scale_B)[:, None] * (2.0 * focus_B2 - 1.0)
    return matrix_B33


def _rotation(
    config: AugmentConfig, uniform_BU: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    degrees_B = _symmetric(uniform_BU[:, _ROTATE], config.max_rotation_deg)
    wanted_B = uniform_BU[:, _IF_ROTATE] < config.affine_probability
    angle_B = np.deg2rad(np.where(wanted_B, degrees_B, 0.0))
    matrix_B33 = _eye(len(uniform_BU))
    matrix_B33[:, 0, 0] = matrix_B33[:, 1, 1] = np.cos(angle_B)
    matrix_B33[:, 0, 1] = np.sin(angle_B)
    matrix_B33[:, 1, 0] = -np.sin(angle_B)
    return matrix_B33


def _warp(
    config: AugmentConfig, uniform_BU: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The perspective that brings four moved corners back to the square's.

    Source:
        fastai v1 `symmetric_warp`: four magnitudes, each moving one pair of
        corners along one axis; the eight coefficients solve a linear system.
    """
    moved_B4 = _symmetric(uniform_BU[:, _WARP], config.max_warp)
    wanted_B = uniform_BU[:, _IF_WARP] < config.affine_probability
    moved_B4 = np.where(wanted_B[:, None], moved_B4, 0.0)
    system_B88 = np.zeros((len(uniform_BU), 8, 8))
    known_B8 = np.zeros((len(uniform_BU), 8))
    for corner, (x, y) in enumerate(((-1, -1), (-1, 1), (1, -1), (1, 1))):
        moved_x_B = x * (1.0 + moved_B4[:, 3 if y < 0 else 2])
        moved_y_B = y * (1.0 + moved_B4[:, 1 if x < 0 else 0])
        for axis, wanted in ((0, x), (1, y)):
            row_B8 = system_B88[:, 2 * corner + axis]
            row_B8[:, 3 * axis] = moved_x_B
            row_B8[:, 3 * axis + 1] = moved_y_B
            row_B8[:, 3 * axis + 2] = 1.0
            row_B8[:, 6] = -wanted * moved_x_B
            row_B8[:, 7] = -wanted * moved_y_B
            known_B8[:, 2 * corner + axis] = wanted
    solved_B8 = np.linalg.solve(system_B88, known_B8[..., None])[..., 0]
    ones_B1 = np.ones((len(uniform_BU), 1))
    return np.concatenate([solved_B8, ones_B1], axis=1).reshape(-1, 3, 3)


def _draw_lighting(
    config: AugmentConfig, uniform_BU: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Contrast factor and brightness summand, both in logit space."""
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
    config: AugmentConfig, uniform_BU: npt.NDArray[np.float64], size: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Corners and sides of the holes, squares around a uniform pixel."""
    fewest, most = config.cutout_holes
    smallest, largest = config.cutout_side
    holes_B = np.floor(fewest + uniform_BU[:, _HOLES] * (most - fewest + 1))
    side_B = np.floor(smallest + uniform_BU[:, _SIDE] * (largest - smallest + 1))
    wanted_B = uniform_BU[:, _IF_CUTOUT] < config.cutout_probability
    used_BM = (np.arange(MAX_HOLES) < holes_B[:, None]) & wanted_B[:, None]
    centre_BM2 = np.floor(uniform_BU[:, _NUM_FIXED:] * size).reshape(-1, MAX_HOLES, 2)
    corner_BM2 = centre_BM2 - np.floor(side_B / 2)[:, None, None]
    side_BM2 = np.repeat((used_BM * side_B[:, None])[..., None], 2, axis=2)
    return corner_BM2.astype(np.float32), side_BM2.astype(np.float32)


def apply_parameters(
    stored_HW: npt.NDArray[np.uint16],
    parameters: Parameters,
    row: int,
    *,
    size: int,
    windows: Sequence[Window],
    mean_C: Sequence[float],
    std_C: Sequence[float],
) -> npt.NDArray[np.float32]:
    """Apply what was drawn for one slice, slowly and readably.

    Args:
        stored_HW: the slice, halved already. Not changed.
        parameters: what was drawn.
        row: which row of `parameters` belongs to the slice.
        size: side of the output, pixels.
        windows: C windows.
        mean_C: subtracted from each windowed channel.
        std_C: divides each.

    Returns:
        Shape (size, size, C), float32, normalised.
    """
    warped_SS = _resample(stored_HW, parameters.matrix_B33[row], size)
    hu_1SS = np.rint(warped_SS)[None] - HU_OFFSET
    center_shift, width_shift = (
        float(parameters.center_shift_B[row]),
        float(parameters.width_shift_B[row]),
    )
    jittered = [jitter(window, center_shift, width_shift) for window in windows]
    image_SSC = apply_windows(hu_1SS, jittered)[0]
    contrast, brightness = parameters.contrast_B[row], parameters.brightness_B[row]
    if contrast != 1.0 or brightness != 0.0:
        image_SSC = np.clip(image_SSC, LOGIT_EPSILON, 1.0 - LOGIT_EPSILON)
        logit_SSC = np.log(image_SSC / (1.0 - image_SSC)) * contrast + brightness
        image_SSC = 1.0 / (1.0 + np.exp(-logit_SSC))
    air_C = apply_windows(np.full((1, 1, 1), -HU_OFFSET), windows)[0, 0, 0]
    for (top, left), (rows, columns) in zip(
        parameters.hole_corner_BM2[row].astype(int),
        parameters.hole_side_BM2[row].astype(int),
        strict=True,
    ):
        if rows:
            image_SSC[
                max(top, 0) : max(top + rows, 0), max(left, 0) : max(left + columns, 0)
            ] = air_C
    return (image_SSC - np.asarray(mean_C, np.float32)) / np.asarray(std_C, np.float32)


def jitter(window: Window, center_shift: float, width_shift: float) -> Window:
    """A window moved and stretched; it stays at least `MIN_WIDTH_HU` wide."""
    return replace(
        window,
        center=window.center + center_shift,
        width=max(window.width + width_shift, MIN_WIDTH_HU),
    )


def halve(stored_HW: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """Half the rows and columns, each pixel the mean of four; air beyond an edge."""
    rows, columns = stored_HW.shape
    padded_HW = np.pad(stored_HW, ((0, rows % 2), (0, columns % 2))).astype(np.float64)
    quarters = [padded_HW[y::2, x::2] for y in (0, 1) for x in (0, 1)]
    return np.rint(np.mean(quarters, axis=0)).astype(np.uint16)


def _resample(
    stored_HW: npt.NDArray[np.uint16], matrix_33: npt.NDArray[np.float32], size: int
) -> npt.NDArray[np.float64]:
    """Read the source bilinearly where the matrix points; outside is air, 0."""
    centre_S = np.arange(size) + 0.5
    x_SS, y_SS = np.meshgrid(centre_S, centre_S)
    points_3 = matrix_33.astype(np.float64) @ np.stack(
        [x_SS.ravel(), y_SS.ravel(), np.ones(size * size)]
    )
    x_P, y_P = points_3[:2] / points_3[2] - 0.5
    padded_HW = np.pad(stored_HW.astype(np.float64), 1)
    rows, columns = padded_HW.shape
    x_P = np.clip(x_P + 1, 0, columns - 1 - 1e-9)
    y_P = np.clip(y_P + 1, 0, rows - 1 - 1e-9)
    left_P, top_P = x_P.astype(int), y_P.astype(int)
    across_P, down_P = x_P - left_P, y_P - top_P
    upper_P = (
        padded_HW[top_P, left_P] * (1 - across_P)
        + padded_HW[top_P, left_P + 1] * across_P
    )
    lower_P = (
        padded_HW[top_P + 1, left_P] * (1 - across_P)
        + padded_HW[top_P + 1, left_P + 1] * across_P
    )
    return (upper_P * (1 - down_P) + lower_P * down_P).reshape(size, size)
