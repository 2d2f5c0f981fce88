"""Preview of augmentation: slices of a store as a model sees them in training.

Shape letters: B slices, S output size, C channels.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ichfast.augment.config import AugmentConfig
from ichfast.augment.geometry import count_halvings
from ichfast.augment.parameters import Parameters, draw
from ichfast.loading.config import choose_level, source_shapes
from ichfast.loading.loader import make_loader
from ichfast.recipes.recipe import Recipe
from ichfast.report.pictures import augmentation_sheet, write_figure
from ichfast.store.store import Store

NUM_SLICES = 8
"""Number of slices in a preview, spread over the store."""

LEGEND = (
    "above as stored, below augmented; the outline is what is seen below, "
    "its thick side is the top"
)
"""What the two rows of a preview are."""


def write_preview(store_path: Path, recipe: Recipe, out: Path, *, epoch: int) -> None:
    """Draw slices of a store before and after the augmentation of a recipe.

    The graph and the parameters are those of training. The parameters are written below
    each slice. Of a slab, its middle slice is drawn.

    Args:
        store_path: a prepared store.
        recipe: its data, augmentation and seed decide the picture.
        out: the PNG. Replaced if it exists.
        epoch: epoch to show, from 0; each draws other parameters.

    Raises:
        IchfastError: no store, settings that do not fit it, or a picture that cannot be
            written.
    """
    with Store(store_path) as store:
        count = min(NUM_SLICES, len(store))
        positions_B = np.linspace(0, len(store) - 1, count).astype(np.int64)
        config = replace(recipe.data, batch_size=count, cache="none", normalize="none")
        level = choose_level(store, config)
        rows_B, columns_B = source_shapes(store, level)[positions_B].T
        halvings_B = count_halvings(rows_B, columns_B, config.size)
        shape_B2 = np.stack([rows_B, columns_B], axis=1) / 2.0 ** halvings_B[:, None]
        images, parameters = [], []
        for augment in (AugmentConfig(), recipe.augment):
            with make_loader(
                store, positions_B, config, augment=augment, seed=recipe.train.seed
            ) as loader:
                batch = next(loader.epoch(epoch))
                shown_BCHW = batch.images_BCHW[:, config.shown_channels]
                images.append(shown_BCHW.permute(0, 2, 3, 1).float().numpy())
            parameters.append(
                draw(
                    augment,
                    seed=recipe.train.seed,
                    epoch=epoch,
                    slices_B=positions_B,
                    source_shape_B2=shape_B2,
                    size=config.size,
                )
            )
    plain, augmented = parameters
    to_before_B33 = np.linalg.inv(plain.matrix_B33.astype(np.float64))
    seen_B33 = to_before_B33 @ augmented.matrix_B33
    shown = (
        f"{recipe.name}, epoch {epoch}, {'+'.join(config.windows)}, {config.size} px"
    )
    sheet = augmentation_sheet(
        images[0],
        images[1],
        np.stack([_corners(seen_33, config.size) for seen_33 in seen_B33]),
        [_describe(augmented, row, seen_B33[row], config.size) for row in range(count)],
        title=f"{shown}: {LEGEND}",
    )
    write_figure(out, sheet)


def _corners(seen_33: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """The positions that the corners of the output come from, clockwise."""
    corner_34 = np.array([[0, size, size, 0], [0, 0, size, size], [1, 1, 1, 1]])
    read_34 = seen_33 @ corner_34
    return (read_34[:2] / read_34[2]).T


def _describe(
    parameters: Parameters, row: int, seen_33: npt.NDArray[np.float64], size: int
) -> str:
    """Describe the augmentation of a slice, a line for each kind.

    Args:
        parameters: the parameters of the batch.
        row: index of the slice in the batch.
        seen_33: matrix from a pixel of the slice after to one of the slice before.
        size: side of the output, in pixels.
    """
    lines = [_describe_geometry(seen_33, size)]
    contrast, brightness = parameters.contrast_B[row], parameters.brightness_B[row]
    if contrast != 1.0 or brightness != 0.0:
        lines.append(f"light {brightness:+.2f}, contrast x{contrast:.2f}")
    center, width = parameters.center_shift_B[row], parameters.width_shift_B[row]
    if center or width:
        lines.append(f"center {center:+.0f}, width {width:+.0f} HU")
    side_M = parameters.hole_side_BM2[row, :, 0]
    if side_M.any():
        lines.append(f"{(side_M > 0).sum()} holes of {side_M.max():.0f} px")
    if parameters.is_depth_flipped_B[row]:
        lines.append("above and below swapped")
    return "\n".join(lines)


def _describe_geometry(seen_33: npt.NDArray[np.float64], size: int) -> str:
    """Rotation, zoom, flip, warp and shift of the centre, from the matrix."""
    area = np.linalg.det(seen_33[:2, :2])
    turned_22 = seen_33[:2, :2] * ([-1, 1] if area < 0 else [1, 1])
    angle_deg = np.rad2deg(np.arctan2(turned_22[0, 1], turned_22[0, 0]))
    x, y, scale = np.linalg.solve(seen_33, [size / 2, size / 2, 1.0])
    right, down = round(x / scale - size / 2), round(y / scale - size / 2)
    traits = ["mirrored"] * bool(area < 0)
    traits += ["warped"] * bool(abs(seen_33[2, :2]).max() > 1e-9)
    lines = [f"turned {round(angle_deg)} deg, zoom {1 / np.sqrt(abs(area)):.2f}"]
    lines += [", ".join(traits)] * bool(traits)
    lines += [f"moved {right:+d}, {down:+d} px"] * bool(right or down)
    return "\n".join(lines)
