"""Pictures and charts have the right size, and show the right values."""

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

from ichfast.evaluation.along_series import along_series
from ichfast.evaluation.disagreement import disagreement
from ichfast.evaluation.predictions import STD_COLUMNS, labels_NK, probs_NK
from ichfast.evaluation.results import RunResults, compute_results
from ichfast.evaluation.subgroups import evaluate_subgroups
from ichfast.labels import CLASSES
from ichfast.report import pictures
from ichfast.report.charts import style, training
from ichfast.report.charts.results import (
    MIN_BIN_COUNT,
    calibration_curves,
    disagreement_curves,
    loss_bars,
    precision_recall_curves,
    reliability_curves,
    roc_curves,
    series_curves,
    set_aside_curves,
    subgroup_aucs,
)
from ichfast.windows import HU_OFFSET, PRESETS
from tests.evaluation.planted import calibration_of as fitted
from tests.evaluation.planted import plant
from tests.evaluation.test_evaluation import make_table, scores_of
from tests.evaluation.test_optional_columns import with_added

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
            "train_loss_smooth": falling,
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


def test_a_small_slice_keeps_its_size_and_nearly_its_values() -> None:
    stored_HW = make_slice(80, 48)
    picture = opened(pictures.slice_jpeg(stored_HW, BRAIN, max_side=512))
    expected_HW = pictures.windowed_8bit(stored_HW, BRAIN).astype(int)
    assert picture.format == "JPEG"
    inner = np.s_[8:-8]  # JPEG blurs the edges
    assert np.abs(np.asarray(picture).astype(int) - expected_HW)[inner].max() <= 3


def test_a_large_slice_is_shrunk_and_keeps_its_shape() -> None:
    picture = opened(pictures.slice_jpeg(make_slice(120, 60), BRAIN, max_side=40))
    assert picture.size == (20, 40)  # columns, rows
    assert picture.mode == "L"


def roc_of(results: RunResults) -> Figure:
    level = results.evaluation.levels["slice"]
    return roc_curves(level, results.curves, results.points)


def precision_of(results: RunResults) -> Figure:
    return precision_recall_curves(results.evaluation.levels["slice"], results.curves)


def calibration_of(results: RunResults) -> Figure:
    return calibration_curves(results.probs_NK, results.labels_NK)


TABLE = make_table()
PROBS = probs_NK(TABLE)
LABELS = labels_NK(TABLE)
RESULTS = compute_results(TABLE, sensitivity=0.9)
LEVEL = RESULTS.evaluation.levels["slice"]
DISAGREEMENT = disagreement(with_added(TABLE))
CHARTS: dict[str, tuple[Callable[..., Figure], tuple[Any, ...]]] = {
    "loss": (training.loss_curves, (make_history(),)),
    "schedule": (training.schedule_curves, (make_history(),)),
    "speed": (training.speed_curves, (make_history(),)),
    "roc": (roc_curves, (LEVEL, RESULTS.curves, RESULTS.points)),
    "precision": (precision_recall_curves, (LEVEL, RESULTS.curves)),
    "calibration": (calibration_curves, (PROBS, LABELS)),
    "reliability": (reliability_curves, (fitted(plant(20), factor=3.0),)),
    "series": (series_curves, (along_series(TABLE),)),
    "bars": (loss_bars, (RESULTS.evaluation,)),
    "disagreement": (disagreement_curves, (DISAGREEMENT,)),
    "set aside": (set_aside_curves, (DISAGREEMENT,)),
}


@pytest.mark.slow
@pytest.mark.parametrize("theme", [style.LIGHT, style.DARK], ids=["light", "dark"])
@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_a_picture_of_the_agreed_size(name: str, theme: style.Theme) -> None:
    draw, drawn = CHARTS[name]
    figure = draw(*drawn, theme)
    grey_HW = drawn_grey(figure)
    width, height = (round(side * pictures.DPI) for side in style.CHART_SIZE_INCH)
    is_tall = name in ("roc", "precision", "reliability")
    assert grey_HW.shape[1] == width
    assert (grey_HW.shape[0] > width) if is_tall else (grey_HW.shape[0] == height)
    assert (grey_HW[0, 0] > 128) == (theme is style.LIGHT)
    share_of_ink = (grey_HW != grey_HW[0, 0]).mean()
    assert 0.02 < share_of_ink < 0.6


def test_the_same_figure_gives_the_same_bytes() -> None:
    first, second = (
        pictures.figure_png(training.loss_curves(make_history())) for _ in range(2)
    )
    assert first == second


@pytest.mark.slow
def test_a_chart_in_few_colours_looks_the_same_in_fewer_bytes() -> None:
    exact = pictures.figure_png(roc_of(RESULTS))
    few = pictures.chart_png(roc_of(RESULTS))
    assert len(few) < len(exact) / 2
    rgb = [np.asarray(opened(png).convert("RGB")).astype(int) for png in (exact, few)]
    assert np.abs(rgb[0] - rgb[1]).max() < 16


def test_a_roc_panel_shows_area_interval_and_operating_point() -> None:
    axes = roc_of(RESULTS).axes[CLASSES.index("subdural")]
    name, area = axes.get_title(loc="left").split("\n")
    low, high = RESULTS.curves["subdural"].spread.intervals["auc"] or (0, 0)
    assert name == "subdural"
    auc = scores_of(RESULTS.evaluation, "subdural").auc
    assert area == f"AUC {auc:.3f} ({low:.3f} to {high:.3f})"
    (dot,) = (line for line in axes.lines if line.get_marker() == "o")
    point = RESULTS.points["subdural"]
    assert point.specificity is not None
    place = [[1 - point.specificity, point.sensitivity]]
    np.testing.assert_array_equal(dot.get_xydata(), place)
    assert len(axes.collections) == 1  # the band


def test_precision_is_drawn_from_the_first_find_on() -> None:
    for axes, curves in zip(
        precision_of(RESULTS).axes, RESULTS.curves.values(), strict=True
    ):
        chance, line = axes.lines
        assert chance.get_linestyle() == ":"
        recall, precision = np.asarray(line.get_xydata()).T
        np.testing.assert_array_equal(recall, curves.recall_T)
        np.testing.assert_array_equal(precision, curves.precision_T)
        assert recall.min() > 0


@pytest.mark.parametrize("draw", [roc_of, precision_of])
def test_a_class_with_one_label_has_an_empty_panel(
    draw: Callable[[RunResults], Figure],
) -> None:
    results = compute_results(TABLE.assign(label_epidural=0.0), sensitivity=0.9)
    by_class = dict(zip(CLASSES, draw(results).axes, strict=True))
    said = {name: [t.get_text() for t in axes.texts] for name, axes in by_class.items()}
    assert said.pop("epidural") == ["one label only"]
    assert set(map(len, said.values())) == {0}
    assert not by_class["epidural"].collections


@pytest.mark.slow
@pytest.mark.parametrize("draw", [roc_of, precision_of])
def test_one_slice_has_no_curve(draw: Callable[[RunResults], Figure]) -> None:
    axes = draw(compute_results(TABLE.iloc[:1], sensitivity=0.9)).axes
    assert {text.get_text() for each in axes for text in each.texts} == {
        "one label only"
    }


def test_the_calibration_of_a_class_without_positives_is_zero() -> None:
    results = compute_results(TABLE.assign(label_epidural=0.0), sensitivity=0.9)
    lines = {line.get_label(): line for line in calibration_of(results).axes[0].lines}
    frequency = np.asarray(lines["epidural"].get_ydata(), dtype=float)
    assert np.nanmax(frequency) == 0.0


def test_reliability_is_drawn_without_calibration_and_crossfitted() -> None:
    planted = plant(20)
    planted.labels_NK[:, 4] = np.nan
    calibration = fitted(planted, factor=3.0, shift=1.0)
    all_axes = reliability_curves(calibration).axes
    for each, axes in zip(calibration.classes, all_axes, strict=True):
        for line, bins in zip(
            axes.lines[1:],
            (each.reliability_before, each.reliability_crossfitted),
            strict=True,
        ):
            np.testing.assert_array_equal(
                line.get_xydata(),
                [
                    (one.probability, one.frequency)
                    for one in bins
                    if one.slices >= MIN_BIN_COUNT
                ]
                or np.empty((0, 2)),
            )
    first = calibration.classes[0]
    assert first.reliability_before != first.reliability_crossfitted
    assert sum(one.slices for one in first.reliability_before) == 640
    assert all_axes[0].get_title(loc="left") == (
        f"any\nlog loss {first.loss_before:.4f} to {first.loss_crossfitted:.4f}"
    )
    assert all_axes[4].get_title(loc="left") == "subarachnoid\nno label"


def drawn_values(figure: Figure) -> list[list[float]]:
    """The values of every line over epochs, panel by panel."""
    return [
        np.asarray(line.get_ydata(), dtype=float).tolist()
        for axes in figure.axes
        for line in axes.lines
        if line.get_linestyle() != ":"
    ]


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("loss", ["train_loss", "valid_loss", "valid_weighted_log_loss"]),
        ("schedule", ["valid_accuracy", "learning_rate"]),
        ("speed", ["slices_per_s", "wait_share"]),
    ],
)
def test_one_epoch_and_missing_values_can_be_drawn(
    name: str, columns: list[str]
) -> None:
    draw, _ = CHARTS[name]
    gaps = make_history(3).assign(valid_loss=np.nan, wait_share=np.nan)
    for history in (make_history(1), gaps):
        figure = draw(history)
        pictures.figure_png(figure)
        expected = [history[column].tolist() for column in columns]
        np.testing.assert_array_equal(drawn_values(figure), expected)


def test_a_series_is_drawn_from_its_lowest_slice_to_its_highest() -> None:
    along = along_series(TABLE)
    upper, lower = series_curves(along).axes
    labelled, predicted = (np.asarray(line.get_ydata()) for line in upper.lines)
    np.testing.assert_array_equal(labelled, along.frequency_Q)
    np.testing.assert_array_equal(predicted, along.prob_Q)
    heights = [bar.get_height() for bar in lower.patches]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(heights, along.loss_Q)


def test_disagreement_is_drawn_by_class_and_as_what_is_left() -> None:
    assert DISAGREEMENT is not None
    lines = {
        line.get_label(): line
        for line in disagreement_curves(DISAGREEMENT).axes[0].lines
    }
    for k, name in enumerate(CLASSES):
        drawn = np.asarray(lines[name].get_xydata()).T
        np.testing.assert_array_equal(drawn[0], DISAGREEMENT.std_KQ[k])
        np.testing.assert_array_equal(drawn[1], DISAGREEMENT.error_KQ[k])
    level, *rest = set_aside_curves(DISAGREEMENT).axes[0].lines
    assert [line.get_label() for line in rest] == ["standard deviation", "entropy"]
    for line in rest:
        values = np.asarray(line.get_ydata(), dtype=float)
        np.testing.assert_array_equal(values, DISAGREEMENT.rest[str(line.get_label())])
        np.testing.assert_allclose(values[-1], np.asarray(level.get_ydata())[0])


def test_runs_that_agree_everywhere_can_be_drawn() -> None:
    agreed = with_added(TABLE).assign(**dict.fromkeys(STD_COLUMNS, 0.0))
    found = disagreement(agreed)
    assert found is not None
    for draw in (disagreement_curves, set_aside_curves):
        pictures.figure_png(draw(found))


def test_the_phases_of_a_recipe_are_marked() -> None:
    axes = training.loss_curves(make_history(5)).axes[0]
    dotted = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert [line.get_xdata()[0] for line in dotted] == [2.5]  # type: ignore[index]


def test_calibration_leaves_out_bins_with_few_slices() -> None:
    probs = np.full((MIN_BIN_COUNT, 6), 0.5)
    probs[0] = 0.9
    labels = np.zeros_like(probs)
    axes = calibration_curves(probs, labels).axes[0]
    drawn = [line.get_ydata() for line in axes.lines[1:]]
    assert all(np.isnan(np.asarray(values, dtype=float)).all() for values in drawn)


def test_a_contact_sheet_shows_every_slice_in_every_window() -> None:
    slices = [make_slice(8, 6 + n) for n in range(7)]
    captions = [f"ID_{n}" for n in range(7)]
    sheet = pictures.contact_sheet(slices, captions, {"brain": BRAIN, "bone": BONE})
    shown = [image for axes in sheet.axes for image in axes.images]
    assert len(shown) == 14
    # A window a row: the second slice in the second window is the ninth picture.
    np.testing.assert_array_equal(
        shown[8].get_array(), pictures.windowed_8bit(slices[1], BONE)
    )
    written = [text.get_text() for axes in sheet.axes for text in axes.texts]
    assert written == captions
    assert drawn_grey(sheet).max() > 200


def test_captions_are_plain_text_and_short() -> None:
    captions = ["$\\frac{$", "1.2.840." + "9" * 56]
    sheet = pictures.contact_sheet([make_slice()] * 2, captions, {"brain": BRAIN})
    pictures.figure_png(sheet)
    written = [text.get_text() for axes in sheet.axes for text in axes.texts]
    assert written[0] == captions[0]
    assert len(written[1]) < 40
    assert written[1].startswith("1.2.840.9")


def test_groups_are_drawn_with_their_intervals_if_they_have_figures() -> None:
    table = make_table(42 * 14)
    sizes = {"Siemens": 20, "GE": 20, "Canon": 2}
    names = [name for name, size in sizes.items() for _ in range(14 * size)]
    kinds = pd.CategoricalDtype(list(sizes), ordered=True)
    groups = pd.Series(names, table.index).astype(kinds)
    found = evaluate_subgroups(table, groups, level="slice", replicates=20)
    (axes,) = subgroup_aucs("manufacturer", found, 0.9).axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["Siemens (20)", "GE (20)"]
    bars = [np.asarray(line.get_xdata()).tolist() for line in axes.lines]
    siemens = found[0].scores
    assert siemens is not None
    of_any = siemens.classes["any"]
    assert of_any is not None
    interval = of_any.intervals["auc"]
    assert interval is not None
    assert bars[:2] == [list(interval), [of_any.auc]]
    assert bars[-1] == [0.9, 0.9]
