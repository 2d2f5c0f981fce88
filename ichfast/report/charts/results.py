"""Charts of predictions: loss, ROC, calibration, along the series.

Shape letters: N slices, K classes, Q calibration bins or parts of a series.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ichfast.evaluation.along_series import AlongSeries
from ichfast.evaluation.bootstrap import Interval
from ichfast.evaluation.calibration import Calibration
from ichfast.evaluation.curves import ClassCurves, OperatingPoint
from ichfast.evaluation.disagreement import Disagreement
from ichfast.evaluation.evaluation import ClassScores, Evaluation, LevelScores
from ichfast.evaluation.metrics import calibration_bins
from ichfast.evaluation.ranking import GRID_G, Band
from ichfast.evaluation.scoretable import format_score
from ichfast.evaluation.subgroups import Subgroup
from ichfast.labels import CLASSES
from ichfast.report.charts.style import (
    LIGHT,
    MODEL_COLOR,
    SECOND_COLOR,
    Theme,
    add_legend,
    class_color,
    class_style,
    panel_a_class,
    set_title,
    set_unit_square,
    stacked,
)

Floats = npt.NDArray[np.float64]

MIN_LOG_VALUE = 1e-6
"""Lowest value on an axis of logarithms, for what is 0."""

MIN_BIN_COUNT = 10
"""Calibration bins with fewer slices are not drawn: their frequency is noise."""


def loss_bars(evaluation: Evaluation, theme: Theme = LIGHT) -> Figure:
    """Draw the log loss of the model next to that of the prevalence.

    Args:
        evaluation: the evaluation, of which the first level is drawn.
        theme: light or dark.
    """
    figure, (axes,) = stacked(f"Log loss by {evaluation.first_name} (nats)", theme)
    level = evaluation.first
    rows = [("weighted", level.weighted_log_loss, level.prevalence_loss)]
    rows += [
        (name, scores.log_loss, scores.prevalence_log_loss)
        for name, scores in level.classes.items()
        if scores
    ]
    names, model, prevalence = zip(*rows, strict=True)
    y = np.arange(len(rows))
    for offset, values, color, label in (
        (-0.19, model, MODEL_COLOR, "model"),
        (0.19, prevalence, theme.faint, "prevalence"),
    ):
        bars = axes.barh(y + offset, values, 0.36, color=color, label=label)
        axes.bar_label(bars, fmt="%.4f", padding=3, color=theme.ink, fontsize=7)
    axes.set_yticks(y, names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(right=1.18 * max(*model, *prevalence))
    add_legend(axes, theme, loc="lower right")
    return figure


def subgroup_aucs(
    column: str, groups: Sequence[Subgroup], overall: float | None, theme: Theme = LIGHT
) -> Figure:
    """Draw the AUC of any of each group with its interval; dotted: of all slices.

    Args:
        column: what the groups differ in.
        groups: groups of slices; those without figures are left out.
        overall: AUC of any of all slices; None if undefined.
        theme: light or dark.
    """
    figure, (axes,) = stacked(f"AUC of any by {column}", theme)
    shown = [group for group in groups if group.scores is not None]
    for y, group in enumerate(shown):
        assert group.scores is not None
        scores = group.scores.classes["any"]
        assert scores is not None
        assert scores.auc is not None, "a group with figures has both labels"
        interval = scores.intervals.get("auc")
        if interval:
            axes.plot(interval, [y, y], color=MODEL_COLOR, linewidth=1.4)
        axes.plot(scores.auc, y, "o", color=MODEL_COLOR, markersize=5)
    if overall is not None:
        axes.axvline(overall, color=theme.faint, linewidth=0.8, linestyle=":")
    names = [f"{group.name} ({group.patients:,})" for group in shown]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    return figure


def roc_curves(
    level: LevelScores,
    curves: Mapping[str, ClassCurves],
    points: Mapping[str, OperatingPoint],
    theme: Theme = LIGHT,
) -> Figure:
    """Draw the ROC curve of each class with its band, in a panel of its own.

    Args:
        level: the areas under the curves.
        curves: curves by class; a class without curves has an empty panel.
        points: operating points by class, drawn as dots.
        theme: light or dark.
    """
    figure, all_axes = panel_a_class(theme)
    for k, (name, axes) in enumerate(zip(CLASSES, all_axes, strict=True)):
        axes.plot([0, 1], [0, 1], color=theme.faint, linewidth=0.8, linestyle=":")
        scores = level.classes[name]
        if scores is None or name not in curves:
            _write_empty(axes, name, scores, theme)
            continue
        drawn, point = curves[name], points[name]
        color = class_color(k, theme)
        _draw_band(axes, drawn.spread.roc_band, color)
        axes.plot(drawn.false_rate_V, drawn.true_rate_V, color=color, linewidth=1.4)
        assert point.specificity is not None, "a class with curves has both labels"
        axes.plot(
            1 - point.specificity, point.sensitivity, "o", color=color, markersize=5
        )
        area = _with_interval(scores.auc, drawn.spread.intervals["auc"])
        set_title(axes, f"{name}\nAUC {area}", theme)
    _finish_squares(all_axes, "1 - specificity", "Sensitivity")
    return figure


def precision_recall_curves(
    level: LevelScores, curves: Mapping[str, ClassCurves], theme: Theme = LIGHT
) -> Figure:
    """Draw precision over sensitivity for each class with its band; dotted: prevalence.

    Args:
        level: the average precisions and prevalences.
        curves: curves by class; a class without curves has an empty panel.
        theme: light or dark.
    """
    figure, all_axes = panel_a_class(theme)
    for k, (name, axes) in enumerate(zip(CLASSES, all_axes, strict=True)):
        scores = level.classes[name]
        if scores is None or name not in curves:
            _write_empty(axes, name, scores, theme)
            continue
        drawn = curves[name]
        color = class_color(k, theme)
        axes.axhline(scores.prevalence, color=theme.faint, linewidth=0.8, linestyle=":")
        _draw_band(axes, drawn.spread.precision_band, color)
        axes.plot(drawn.recall_T, drawn.precision_T, color=color, linewidth=1.4)
        interval = drawn.spread.intervals["average_precision"]
        area = _with_interval(scores.average_precision, interval)
        set_title(axes, f"{name}\nAP {area}", theme)
    _finish_squares(all_axes, "Sensitivity (recall)", "Precision")
    return figure


def calibration_curves(
    probs_NK: Floats, labels_NK: Floats, theme: Theme = LIGHT
) -> Figure:
    """Draw the observed frequency over the probability, above a histogram of `any`.

    Bars on `any` are 95% Wilson intervals. Bins with fewer than `MIN_BIN_COUNT` slices
    are left out.

    Args:
        probs_NK: probabilities in [0, 1].
        labels_NK: 0, 1 or NaN; a class is drawn from its known labels.
        theme: light or dark.
    """
    figure, (upper, lower) = stacked(
        "Calibration: observed frequency", theme, panels=2, heights=(2.4, 1)
    )
    upper.plot([0, 1], [0, 1], color=theme.faint, linewidth=0.8, linestyle=":")
    for k in reversed(range(len(CLASSES))):
        is_known_N = ~np.isnan(labels_NK[:, k])
        count_Q, prob_Q, frequency_Q = calibration_bins(
            probs_NK[is_known_N, k], labels_NK[is_known_N, k]
        )
        shown_Q = np.where(count_Q >= MIN_BIN_COUNT, count_Q, np.nan)
        frequency_Q = np.where(np.isnan(shown_Q), np.nan, frequency_Q)
        style = class_style(k, theme)
        upper.plot(prob_Q, frequency_Q, marker="o", markersize=2.5, **style)
        if k == 0:
            low_Q, high_Q = _wilson_interval(frequency_Q, shown_Q)
            upper.vlines(prob_Q, low_Q, high_Q, color=theme.ink, linewidth=1.0)
    set_unit_square(upper, "", "")
    add_legend(upper, theme, reverse=True)
    edges = [n / 30 for n in range(31)]
    for value, color in ((0, theme.faint), (1, SECOND_COLOR)):
        chosen = labels_NK[:, 0] == value
        label = "any" if value else "none"
        lower.hist(
            probs_NK[chosen, 0], edges, histtype="step", color=color, label=label
        )
    lower.set_yscale("symlog", linthresh=1)
    lower.set_ylim(bottom=0)
    lower.set_xlim(-0.02, 1.02)
    set_title(lower, "Slices by label", theme)
    lower.set_xlabel("Predicted probability")
    add_legend(lower, theme, loc="upper center", ncols=2)
    return figure


def reliability_curves(calibration: Calibration, theme: Theme = LIGHT) -> Figure:
    """Draw frequency over probability without calibration, and cross-fitted with it.

    Bars are 95% Wilson intervals. Bins with fewer than `MIN_BIN_COUNT` slices are left
    out.

    Args:
        calibration: of a run.
        theme: light or dark.
    """
    figure, all_axes = panel_a_class(theme)
    for k, (each, axes) in enumerate(zip(calibration.classes, all_axes, strict=True)):
        axes.plot([0, 1], [0, 1], color=theme.faint, linewidth=0.8, linestyle=":")
        for bins, color, style, label in (
            (each.reliability_before, theme.faint, "--", "without"),
            (each.reliability_crossfitted, class_color(k, theme), "-", "calibrated"),
        ):
            shown = [one for one in bins if one.slices >= MIN_BIN_COUNT]
            prob_Q = np.array([one.probability for one in shown])
            frequency_Q = np.array([one.frequency for one in shown])
            low_Q, high_Q = _wilson_interval(
                frequency_Q, np.array([one.slices for one in shown])
            )
            axes.vlines(prob_Q, low_Q, high_Q, color=color, linewidth=0.8)
            axes.plot(
                *(prob_Q, frequency_Q, style),
                color=color,
                marker="o",
                markersize=2.5,
                linewidth=1.2,
                label=label,
            )
        losses = "no label"
        if each.loss_before is not None:
            crossfitted = format_score(each.loss_crossfitted)
            losses = f"log loss {each.loss_before:.4f} to {crossfitted}"
        set_title(axes, f"{each.name}\n{losses}", theme)
    _finish_squares(all_axes, "Predicted probability", "Observed frequency")
    add_legend(all_axes[0], theme, loc="upper left")
    return figure


def series_curves(along: AlongSeries, theme: Theme = LIGHT) -> Figure:
    """Draw frequency, probability and loss from the lowest slice to the highest.

    Args:
        along: means over the parts of a series.
        theme: light or dark.
    """
    figure, (upper, lower) = stacked("Any, by place in the series", theme, panels=2)
    middle_Q = (np.arange(len(along.count_Q)) + 0.5) / len(along.count_Q)
    for values_Q, color, style, label in (
        (along.frequency_Q, theme.ink, "--", "labelled"),
        (along.prob_Q, MODEL_COLOR, "-", "mean probability"),
    ):
        upper.plot(
            middle_Q,
            values_Q,
            color=color,
            linestyle=style,
            marker="o",
            markersize=3,
            label=label,
        )
    upper.set_ylim(bottom=0)
    upper.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    add_legend(upper, theme)
    lower.bar(middle_Q, along.loss_Q, 0.8 / len(middle_Q), color=MODEL_COLOR)
    set_title(lower, "Weighted log loss (nats)", theme)
    for axes in (upper, lower):
        axes.set_xlim(0, 1)
    lower.set_xticks([0, 0.5, 1], ["lowest slice", "middle", "highest slice"])
    upper.set_xticks([0, 0.5, 1], ["", "", ""])
    return figure


def disagreement_curves(found: Disagreement, theme: Theme = LIGHT) -> Figure:
    """Draw the error over the disagreement of the runs, each class in its colour.

    Args:
        found: disagreement and error by class.
        theme: light or dark.
    """
    figure, (axes,) = stacked("Mean error", theme)
    for k in reversed(range(len(CLASSES))):
        style = class_style(k, theme)
        std_Q, error_Q = (
            each.clip(MIN_LOG_VALUE) for each in (found.std_KQ[k], found.error_KQ[k])
        )
        axes.plot(std_Q, error_Q, marker="o", markersize=3, **style)
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("Standard deviation of the runs' probabilities")
    add_legend(axes, theme, reverse=True)
    return figure


def set_aside_curves(found: Disagreement, theme: Theme = LIGHT) -> Figure:
    """Draw the error of any that is left when the most uncertain slices are set aside.

    Args:
        found: error by share of the slices that are left.
        theme: light or dark.
    """
    figure, (axes,) = stacked("Mean error of any, of the slices left", theme)
    all_slices = next(iter(found.rest.values()))[-1]
    axes.axhline(all_slices, color=theme.faint, linewidth=0.8, linestyle=":")
    colors = (MODEL_COLOR, SECOND_COLOR)
    for (name, error_Q), color in zip(found.rest.items(), colors, strict=False):
        axes.plot(
            found.kept_Q, error_Q, color=color, marker="o", markersize=3, label=name
        )
    axes.set_xlim(1.02, 0)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("Share of the slices left")
    add_legend(axes, theme)
    return figure


def _draw_band(axes: Axes, band: Band | None, color: str) -> None:
    if band is not None:
        axes.fill_between(
            GRID_G, band.low_G, band.high_G, color=color, alpha=0.22, linewidth=0
        )


def _write_empty(
    axes: Axes, name: str, scores: ClassScores | None, theme: Theme
) -> None:
    set_title(axes, f"{name}\n-", theme)
    reason = "one label only" if scores else "no label"
    axes.text(0.5, 0.5, reason, color=theme.ink, fontsize=8, ha="center")


def _finish_squares(all_axes: list[Axes], xlabel: str, ylabel: str) -> None:
    """Name the axes at the left and at the bottom only; a row has two panels."""
    for number, axes in enumerate(all_axes):
        is_last_row = number >= len(all_axes) - 2
        is_left = number % 2 == 0
        set_unit_square(axes, xlabel if is_last_row else "", ylabel if is_left else "")


def _with_interval(figure: float | None, interval: Interval | None) -> str:
    shown = "-" if figure is None else f"{figure:.3f}"
    return f"{shown} ({interval[0]:.3f} to {interval[1]:.3f})" if interval else shown


def _wilson_interval(frequency_Q: Floats, count_Q: Floats) -> tuple[Floats, Floats]:
    """The 95% interval of a frequency. Source: Wilson 1927."""
    z = 1.96
    middle_Q = frequency_Q + z**2 / (2 * count_Q)
    spread = frequency_Q * (1 - frequency_Q) / count_Q + (z / (2 * count_Q)) ** 2
    scale_Q = 1 + z**2 / count_Q
    half_Q = z * np.sqrt(spread)
    return (middle_Q - half_Q) / scale_Q, (middle_Q + half_Q) / scale_Q
