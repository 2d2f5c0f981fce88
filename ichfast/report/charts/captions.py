"""The charts of the report with their captions, as data URIs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ichfast.evaluation.along_series import along_series
from ichfast.evaluation.calibration import Calibration
from ichfast.evaluation.disagreement import disagreement
from ichfast.evaluation.levels import PLURALS
from ichfast.evaluation.results import RunResults
from ichfast.evaluation.subgroups import Subgroup
from ichfast.report.charts import training
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
from ichfast.report.charts.style import DARK, LIGHT
from ichfast.report.pictures import DPI, chart_png, data_uri


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A chart as data URIs, for a light and for a dark page."""

    caption: str
    light: str
    dark: str
    width: int
    height: int
    """Width and height are in pixels."""


def result_charts(results: RunResults) -> list[Chart]:
    """Draw the loss, the calibration, and by slice both along the series."""
    level = results.evaluation.first_name
    charts = [
        _chart(
            "What each class costs, beside what predicting its prevalence costs.",
            loss_bars,
            results.evaluation,
        ),
        _chart(
            "Calibration. Bars are 95% intervals of any; bins of fewer than "
            f"{MIN_BIN_COUNT} {PLURALS[level]} are left out.",
            calibration_curves,
            results.probs_NK,
            results.labels_NK,
        ),
    ]
    if level == "slice":
        charts.append(
            _chart(
                "Probability and loss over the place in the series; the lowest slice "
                "is usually at the skull base.",
                series_curves,
                along_series(results.rows),
            )
        )
    return charts


def disagreement_charts(results: RunResults) -> list[Chart]:
    """Draw the runs' disagreement against the error; nothing without several runs."""
    is_by_slice = results.evaluation.first_name == "slice"
    found = disagreement(results.rows) if is_by_slice else None
    if found is None:
        return []
    return [
        _chart(
            "Error, the gap between label and probability, over disagreement. Dots are "
            "tenths of the slices, from the least disagreement to the most.",
            disagreement_curves,
            found,
        ),
        _chart(
            "Error of the other slices when those with the most disagreement, or with "
            "the most uncertain probability, are set aside. Dotted: all slices.",
            set_aside_curves,
            found,
        ),
    ]


def curve_charts(results: RunResults) -> list[Chart]:
    """Draw ROC and precision over sensitivity, with a panel for each class."""
    level, name = results.evaluation.first, results.evaluation.first_name
    return [
        _chart(
            f"ROC by {name}, and the area under it. Dots: the operating points.",
            roc_curves,
            *(level, results.curves, results.points),
        ),
        _chart(
            f"Precision over sensitivity by {name}, and average precision. Dotted: "
            "chance.",
            precision_recall_curves,
            *(level, results.curves),
        ),
    ]


def reliability_charts(calibration: Calibration | None) -> list[Chart]:
    """Draw what calibration changed; nothing without a calibration."""
    if calibration is None:
        return []
    return [
        _chart(
            "Dashed: without calibration; solid: each patient calibrated by the "
            "others. On the dotted line, probability and frequency agree. Bars are "
            f"95% intervals; bins of fewer than {MIN_BIN_COUNT} slices are left out.",
            reliability_curves,
            calibration,
        )
    ]


def subgroup_charts(
    subgroups: Mapping[str, Sequence[Subgroup]], overall: float | None
) -> list[Chart]:
    """Draw the AUC of groups, for columns of which two groups or more have one.

    Args:
        subgroups: groups of slices by column.
        overall: AUC of any of all slices; None if undefined.
    """
    return [
        _chart(
            "Patients in parentheses. Bars are 95% intervals; dotted: all slices.",
            subgroup_aucs,
            *(column, groups, overall),
        )
        for column, groups in subgroups.items()
        if sum(group.scores is not None for group in groups) > 1
    ]


def training_charts(history: pd.DataFrame) -> list[Chart]:
    """Draw loss, learning rate and speed over the epochs; nothing without epochs."""
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
                "Accuracy at 0.5, and the learning rate.",
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
