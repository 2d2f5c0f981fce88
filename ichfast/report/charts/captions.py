"""The charts of the report with their captions, as data URIs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ichfast.evaluation.along_series import along_series
from ichfast.evaluation.results import Judged
from ichfast.report.charts import results, training
from ichfast.report.charts.style import DARK, LIGHT
from ichfast.report.pictures import DPI, chart_png, data_uri


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A chart as data URIs, for light and for dark paper."""

    caption: str
    light: str
    dark: str
    width: int
    height: int
    """Pixels."""


def result_charts(judged: Judged) -> list[Chart]:
    """Loss, calibration and the place in the series."""
    return [
        _chart(
            "What each class costs, beside what predicting its prevalence costs.",
            results.loss_bars,
            judged.evaluation,
        ),
        _chart(
            "Calibration. Bars are 95% intervals of any; bins of fewer than "
            f"{results.MIN_BIN_COUNT} slices are left out.",
            results.calibration_curves,
            judged.probs_NK,
            judged.labels_NK,
        ),
        _chart(
            "Probability and loss over the place in the series; the lowest slice is "
            "usually at the skull base.",
            results.series_curves,
            along_series(judged.rows),
        ),
    ]


def curve_charts(judged: Judged) -> list[Chart]:
    """ROC and precision over sensitivity, a panel a class."""
    level = judged.evaluation.slice
    return [
        _chart(
            "ROC by slice, and the area under it. Dots: the operating points.",
            results.roc_curves,
            *(level, judged.curves, judged.points),
        ),
        _chart(
            "Precision over sensitivity by slice, and average precision. Dotted: "
            "chance.",
            results.precision_recall_curves,
            *(level, judged.curves),
        ),
    ]


def training_charts(history: pd.DataFrame) -> list[Chart]:
    """Loss, learning rate and speed over the epochs; none without epochs."""
    if history.empty:
        return []
    return [
        _chart(caption, draw, history)
        for caption, draw in (
            (
                "Loss by epoch. Dotted: the recipe's next phase begins.",
                training.loss_curves,
            ),
            (
                "Share of right answers at 0.5, and the learning rate.",
                training.schedule_curves,
            ),
            (
                "Training speed, and the share of time lost waiting for slices.",
                training.speed_curves,
            ),
        )
    ]


def _chart(caption: str, draw: Callable[..., Figure], *drawn: Any) -> Chart:
    light, dark = (draw(*drawn, theme) for theme in (LIGHT, DARK))
    width, height = (round(DPI * side) for side in light.get_size_inches())
    return Chart(
        caption=caption,
        light=data_uri("png", chart_png(light)),
        dark=data_uri("png", chart_png(dark)),
        width=width,
        height=height,
    )
