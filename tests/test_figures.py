"""Pictures have the size they should, and show what they should."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ichfast import figures, pictures
from ichfast.evaluation import evaluate
from ichfast.predictions import labels_NK, probs_NK
from ichfast.windows import HU_OFFSET, PRESETS
from tests.test_evaluation import make_table

BRAIN, BONE = PRESETS["brain"], PRESETS["bone"]
Stored = npt.NDArray[np.uint16]


def make_slice(rows: int = 8, columns: int = 6, *, hu: int = 40) -> Stored:
    """A slice of one value, with air in its first row and metal in its last."""
    stored_HW = np.full((rows, columns), hu + HU_OFFSET, dtype=np.uint16)
    stored_HW[0] = 0
    stored_HW[-1] = 32_767
    return stored_HW


def make_history(num_epochs: int = 5) -> pd.DataFrame:
    falling = 0.1 / np.arange(1, num_epochs + 1)
    return pd.DataFrame(
        {
            "epoch": np.arange(num_epochs),
            "phase": ["head"] * (num_epochs // 2)
            + ["all"] * (num_epochs - num_epochs // 2),
            "train_loss": falling,
            "valid_loss": falling + 0.01,
            "valid_weighted_log_loss": falling + 0.02,
            "valid_accuracy": 1 - falling,
            "learning_rate": falling / 10,
            "slices_per_s": 3000.0,
            "seconds": 60.0,
            "wait_share": 0.01,
        }
    )


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))


def drawn_grey(figure: Figure) -> npt.NDArray[np.uint8]:
    return np.asarray(opened(pictures.figure_png(figure)).convert("L"))


def test_a_window_becomes_eight_bits() -> None:
    grey_HW = pictures.windowed_8bit(make_slice(hu=40), BRAIN)
    assert grey_HW.dtype == np.uint8
    assert grey_HW.shape == (8, 6)
    assert grey_HW[0].tolist() == [0] * 6
    assert grey_HW[3].tolist() == [128] * 6  # the center of the window
    assert grey_HW[-1].tolist() == [255] * 6


def test_a_small_slice_keeps_its_pixels() -> None:
    picture = opened(pictures.slice_png(make_slice(), BRAIN, max_side=512))
    expected_HW = pictures.windowed_8bit(make_slice(), BRAIN)
    np.testing.assert_array_equal(np.asarray(picture), expected_HW)


def test_a_large_slice_is_shrunk_and_keeps_its_shape() -> None:
    picture = opened(pictures.slice_png(make_slice(120, 60), BRAIN, max_side=40))
    assert picture.size == (20, 40)  # columns, rows
    assert picture.mode == "L"


TABLE = make_table()
PROBS = probs_NK(TABLE)
LABELS = labels_NK(TABLE)
CHARTS: dict[str, tuple[Callable[..., Figure], tuple[Any, ...]]] = {
    "loss": (figures.loss_curves, (make_history(),)),
    "schedule": (figures.schedule_curves, (make_history(),)),
    "speed": (figures.speed_curves, (make_history(),)),
    "roc": (figures.roc_curves, (PROBS, LABELS)),
    "precision": (figures.precision_recall_curves, (PROBS, LABELS)),
    "calibration": (figures.calibration_curves, (PROBS, LABELS)),
    "bars": (figures.loss_bars, (evaluate(TABLE),)),
}


@pytest.mark.parametrize("theme", [figures.LIGHT, figures.DARK], ids=["light", "dark"])
@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_a_picture_of_the_agreed_size(
    name: str, theme: figures.Theme
) -> None:
    draw, drawn = CHARTS[name]
    grey_HW = drawn_grey(draw(*drawn, theme))
    width, height = (round(side * pictures.DPI) for side in figures.CHART_SIZE_INCH)
    assert grey_HW.shape == (height, width)
    assert (grey_HW[0, 0] > 128) == (theme is figures.LIGHT)
    share_of_ink = (grey_HW != grey_HW[0, 0]).mean()
    assert 0.02 < share_of_ink < 0.6


def test_the_same_figure_gives_the_same_bytes() -> None:
    first, second = (
        pictures.figure_png(figures.loss_curves(make_history())) for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize(
    "draw",
    [
        figures.roc_curves,
        figures.precision_recall_curves,
        figures.calibration_curves,
    ],
)
def test_a_class_with_one_value_is_no_obstacle(draw: Callable[..., Figure]) -> None:
    labels = LABELS.copy()
    labels[:, 1] = 0.0
    pictures.figure_png(draw(PROBS, labels))
    pictures.figure_png(draw(PROBS[:1], labels[:1]))


@pytest.mark.parametrize("name", ["loss", "schedule", "speed"])
def test_one_epoch_and_missing_values_can_be_drawn(name: str) -> None:
    draw, _ = CHARTS[name]
    pictures.figure_png(draw(make_history(1)))
    pictures.figure_png(
        draw(make_history(3).assign(valid_loss=np.nan, wait_share=np.nan))
    )


def test_the_phases_of_a_recipe_are_marked() -> None:
    axes = figures.loss_curves(make_history(5)).axes[0]
    dotted = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert [line.get_xdata()[0] for line in dotted] == [2.5]  # type: ignore[index]


def test_calibration_leaves_out_bins_with_few_slices() -> None:
    probs = np.full((figures.MIN_BIN_COUNT, 6), 0.5)
    probs[0] = 0.9
    labels = np.zeros_like(probs)
    axes = figures.calibration_curves(probs, labels).axes[0]
    drawn = [line.get_ydata() for line in axes.lines[1:]]
    assert all(np.isnan(np.asarray(values, dtype=float)).all() for values in drawn)


def test_a_contact_sheet_shows_every_slice_in_every_window() -> None:
    slices = [make_slice(8, 6 + n) for n in range(7)]
    captions = [f"ID_{n}" for n in range(7)]
    sheet = pictures.contact_sheet(slices, captions, [BRAIN, BONE])
    shown = [image for axes in sheet.axes for image in axes.images]
    assert len(shown) == 14
    # A window a row: the second slice in the second window is the ninth picture.
    np.testing.assert_array_equal(
        shown[8].get_array(), pictures.windowed_8bit(slices[1], BONE)
    )
    written = [text.get_text() for axes in sheet.axes for text in axes.texts]
    assert written == captions
    assert drawn_grey(sheet).max() > 200


def test_captions_are_no_formulas_and_never_run_over() -> None:
    captions = ["$\\frac{$", "1.2.840." + "9" * 56]
    sheet = pictures.contact_sheet([make_slice()] * 2, captions, [BRAIN])
    pictures.figure_png(sheet)
    written = [text.get_text() for axes in sheet.axes for text in axes.texts]
    assert written[0] == captions[0]
    assert len(written[1]) < 40
    assert written[1].startswith("1.2.840.9")
