"""What a model is shown: a batch of a store before and after augmentation.

Shape letters: B slices, S output size, C channels.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ichfast.augment import AugmentConfig, Parameters, count_halvings, draw
from ichfast.dataconfig import choose_level, source_shapes
from ichfast.loader import make_loader
from ichfast.pictures import augmentation_sheet, write_figure
from ichfast.recipe import Recipe
from ichfast.store import Store

NUM_SLICES = 8
"""Slices in a preview, spread over the store."""


def write_preview(store_path: Path, recipe: Recipe, out: Path, *, epoch: int) -> None:
    """Draw slices of a store as a recipe's model would see them in an epoch.

    The same graph and the same parameters as in training; what was drawn stands
    beneath each slice.

    Args:
        store_path: a prepared store.
        recipe: its data, augmentation and seed decide the picture.
        out: the PNG. Replaced if it exists.
        epoch: counted from 0; another epoch draws anew.

    Raises:
        IchfastError: no store, settings that do not fit it, or no room for the
            picture.
    """
    with Store(store_path) as store:
        count = min(NUM_SLICES, len(store))
        positions_B = np.linspace(0, len(store) - 1, count).astype(np.int64)
        config = replace(recipe.data, batch_size=count, cache="none")
        images = []
        for augment in (AugmentConfig(), recipe.augment):
            with make_loader(
                store, positions_B, config, augment=augment, seed=recipe.train.seed
            ) as loader:
                batch = next(loader.epoch(epoch))
                images.append(batch.images_BCHW.permute(0, 2, 3, 1).float().numpy())
        level = choose_level(store, config)
        rows_B, columns_B = source_shapes(store, level)[positions_B].T
        halvings_B = count_halvings(rows_B, columns_B, config.size)
        shape_B2 = np.stack([rows_B, columns_B], axis=1) / 2.0 ** halvings_B[:, None]
        parameters = draw(
            recipe.augment,
            seed=recipe.train.seed,
            epoch=epoch,
            slices_B=positions_B,
            source_shape_B2=shape_B2,
            size=config.size,
        )
    fit_B = shape_B2.max(axis=1) / config.size
    captions = [_describe(parameters, row, fit_B[row]) for row in range(count)]
    write_figure(out, augmentation_sheet(images[0], images[1], captions))


def _describe(parameters: Parameters, row: int, fit: float) -> str:
    """What was drawn for a slice, a line each; `fit` is its side over the output's."""
    matrix_33 = parameters.matrix_B33[row].astype(np.float64)
    lines = [_describe_geometry(matrix_33, fit)]
    contrast, brightness = parameters.contrast_B[row], parameters.brightness_B[row]
    if contrast != 1.0 or brightness != 0.0:
        lines.append(f"light {brightness:+.2f}, contrast x{contrast:.2f}")
    center, width = parameters.center_shift_B[row], parameters.width_shift_B[row]
    if center or width:
        lines.append(f"center {center:+.0f}, width {width:+.0f} HU")
    side_M = parameters.hole_side_BM2[row, :, 0]
    if side_M.any():
        lines.append(f"{(side_M > 0).sum()} holes of {side_M.max():.0f} px")
    return "\n".join(lines)


def _describe_geometry(matrix_33: npt.NDArray[np.float64], fit: float) -> str:
    """Rotation, zoom, flip and warp, read back from the matrix at its centre."""
    area = np.linalg.det(matrix_33[:2, :2])
    turned_22 = matrix_33[:2, :2] * ([[-1], [1]] if area < 0 else [[1], [1]])
    angle_deg = np.rad2deg(np.arctan2(turned_22[0, 1], turned_22[0, 0]))
    zoom = fit / np.sqrt(abs(area))
    warps = abs(matrix_33[2, :2]).max() > 1e-9
    words = [f"turned {round(angle_deg)} deg, zoom {zoom:.2f}"]
    words += ["flipped"] * bool(area < 0) + ["warped"] * bool(warps)
    return "\n".join([words[0], ", ".join(words[1:])]).strip()
