"""A slice whose pixels are not square is shown in its proportions in mm.

All tests of images run with both graphs: that of a CPU, which only resamples, and the
whole graph of a GPU, here on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from ichfast.augment.config import FASTAI, AugmentConfig
from ichfast.augment.reference import square_view
from ichfast.loading.config import DataConfig, pixel_aspects
from ichfast.loading.loader import make_loader
from ichfast.prepare.prepare import prepare_store
from ichfast.report.overview import describe_store, format_overview
from ichfast.report.pictures import slice_view
from ichfast.store.store import Store
from tests.dicom.real_files import HUNT, needs_hunt
from tests.loading.graph_checks import AUGMENTS, check_graph
from tests.store.slice_store import simple_rows, write_slices

DISC_MM = 100.0
"""Diameter of the disc in each slice."""

SIZE = 128

# rows, columns, mm between rows, mm between columns
GRIDS = (
    (320, 320, 0.5, 0.5),
    (320, 160, 0.5, 1.0),
    (160, 320, 1.0, 0.5),
    (512, 512, 0.4, 0.3125),
    (512, 512, 0.25, 0.5),
    (300, 200, 0.5, 0.6),
    (256, 128, 0.7, 1.3),
)

ROTATION = AugmentConfig(affine_probability=1.0, max_rotation_deg=180.0)

FAINT = "1000/1000"
"""Water is 0, the disc is 1."""


def disc(
    rows: int, columns: int, row_mm: float, column_mm: float
) -> npt.NDArray[np.uint16]:
    """A disc of 2000 HU in the middle of water; pixels at its edge have their share."""
    parts = 4
    y_H1 = ((np.arange(rows * parts)[:, None] + 0.5) / parts - rows / 2) * row_mm
    x_1W = ((np.arange(columns * parts) + 0.5) / parts - columns / 2) * column_mm
    is_disc_HW = x_1W**2 + y_H1**2 <= (DISC_MM / 2) ** 2
    share_HW = is_disc_HW.reshape(rows, parts, columns, parts).mean(axis=(1, 3))
    return np.rint(2000 * share_HW + 1024).astype(np.uint16)


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A slice for each of `GRIDS`."""
    path = tmp_path_factory.mktemp("discs") / "store"
    rows = simple_rows(
        len(GRIDS),
        row_spacing_mm=[grid[2] for grid in GRIDS],
        column_spacing_mm=[grid[3] for grid in GRIDS],
    )
    slices = [disc(*grid) for grid in GRIDS]
    write_slices(path, slices, rows, np.zeros((len(GRIDS), 6), int))
    with Store(path) as store:
        yield store


@pytest.fixture(params=[False, True], ids=["resample", "whole"])
def _either_graph(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ichfast.loading.loader.graph_is_whole", lambda _: request.param
    )


def images(
    store: Store, augment: AugmentConfig = FASTAI, **settings: object
) -> npt.NDArray[np.float32]:
    """Every image of a store in order, (N, S, S)."""
    config = replace(DataConfig(size=SIZE, batch_size=4, windows=(FAINT,)), **settings)  # type: ignore[arg-type]
    with make_loader(store, range(len(store)), config, augment=augment) as loader:
        batches = [batch.images_BCHW[:, 0].float().numpy() for batch in loader.epoch(0)]
    return np.concatenate(batches)


def extent(image_SS: npt.NDArray[np.floating]) -> tuple[int, int]:
    """Height and width of what is bright, through the middle."""
    middle = len(image_SS) // 2
    is_bright_SS = image_SS > 0.5
    return int(is_bright_SS[:, middle].sum()), int(is_bright_SS[middle].sum())


@pytest.mark.usefixtures("_either_graph")
@pytest.mark.parametrize("level", [512, 256])
@pytest.mark.parametrize(
    "augment", [AugmentConfig(), ROTATION], ids=["as is", "turned"]
)
def test_a_disc_stays_round_and_has_its_size_in_mm(
    discs: Store, augment: AugmentConfig, level: int
) -> None:
    for grid, image_SS in zip(GRIDS, images(discs, augment, level=level), strict=True):
        rows, columns, row_mm, column_mm = grid
        pixels_per_mm = SIZE / max(rows * row_mm, columns * column_mm)
        expected = DISC_MM * pixels_per_mm
        assert np.abs(np.array(extent(image_SS)) - expected).max() <= 1.0, grid


@pytest.mark.usefixtures("_either_graph")
def test_without_it_pixels_are_squares_and_the_disc_is_squeezed(discs: Store) -> None:
    found = images(discs, AugmentConfig(), square_pixels=False)
    assert extent(found[1]) == (80, 40)  # 200 x 100 of 320 pixels
    assert extent(found[2]) == (40, 80)


@pytest.mark.usefixtures("_either_graph")
def test_the_whole_slice_stays_visible_in_air(tmp_path: Path) -> None:
    grids = [(512, 512, 0.25, 0.5), (512, 512, 0.5, 0.25), (320, 160, 0.5, 1.0)]
    rows = simple_rows(
        3,
        row_spacing_mm=[grid[2] for grid in grids],
        column_spacing_mm=[grid[3] for grid in grids],
    )
    slices = [np.full(grid[:2], 3024, np.uint16) for grid in grids]
    write_slices(tmp_path / "store", slices, rows, np.zeros((3, 6), int))
    with Store(tmp_path / "store") as store:
        found = images(store, AugmentConfig())
    assert [extent(each) for each in found] == [(64, 128), (128, 64), (128, 128)]
    assert found[0][32:96].min() > 0.5  # in the middle
    assert not found[0][:31].any()


@pytest.mark.usefixtures("_either_graph")
@pytest.mark.parametrize("level", [512, 256])
@pytest.mark.parametrize("augment", ["none", "fastai", "everything"])
def test_the_graph_stays_within_the_bounds_of_the_reference(
    discs: Store, augment: str, level: int
) -> None:
    config = DataConfig(
        size=72, level=level, batch_size=4, windows=("brain", "subdural", "bone")
    )
    check_graph(discs, config, AUGMENTS[augment])


@pytest.mark.usefixtures("_either_graph")
@pytest.mark.parametrize("level", [512, 256])
def test_square_pixels_keep_every_bit(tiny_store: Store, level: int) -> None:
    shown, squeezed = (
        images(tiny_store, level=level, square_pixels=square, windows=("brain",))
        for square in (True, False)
    )
    np.testing.assert_array_equal(shown, squeezed)


# ---- what counts as not square ----


@pytest.mark.parametrize(
    ("row_mm", "column_mm", "aspect"),
    [
        (0.5, 0.5, 1.0),
        (0.5, 0.4951, 1.0),
        (0.5, 0.49, 0.5 / 0.49),
        (0.5, 1.0, 0.5),
        (2.0, 0.5, 4.0),
        (2.0, 0.49, 1.0),
        (0.1, 0.5, 1.0),
        (np.nan, 0.5, 1.0),
        (0.5, np.nan, 1.0),
        (0.0, 0.5, 1.0),
        (0.5, 0.0, 1.0),
        (0.0, 0.0, 1.0),
        (-0.5, -1.0, 1.0),
        (np.inf, np.inf, 1.0),
        (1e300, 1e-300, 1.0),
    ],
)
def test_absurd_spacings_count_as_square(
    row_mm: float, column_mm: float, aspect: float
) -> None:
    table = pd.DataFrame({"row_spacing_mm": [row_mm], "column_spacing_mm": [column_mm]})
    assert pixel_aspects(table).tolist() == [aspect]


def test_missing_spacings_count_as_square() -> None:
    table = pd.DataFrame({"row_spacing_mm": [None], "column_spacing_mm": [None]})
    assert pixel_aspects(table.astype("Float64")).tolist() == [1.0]


# ---- pictures and counts ----


def test_a_picture_of_a_slice_is_what_the_model_sees(discs: Store) -> None:
    for position, grid in enumerate(GRIDS):
        picture_SS = slice_view(discs, position, 512, square_pixels=True)
        height, width = extent(picture_SS.astype(float) - 2000)
        assert picture_SS.shape == (max(grid[:2]),) * 2
        assert abs(height - width) <= max(grid[2:]) / min(grid[2:])
    squeezed_SS = slice_view(discs, 1, 512, square_pixels=False)
    assert extent(squeezed_SS.astype(float) - 2000) == (200, 100)


def test_a_picture_of_square_pixels_keeps_every_bit() -> None:
    stored_HW = disc(*GRIDS[0])
    assert square_view(stored_HW, (320, 320), 1.0) is stored_HW
    padded_SS = square_view(stored_HW[:, :160], (320, 160), 1.0)
    np.testing.assert_array_equal(padded_SS[:, 80:240], stored_HW[:, :160])
    assert not padded_SS[:, :80].any()


def test_the_overview_counts_slices_whose_pixels_are_not_square(discs: Store) -> None:
    overview = describe_store(discs)
    assert overview.nonsquare_pixels == 6
    assert "; pixels are not square: 6\n" in format_overview(overview)


def test_the_overview_does_not_mention_square_pixels(tiny_store: Store) -> None:
    assert "not square" not in format_overview(describe_store(tiny_store))


@needs_hunt
def test_the_hunted_file_is_stored_and_shown_square(tmp_path: Path) -> None:
    hunted = HUNT / "nonsquare_pixels.dcm"
    prepare_store([hunted], tmp_path / "s", labels=None, workers=1, keep_ids=True)
    with Store(tmp_path / "s") as store:
        assert pixel_aspects(store.table).tolist() == [0.5]
        image_SS = images(store, AugmentConfig(), size=64, batch_size=1)[0]
        assert store.slice_HW(0).shape == (64, 32)
    assert image_SS.shape == (64, 64)
