"""The loader equals the NumPy reference, pixel by pixel, on adversarial slices.

All tests run with both graphs: that of a CPU, which only resamples, and the whole graph
of a GPU, here on a CPU.

`tests.loading.reference_bounds` explains how far graph and reference may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import cycle
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from ichfast.augment.config import PRESETS, AugmentConfig
from ichfast.augment.geometry import count_halvings
from ichfast.augment.parameters import Parameters, draw
from ichfast.augment.reference import halve
from ichfast.loading.config import (
    DataConfig,
    neighbours,
    parse_windows,
    source_shapes,
    window_columns,
)
from ichfast.loading.loader import make_loader
from ichfast.store.store import Store
from ichfast.windows import Normalization, window_table
from tests.loading.reference_bounds import check_within, stored_bounds
from tests.store.slice_store import simple_rows, write_slices

pytestmark = pytest.mark.usefixtures("_either_graph")
SIZE = 72  # 512 is halved twice before it, 638 three times, 256 once
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
    ),
}

WINDOWS: dict[str, DataConfig] = {
    "linear": DataConfig(windows=("brain", "subdural", "bone")),
    "narrow": DataConfig(windows=("stroke",)),
    "sigmoid": DataConfig(windows=("40/80/sigmoid", "subdural", "600/99/sigmoid")),
    "own": DataConfig(windows=("own", "80/200/sigmoid", "stroke")),
    "neighbours": DataConfig(windows=("brain",), neighbours=True),
}


def in_hu(hu_HW: npt.ArrayLike) -> npt.NDArray[np.uint16]:
    return (np.asarray(hu_HW) + 1024).astype(np.uint16)


def noise(rows: int, columns: int) -> npt.NDArray[np.uint16]:
    """Random numbers of brain and bone, up to the largest that a store can hold."""
    rng = np.random.default_rng(rows)
    hu_HW = np.where(
        rng.random((rows, columns)) < 0.01,
        rng.integers(-1024, 31_744, (rows, columns)),
        rng.integers(-20, 120, (rows, columns)),
    )
    return in_hu(hu_HW)


def impulses() -> npt.NDArray[np.uint16]:
    """Air with a single bright pixel in each corner and in the middle."""
    stored_HW = np.zeros((512, 512), np.uint16)
    stored_HW[[0, 0, -1, -1, 256], [0, -1, 0, -1, 256]] = 32_767
    return stored_HW


EVEN_HW = np.indices((512, 512)).sum(axis=0) % 2
EDGES_HU = [-1024, -1, 0, 1, 27, 28, 29, 36, 37, 39, 40, 41, 79, 80, 81, 180, 2000]

SLICES: dict[str, npt.NDArray[np.uint16]] = {
    "ramp to the right": in_hu(np.tile(np.arange(512) // 2 - 60, (512, 1))),
    "ramp to the left": in_hu(np.tile(200 - np.arange(512), (512, 1))),
    "ramp down": np.tile(np.arange(512)[:, None] * 64, (1, 512)).astype(np.uint16),
    "ramp up": in_hu(np.tile(100 - np.arange(512)[:, None] // 3, (1, 512))),
    "checkerboard of everything": (EVEN_HW * 32_767).astype(np.uint16),
    "checkerboard of a window": in_hu(EVEN_HW * 80),
    "impulses": impulses(),
    "air": np.zeros((512, 512), np.uint16),
    "the brightest": np.full((512, 512), 32_767, np.uint16),
    "brain": in_hu(np.full((512, 512), 37)),
    "edges of windows": in_hu(np.resize(np.repeat(EDGES_HU, 16), (512, 512))),
    **{
        f"{rows}x{columns}": noise(rows, columns)
        for rows, columns in (
            *((638, 490), (513, 511), (768, 768), (436, 436), (71, 73)),
            *((1, 300), (300, 1), (1, 1), (2, 700), (3, 5)),
        )
    },
}
"""Difficult slices for a resample, for windows and for halving."""

OWN = [(40.0, 80.0), (80.0, 200.0), (36.0, 80.0), (np.nan, np.nan), (50.0, 100.0)]


def write_adversaries(
    path: Path, slices: list[npt.NDArray[np.uint16]], *, slices_a_series: int = 1
) -> None:
    count = len(slices)
    centers, widths = zip(*(OWN[k % len(OWN)] for k in range(count)), strict=True)
    rows = simple_rows(
        count,
        slices_a_series=slices_a_series,
        window_center=centers,
        window_width=widths,
    )
    write_slices(path, slices, rows, np.zeros((count, 6), int))


@pytest.fixture(params=[False, True], ids=["resample", "whole"])
def _either_graph(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Use the graph of a CPU, with NumPy before and after it, or that of a GPU."""
    monkeypatch.setattr(
        "ichfast.loading.loader.graph_is_whole", lambda _: request.param
    )


@pytest.fixture(scope="module")
def adversaries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store of `SLICES` in series of four."""
    path = tmp_path_factory.mktemp("adversaries") / "store"
    write_adversaries(path, list(SLICES.values()), slices_a_series=4)
    with Store(path) as store:
        yield store


@pytest.fixture(scope="module")
def real(
    real_slices: list[npt.NDArray[np.uint16]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Store]:
    """A store of the competition's slices, all in one series."""
    path = tmp_path_factory.mktemp("real") / "store"
    write_adversaries(path, real_slices, slices_a_series=len(real_slices))
    with Store(path) as store:
        yield store


def run_graph(
    store: Store, config: DataConfig, augment: AugmentConfig
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
    ) as loader:
        batches = [batch.images_BCHW.numpy() for batch in loader.epoch(EPOCH)]
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
    change: Callable[[Parameters], object] | None = None,
) -> None:
    """Check every image of a store against the bounds of the reference.

    Args:
        store: its slices are loaded in one epoch.
        config: settings of the loader.
        augment: the distributions to draw from.
        change: changes the parameters of the reference, but not of the loader.
    """
    found_NSSC = run_graph(store, config, augment)
    parameters, halved = draw_all(store, config, augment)
    if change:
        change(parameters)
    center_NC, width_NC = window_columns(store, config.windows)
    before_N, after_N = neighbours(store)
    asked = parse_windows(config.windows)
    for row, found_SSC in enumerate(found_NSSC):
        windows = [
            replace(window, center=float(center), width=float(width))
            for window, center, width in zip(
                asked, center_NC[row], width_NC[row], strict=True
            )
        ]
        seen = [before_N[row], row, after_N[row]] if config.neighbours else [row]
        # With neighbours, each channel is a slice; else all are windows of one slice.
        for channel, source in enumerate(seen):
            shown = [channel] if config.neighbours else range(found_SSC.shape[2])
            check_within(
                found_SSC[..., shown],
                stored_bounds(halved[source], parameters.matrix_B33[row], config.size),
                parameters,
                row,
                windows=windows,
                mean_C=MEAN[: len(windows)],
                std_C=STD[: len(windows)],
            )


def fitted(windows: str, level: int, size: int = SIZE) -> DataConfig:
    return replace(WINDOWS[windows], size=size, level=level, batch_size=8)


@pytest.mark.slow
@pytest.mark.parametrize("level", [512, 256])
@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize("augment", AUGMENTS)
def test_the_graph_stays_within_the_bounds_of_the_reference(
    adversaries: Store, augment: str, windows: str, level: int
) -> None:
    check_graph(adversaries, fitted(windows, level), AUGMENTS[augment])


@pytest.mark.parametrize(
    ("augment", "windows"), [*zip(AUGMENTS, cycle(WINDOWS), strict=False)]
)
def test_the_graph_stays_within_the_bounds_on_slices_of_patients(
    real: Store, augment: str, windows: str
) -> None:
    check_graph(real, fitted(windows, 512), AUGMENTS[augment])


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 57, 130])
def test_the_graph_stays_within_the_bounds_for_any_number_of_halvings(
    adversaries: Store, size: int
) -> None:
    check_graph(adversaries, fitted("linear", 512, size), AUGMENTS["everything"])


def add(field: str, amount: float, *place: object) -> Callable[[Parameters], object]:
    """Make a change that adds `amount` at some index of a field of the parameters."""

    def change(parameters: Parameters) -> None:
        where = (slice(None), *place)
        getattr(parameters, field)[where] += amount

    return change


@pytest.mark.parametrize(
    "change",
    [
        add("matrix_B33", 0.03, 0, 2),
        add("matrix_B33", -0.03, 1, 2),
        add("matrix_B33", 0.001, 0, 1),
        add("contrast_B", 0.002),
        add("brightness_B", -0.002),
        add("center_shift_B", 0.2),
        add("width_shift_B", 1.0),
        add("hole_corner_BM2", 1.0, 0, 0),
        add("hole_side_BM2", 1.0, 0),
    ],
)
def test_the_bounds_are_narrow_enough_to_detect_a_change_of_any_parameter(
    adversaries: Store, change: Callable[[Parameters], object]
) -> None:
    with pytest.raises(AssertionError, match="too low"):
        check_graph(
            adversaries, fitted("linear", 256), AUGMENTS["everything"], change=change
        )


MIN_FLOAT16 = 2.0**-24
"""Smallest float16 above 0. DALI rounds smaller numbers up to it, NumPy down to 0."""


def tabulated(stored_HW: npt.NDArray[np.uint16]) -> npt.NDArray[np.float16]:
    """Apply the brain window by a table, as the graph does."""
    window = parse_windows(["brain"])[0]
    table_V = window_table(window, mean=MEAN[0], std=STD[0])
    return table_V.astype(np.float16)[stored_HW]


BRAIN = DataConfig(windows=("brain",), batch_size=8)


@pytest.mark.parametrize(
    "augment",
    [
        AugmentConfig(),
        AugmentConfig(flip_probability=1.0),
        AugmentConfig(dihedral_probability=1.0),
    ],
    ids=["none", "flip", "dihedral"],
)
def test_pixels_that_only_move_keep_every_bit(
    adversaries: Store, augment: AugmentConfig
) -> None:
    """Even checkerboards of single pixels stay sharp, and no impulse is lost."""
    found_NSS1 = run_graph(adversaries, replace(BRAIN, size=256, level=256), augment)
    parameters, slices = draw_all(
        adversaries, replace(BRAIN, size=256, level=256), augment
    )
    middle_S = np.arange(256) + 0.5
    for found_SS1, matrix_33, stored_HW in zip(
        found_NSS1, parameters.matrix_B33, slices, strict=True
    ):
        corner_SS = np.stack([*np.meshgrid(middle_S, middle_S), np.ones((256, 256))])
        x_SS, y_SS, _ = np.floor(np.tensordot(matrix_33, corner_SS, 1)).astype(int)
        expected_SS = tabulated(stored_HW[y_SS, x_SS])
        np.testing.assert_allclose(
            found_SS1[..., 0], expected_SS, rtol=0, atol=MIN_FLOAT16
        )


def test_halving_gives_the_references_numbers_to_the_bit(adversaries: Store) -> None:
    config = replace(BRAIN, size=64, level=512)
    found_NSS1 = run_graph(adversaries, config, AugmentConfig())
    _, halved = draw_all(adversaries, config, AugmentConfig())
    num_checked = 0
    for found_SS1, stored_HW in zip(found_NSS1, halved, strict=True):
        if stored_HW.shape == (64, 64):  # halved three times, not resampled after that
            np.testing.assert_allclose(
                found_SS1[..., 0], tabulated(stored_HW), rtol=0, atol=MIN_FLOAT16
            )
            num_checked += 1
    assert num_checked == 11
