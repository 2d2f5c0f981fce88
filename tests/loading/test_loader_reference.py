"""The loader equals the NumPy reference, pixel by pixel, on adversarial slices.

All tests run with both graphs: that of a CPU, which only resamples, and the whole graph
of a GPU, here on a CPU.

`ichfast.augment.bounds` explains how far graph and reference may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from ichfast.augment.config import AugmentConfig
from ichfast.augment.parameters import Parameters
from ichfast.augment.reference import apply_to_slab
from ichfast.loading.config import (
    DataConfig,
    parse_windows,
)
from ichfast.store.store import Store
from ichfast.windows import window_table
from tests.loading.difficult_slices import SLICES, in_hu, write_adversaries
from tests.loading.graph_checks import (
    AUGMENTS,
    FIVE_SLICES,
    MEAN,
    STD,
    WINDOWS,
    check_graph,
    draw_all,
    run_graph,
)

pytestmark = pytest.mark.usefixtures("either_graph")
SIZE = 72  # 512 is halved twice before it, 638 three times, 256 once


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


@pytest.mark.slow
@pytest.mark.parametrize("level", [512, 256])
def test_a_slab_of_five_slices_stays_within_the_bounds(
    adversaries: Store, level: int
) -> None:
    config = replace(FIVE_SLICES, size=SIZE, level=level, batch_size=8)
    check_graph(adversaries, config, AUGMENTS["everything"])


def test_nine_channels_equal_the_reference_at_the_ends_of_series_of_any_shape(
    tmp_path: Path,
) -> None:
    """Series of three slices, of three with two shapes, and of one."""
    shapes = [(90, 130)] * 3 + [(71, 73)] * 2 + [(40, 41), (33, 35)]
    slices = [
        in_hu(np.indices(shape).sum(0) + 100 * k) for k, shape in enumerate(shapes)
    ]
    write_adversaries(tmp_path / "store", slices, slices_a_series=3)
    augment = AugmentConfig(
        depth_flip_probability=0.5, max_rotation_deg=30.0, cutout_probability=0.5
    )
    windows = ("300/2000", "600/3000", "400/2400/sigmoid")
    config = DataConfig(
        size=48, windows=windows, neighbours=1, batch_size=4, square_pixels=False
    )
    with Store(tmp_path / "store") as store:
        found_NSSC = run_graph(store, config, augment)
        parameters, halved = draw_all(store, config, augment)
    slabs = [
        (0, 0, 1),
        (0, 1, 2),
        (1, 2, 2),
        (3, 3, 4),
        (3, 4, 4),
        (5, 5, 5),
        (6, 6, 6),
    ]
    assert 0 < parameters.is_depth_flipped_B[:5].sum() < 5
    for row, slab_D in enumerate(slabs):
        expected_SSC = apply_to_slab(
            [halved[k] for k in slab_D],
            parameters,
            row,
            size=48,
            windows=parse_windows(windows),
            mean_C=MEAN,
            std_C=STD,
        )
        # A stored number is 1 / 2000 of the narrowest window.
        np.testing.assert_allclose(found_NSSC[row], expected_SSC, rtol=2e-3, atol=2e-3)


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
