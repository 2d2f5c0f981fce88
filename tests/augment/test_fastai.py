"""Draws and values equal fastai's formulas, which are written out here.

Nothing here comes from `augment.geometry`, `augment.parameters` or
`augment.reference`. From a slice's random numbers the test computes what fastai 1.0.61
would make of them: transforms sorted by their order (warp 4, affine 5, lighting 8,
flip 10, cutout 20), affine matrices multiplied from left to right, the warp applied to
the output's grid first. One thing is ours: -1 and 1 are the edges of a slice, where in
fastai they are the middles of its first and last pixel.

Shape letters: N output pixels, V values, S output size.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ichfast.augment.config import EXP_30, FASTAI, PRESETS, AugmentConfig
from ichfast.augment.parameters import Parameters, draw
from ichfast.augment.reference import apply_parameters, change_values
from ichfast.training.inference import tta_passes
from ichfast.windows import Window
from tests.augment.test_parameters import splitmix

NUM_DRAWS = 200
SEED, EPOCH = 5, 3
SIZE, SOURCE = 224, 256
NUM_COLUMNS = 66

CONFIGS: dict[str, AugmentConfig] = {
    **PRESETS,
    "flip_vert": replace(
        FASTAI, flip_probability=0.0, dihedral_probability=1.0, max_rotation_deg=180.0
    ),
    **{
        f"tta {number}": each.augment
        for number, each in enumerate(tta_passes("reference", FASTAI))
    },
}
"""Presets, `get_transforms(flip_vert=True)` and the nine passes of fastai's TTA."""

every_config = pytest.mark.parametrize("name", CONFIGS)

Numbers = npt.NDArray[np.float64]


def drawn(config: AugmentConfig) -> Parameters:
    return draw(
        config,
        seed=SEED,
        epoch=EPOCH,
        slices_B=np.arange(NUM_DRAWS),
        source_shape_B2=np.full((NUM_DRAWS, 2), SOURCE),
        size=SIZE,
    )


class Randomness:
    """The random numbers of a slice, from 0 to 1, named by what fastai draws."""

    def __init__(self, position: int) -> None:
        columns = splitmix(SEED, EPOCH, position, NUM_COLUMNS)
        self.flip_lr, self.rotates, self.degrees, self.zooms, self.scale = columns[:5]
        self.col_pct, self.row_pct, self.warps = columns[5:8]
        self.magnitude = columns[8:12]
        self.brightens, self.change, self.contrasts, self.contrast = columns[12:16]
        self.cuts, self.n_holes, self.length = columns[16:19]
        self.hole_places = columns[21:61]
        self.dihedral, self.k = columns[61:63]


def uniform(random: float, low: float, high: float) -> float:
    return low + random * (high - low)


def uniform_int(random: float, low: int, high: int) -> int:
    """One of the integers from `low` to `high`, both included."""
    return low + math.floor(random * (high - low + 1))


def logit(probability: Any) -> Any:
    return np.log(probability / (1 - probability))


# Geometry


def fastai_dihedral(config: AugmentConfig, random: Randomness) -> Numbers:
    if random.dihedral >= config.dihedral_probability:
        return np.eye(3)
    k = uniform_int(random.k, 0, 7)
    x, y = (-1 if k & 1 else 1), (-1 if k & 2 else 1)
    if k & 4:
        return np.array([[0, x, 0], [y, 0, 0], [0, 0, 1.0]])
    return np.diag([x, y, 1.0])


def fastai_rotate(config: AugmentConfig, random: Randomness) -> Numbers:
    if random.rotates >= config.affine_probability:
        return np.eye(3)
    degrees = uniform(random.degrees, -config.max_rotation_deg, config.max_rotation_deg)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def fastai_zoom(config: AugmentConfig, random: Randomness) -> Numbers:
    row_pct, col_pct = random.row_pct, random.col_pct
    if config.zoom_focus is not None:
        col_pct, row_pct = config.zoom_focus
    elif random.zooms >= config.zoom_probability:
        return np.eye(3)
    scale = uniform(random.scale, config.min_zoom, config.max_zoom)
    s = 1 - 1 / scale
    return np.array(
        [
            [1 / scale, 0, s * (2 * col_pct - 1)],
            [0, 1 / scale, s * (2 * row_pct - 1)],
            [0, 0, 1],
        ]
    )


def fastai_symmetric_warp(config: AugmentConfig, random: Randomness) -> Numbers:
    """The perspective that reads the square's corners at the moved ones."""
    if random.warps >= config.affine_probability:
        return np.eye(3)
    m = [uniform(each, -config.max_warp, config.max_warp) for each in random.magnitude]
    targets = [
        (-1 - m[3], -1 - m[1]),
        (-1 - m[2], 1 + m[1]),
        (1 + m[3], -1 - m[0]),
        (1 + m[2], 1 + m[0]),
    ]
    rows = []
    corners = [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    for (x, y), (u, v) in zip(targets, corners, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y, -u])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y, -v])
    # The nine numbers that solve eight homogeneous equations.
    return np.linalg.svd(np.array(rows))[2][-1].reshape(3, 3)


def fastai_source(
    config: AugmentConfig, random: Randomness, out_3N: Numbers
) -> Numbers:
    """The points of the source, -1 to 1, that points of the output are read from."""
    point_3N = out_3N.copy()
    if random.flip_lr < config.flip_probability:  # order 10: of the finished image
        point_3N[0] *= -1
    warped_3N = fastai_symmetric_warp(config, random) @ point_3N  # order 4
    warped_3N = warped_3N / warped_3N[2]
    affine_33 = np.eye(3)  # order 5
    for transform in (fastai_dihedral, fastai_rotate, fastai_zoom):
        affine_33 = affine_33 @ transform(config, random)
    return (affine_33 @ warped_3N)[:2]


@every_config
def test_a_pixel_is_read_where_fastai_reads_it(name: str) -> None:
    config = CONFIGS[name]
    parameters = drawn(config)
    place_S = np.array([0.5, 56.0, 111.5, 180.0, SIZE - 0.5])
    x_N, y_N = (axis.ravel() for axis in np.meshgrid(place_S, place_S))
    pixel_3N = np.stack([x_N, y_N, np.ones_like(x_N)])
    out_3N = np.stack([2 * x_N / SIZE - 1, 2 * y_N / SIZE - 1, np.ones_like(x_N)])
    for row in range(NUM_DRAWS):
        source_2N = fastai_source(config, Randomness(row), out_3N)
        expected_2N = (source_2N + 1) * SOURCE / 2
        found_3N = parameters.matrix_B33[row].astype(np.float64) @ pixel_3N
        np.testing.assert_allclose(
            found_3N[:2] / found_3N[2], expected_2N, rtol=0, atol=1e-4
        )


# Lighting


def fastai_lighting(
    config: AugmentConfig, random: Randomness, value_V: Numbers
) -> Numbers:
    amount, chance = config.max_lighting, config.lighting_probability
    brightens, contrasts = random.brightens < chance, random.contrasts < chance
    if not amount or not (brightens or contrasts):
        return value_V
    logit_V = logit(value_V.clip(1e-7, 1 - 1e-7))
    if brightens:
        change = uniform(random.change, 0.5 * (1 - amount), 0.5 * (1 + amount))
        logit_V = logit_V + logit(change)
    if contrasts:
        low, high = math.log(1 - amount), math.log(1 / (1 - amount))
        logit_V = logit_V * math.exp(uniform(random.contrast, low, high))
    return 1 / (1 + np.exp(-logit_V))


@every_config
def test_a_value_is_lit_as_fastai_lights_it(name: str) -> None:
    config = CONFIGS[name]
    parameters = drawn(config)
    value_V = np.linspace(0, 1, 4_001, dtype=np.float32)
    for row in range(NUM_DRAWS):
        contrast, brightness = parameters.contrast_B[row], parameters.brightness_B[row]
        lit_V = value_V
        if contrast != 1 or brightness != 0:
            drawn_here = {"contrast": contrast, "brightness": brightness}
            lit_V = change_values(value_V, drawn_here)
        expected_V = fastai_lighting(config, Randomness(row), value_V.astype(float))
        np.testing.assert_allclose(lit_V, expected_V, rtol=0, atol=1e-6)


# Cutout


def fastai_cutout(config: AugmentConfig, random: Randomness) -> npt.NDArray[np.bool_]:
    """Which pixels of the output are cut."""
    is_cut_SS = np.zeros((SIZE, SIZE), bool)
    if random.cuts >= config.cutout_probability:
        return is_cut_SS
    length = uniform_int(random.length, *config.cutout_side)
    for hole in range(uniform_int(random.n_holes, *config.cutout_holes)):
        h_y = math.floor(random.hole_places[2 * hole] * SIZE)
        h_x = math.floor(random.hole_places[2 * hole + 1] * SIZE)
        y1, y2, x1, x2 = (
            int(np.clip(middle + side * length / 2, 0, SIZE))
            for middle in (h_y, h_x)
            for side in (-1, 1)
        )
        is_cut_SS[y1:y2, x1:x2] = True
    return is_cut_SS


@pytest.mark.slow
def test_holes_are_cut_where_fastai_cuts_them() -> None:
    config = AugmentConfig(cutout_probability=EXP_30.cutout_probability)
    parameters = drawn(config)
    white_HW = np.full((SOURCE, SOURCE), 2000, np.uint16)
    for row in range(NUM_DRAWS):
        image_SS1 = apply_parameters(
            white_HW,
            parameters,
            row,
            size=SIZE,
            windows=[Window(center=40, width=80)],
            mean_C=[0.0],
            std_C=[1.0],
        )
        expected_SS = fastai_cutout(EXP_30, Randomness(row))
        np.testing.assert_array_equal(image_SS1[..., 0] == 0, expected_SS)
