"""Checks of a graph, on any device, against the bounds of the NumPy reference.

`ichfast.augment.bounds` explains how far graph and reference may differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt

from ichfast.augment.config import PRESETS, AugmentConfig
from ichfast.augment.geometry import count_halvings, square
from ichfast.augment.parameters import Parameters, draw
from ichfast.augment.reference import halve
from ichfast.loading.config import (
    DataConfig,
    parse_windows,
    pixel_aspects,
    slab_positions,
    source_shapes,
    window_columns,
)
from ichfast.loading.loader import make_loader
from ichfast.store.store import Store
from ichfast.windows import Normalization
from tests.loading.reference_bounds import check_within, stored_bounds

SEED, EPOCH = 9, 3
MEAN, STD = (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)

AUGMENTS = {
    **PRESETS,
    "jittered": AugmentConfig(window_jitter=(7.0, 15.0)),
    "extreme lighting": AugmentConfig(max_lighting=0.8, lighting_probability=1.0),
    "everything": AugmentConfig(
        flip_probability=0.5,
        dihedral_probability=1.0,
        affine_probability=1.0,
        max_rotation_deg=180.0,
        zoom_probability=1.0,
        min_zoom=0.5,
        max_zoom=3.0,
        max_warp=0.4,
        max_shift=0.3,
        max_lighting=0.5,
        lighting_probability=1.0,
        window_jitter=(7.0, 200.0),  # narrow windows reach their minimum width
        cutout_probability=1.0,
        depth_flip_probability=0.5,
    ),
}

WINDOWS: dict[str, DataConfig] = {
    "linear": DataConfig(windows=("brain", "subdural", "bone")),
    "narrow": DataConfig(windows=("stroke",)),
    "sigmoid": DataConfig(windows=("40/80/sigmoid", "subdural", "600/99/sigmoid")),
    "own": DataConfig(windows=("own", "80/200/sigmoid", "stroke")),
    "nine channels": DataConfig(windows=("brain", "own", "bone"), neighbours=1),
}

FIVE_SLICES = DataConfig(windows=("brain", "40/80/sigmoid"), neighbours=2)


def run_graph(
    store: Store, config: DataConfig, augment: AugmentConfig, *, device: str = "cpu"
) -> npt.NDArray[np.float16]:
    """Every image of a store in order, (N, S, S, C)."""
    num_windows = len(config.windows)
    with make_loader(
        store,
        np.arange(len(store)),
        config,
        normalization=Normalization(mean=MEAN[:num_windows], std=STD[:num_windows]),
        augment=augment,
        seed=SEED,
        device=device,
    ) as loader:
        batches = [batch.images_BCHW.cpu().numpy() for batch in loader.epoch(EPOCH)]
    return np.concatenate(batches).transpose(0, 2, 3, 1)


def draw_all(
    store: Store, config: DataConfig, augment: AugmentConfig
) -> tuple[Parameters, list[npt.NDArray[np.uint16]]]:
    """Draw the parameters of every slice, and halve it as the reference does."""
    shape_N2 = source_shapes(store, int(config.level))
    halvings_N = count_halvings(shape_N2[:, 0], shape_N2[:, 1], config.size)
    parameters = draw(
        augment,
        seed=SEED,
        epoch=EPOCH,
        slices_B=np.arange(len(store)),
        source_shape_B2=shape_N2 / 2.0 ** halvings_N[:, None],
        size=config.size,
        square_B33=square(
            store.table[["rows", "columns"]].to_numpy(), pixel_aspects(store.table)
        )
        if config.square_pixels
        else None,
    )
    halved = [
        halve_often(store, position, int(config.level), int(count))
        for position, count in enumerate(halvings_N)
    ]
    return parameters, halved


@cache
def halve_often(
    store: Store, position: int, level: int, count: int
) -> npt.NDArray[np.uint16]:
    if count == 0:
        return store.slice_HW(position, level)
    return halve(halve_often(store, position, level, count - 1))


def check_graph(
    store: Store,
    config: DataConfig,
    augment: AugmentConfig,
    *,
    device: str = "cpu",
    change: Callable[[Parameters], object] | None = None,
) -> None:
    """Check every image of a store against the bounds of the reference.

    Args:
        store: its slices are loaded in one epoch.
        config: settings of the loader.
        augment: the distributions to draw from.
        device: where the graph runs.
        change: changes the parameters of the reference, but not of the loader.
    """
    found_NSSC = run_graph(store, config, augment, device=device)
    parameters, halved = draw_all(store, config, augment)
    if change:
        change(parameters)
    center_NC, width_NC = window_columns(store, config.windows)
    slab_ND = slab_positions(store, config.neighbours)
    asked = parse_windows(config.windows)
    for row, found_SSC in enumerate(found_NSSC):
        windows = [
            replace(window, center=float(center), width=float(width))
            for window, center, width in zip(
                asked, center_NC[row], width_NC[row], strict=True
            )
        ]
        is_flipped = parameters.is_depth_flipped_B[row]
        slab_D = slab_ND[row, ::-1] if is_flipped else slab_ND[row]
        found_SSDC = found_SSC.reshape(*found_SSC.shape[:2], len(slab_D), len(windows))
        for number, source in enumerate(slab_D):
            check_within(
                found_SSDC[:, :, number],
                stored_bounds(halved[source], parameters.matrix_B33[row], config.size),
                parameters,
                row,
                windows=windows,
                mean_C=MEAN[: len(windows)],
                std_C=STD[: len(windows)],
            )
