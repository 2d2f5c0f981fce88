"""The picture of models along series shows what gains most and what loses most."""

from __future__ import annotations

import numpy as np

from ichfast.report.charts.series_models import series_models
from ichfast.series.batches import SeriesArrays
from ichfast.series.comparison import ModelComparison

NUM_CLASSES = 6


def compared(gains: list[float]) -> ModelComparison:
    """Series of four slices, of which the head gets so much nearer to the labels.

    A series with a gain of NaN has no hemorrhage.
    """
    num_slices = 4 * len(gains)
    labels_NK = np.zeros((num_slices, NUM_CLASSES), np.float32)
    for s, gain in enumerate(gains):
        labels_NK[4 * s + 1 : 4 * s + 3] = 0.0 if np.isnan(gain) else 1.0
    towards_NK = 2.0 * labels_NK.astype(np.float64) - 1.0
    gain_N1 = np.repeat(np.nan_to_num(gains), 4)[:, np.newaxis]
    return ModelComparison(
        valid=SeriesArrays(
            features_ND=np.zeros((num_slices, 1), np.float32),
            labels_NK=labels_NK,
            position_mm_N=np.arange(num_slices, dtype=np.float64),
            rows=np.split(np.arange(num_slices), len(gains)),
            series_labels_SK=np.full((len(gains), NUM_CLASSES), np.nan, np.float32),
        ),
        slice_model_NK=towards_NK,
        smoothed_NK=towards_NK,
        head_NK=towards_NK * (1.0 + gain_N1),
        share_K=np.zeros(NUM_CLASSES),
        share_NK=np.ones((num_slices, NUM_CLASSES)),
    )


def titles(gains: list[float]) -> list[str]:
    """The titles of the panels that show a series, row by row."""
    figure = series_models(compared(gains))
    assert figure is not None
    return [axes.get_title(loc="left") for axes in figure.axes if axes.lines]


def title_of(gain: float) -> str:
    before, after = (np.logaddexp(0.0, -x) for x in (1.0, 1.0 + gain))
    return f"weighted log loss {before:.3f} to {after:.3f}"


def test_the_best_series_are_above_and_the_worst_below() -> None:
    gains = [0.3, -0.5, np.nan, 0.9, -0.1, 0.5, 0.7, -0.3, -0.7]
    shown = [0.9, 0.7, 0.5, -0.7, -0.5, -0.3]
    assert titles(gains) == [title_of(gain) for gain in shown]


def test_few_series_are_shown_once() -> None:
    assert titles([0.2, np.nan, -0.2, 0.1]) == [
        title_of(gain) for gain in (0.2, 0.1, -0.2)
    ]
    assert titles([0.2]) == [title_of(0.2)]


def test_the_blend_is_the_crossfitted_one() -> None:
    figure = series_models(compared([1.0]))
    assert figure is not None
    blend = next(
        line for line in figure.axes[0].lines if line.get_label() == "blend with head"
    )
    heights = np.asarray(blend.get_ydata(), dtype=float)
    np.testing.assert_allclose(heights[1], 1.0 / (1.0 + np.exp(-2.0)))


def test_without_a_hemorrhage_there_is_no_picture() -> None:
    assert series_models(compared([np.nan, np.nan])) is None
