"""The charts: curves and bars of a run. One calm style for all.

1. The object-oriented matplotlib API only: no pyplot, no global state, so figures
   may be made in any thread and nothing needs closing.
2. Colours are Okabe and Ito's, told apart by the colour-blind; `any` is drawn in
   the ink of the text. The same class has the same colour everywhere.
3. Text that came from outside is drawn as it stands, never read as a formula.

Shape letters: N slices, K classes, Q calibration bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from sklearn.metrics import precision_recall_curve, roc_curve

from ichfast.evaluation import Evaluation, LevelScores
from ichfast.labels import CLASSES
from ichfast.metrics import calibration_bins

Floats = npt.NDArray[np.float64]

CHART_SIZE_INCH = (4.8, 3.6)
"""Small on purpose: its text stays readable at the width of a phone."""

MIN_BIN_COUNT = 10
"""A calibration bin with fewer slices is not drawn: its frequency is noise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Theme:
    """The colours that differ between a light and a dark page."""

    paper: str
    ink: str
    faint: str
    """Grid lines and what is only there to compare with."""


LIGHT = Theme(paper="#ffffff", ink="#1d2329", faint="#a9b1ba")
DARK = Theme(paper="#1b1f24", ink="#e4e8ec", faint="#69737e")

MODEL_COLOR = "#3a8fc7"
SECOND_COLOR = "#d98324"
_SUBTYPE_COLORS = ("#e69f00", "#d55e00", "#4a8fe0", "#009e73", "#cc79a7")
"""Source: Okabe and Ito 2008, "Color Universal Design"; the blue is lightened so
that it also stands out on dark paper."""


def loss_curves(history: pd.DataFrame, theme: Theme = LIGHT) -> Figure:
    """Training and validation loss over the epochs, weighted and unweighted.

    Args:
        history: one row an epoch, with the columns phase, train_loss, valid_loss and
            valid_weighted_log_loss.
        theme: light or dark.
    """
    figure, (axes,) = _chart("Loss (nats)", theme)
    lines = (
        ("train_loss", "training", theme.faint, "-"),
        ("valid_loss", "validation", MODEL_COLOR, "-"),
        ("valid_weighted_log_loss", "validation, any counts 2 of 7", theme.ink, "--"),
    )
    for column, label, color, style in lines:
        _over_epochs(axes, history[column], color=color, linestyle=style, label=label)
    _finish_epochs(axes, history, theme)
    _legend(axes, theme)
    return figure


def schedule_curves(history: pd.DataFrame, theme: Theme = LIGHT) -> Figure:
    """Validation accuracy above the learning rate.

    Args:
        history: as `loss_curves`, with valid_accuracy and learning_rate.
        theme: light or dark.
    """
    figure, (upper, lower) = _epoch_panels(
        history,
        theme,
        ("valid_accuracy", "Validation accuracy"),
        ("learning_rate", "Learning rate"),
    )
    lower.set_ylim(bottom=0)
    upper.yaxis.set_major_formatter("{x:.3f}")
    return figure


def speed_curves(history: pd.DataFrame, theme: Theme = LIGHT) -> Figure:
    """Slices a second above the share of time spent waiting for the loader.

    Args:
        history: as `loss_curves`, with slices_per_s and wait_share in [0, 1].
        theme: light or dark.
    """
    figure, (upper, lower) = _epoch_panels(
        history,
        theme,
        ("slices_per_s", "Training speed (slices/s)"),
        ("wait_share", "Waiting for the loader"),
    )
    upper.set_ylim(bottom=0)
    upper.yaxis.set_major_formatter("{x:,.0f}")
    lower.set_ylim(0, max(0.05, 1.1 * history["wait_share"].max()))
    lower.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return figure


def roc_curves(probs_NK: Floats, labels_NK: Floats, theme: Theme = LIGHT) -> Figure:
    """The ROC curve of each class that has positives and negatives."""
    figure, (axes,) = _chart("ROC by slice", theme)
    axes.plot([0, 1], [0, 1], color=theme.faint, linewidth=0.8, linestyle=":")
    for k in _drawable(labels_NK):
        false_rate, true_rate, _ = roc_curve(labels_NK[:, k], probs_NK[:, k])
        axes.plot(false_rate, true_rate, **_class_style(k, theme))
    _unit_square(axes, "1 - specificity", "Sensitivity")
    _legend(axes, theme, reverse=True, loc="lower right")
    return figure


def precision_recall_curves(
    probs_NK: Floats, labels_NK: Floats, theme: Theme = LIGHT
) -> Figure:
    """Precision over sensitivity of each class that has positives and negatives."""
    figure, (axes,) = _chart("Precision and sensitivity by slice", theme)
    for k in _drawable(labels_NK):
        precision, recall, _ = precision_recall_curve(
            labels_NK[:, k], probs_NK[:, k], drop_intermediate=True
        )
        axes.plot(recall, precision, **_class_style(k, theme))
    _unit_square(axes, "Sensitivity (recall)", "Precision")
    _legend(axes, theme, reverse=True, loc="lower left")
    return figure


def calibration_curves(
    probs_NK: Floats, labels_NK: Floats, theme: Theme = LIGHT
) -> Figure:
    """Observed frequency over predicted probability, above where slices lie.

    Bars on `any` are 95% Wilson intervals. Bins of fewer than `MIN_BIN_COUNT`
    slices are left out.
    """
    figure, (upper, lower) = _chart(
        "Calibration: observed frequency", theme, panels=2, heights=(2.4, 1)
    )
    upper.plot([0, 1], [0, 1], color=theme.faint, linewidth=0.8, linestyle=":")
    for k in reversed(range(len(CLASSES))):
        count_Q, prob_Q, frequency_Q = calibration_bins(probs_NK[:, k], labels_NK[:, k])
        shown_Q = np.where(count_Q >= MIN_BIN_COUNT, count_Q, np.nan)
        frequency_Q = np.where(np.isnan(shown_Q), np.nan, frequency_Q)
        style = _class_style(k, theme)
        upper.plot(prob_Q, frequency_Q, marker="o", markersize=2.5, **style)
        if k == 0:
            low_Q, high_Q = _wilson_interval(frequency_Q, shown_Q)
            upper.vlines(prob_Q, low_Q, high_Q, color=theme.ink, linewidth=1.0)
    _unit_square(upper, "", "")
    _legend(upper, theme, reverse=True, loc="upper left")
    edges = [n / 30 for n in range(31)]
    for is_positive, color in ((False, theme.faint), (True, SECOND_COLOR)):
        chosen = (labels_NK[:, 0] > 0.5) == is_positive
        label = "any" if is_positive else "none"
        lower.hist(
            probs_NK[chosen, 0], edges, histtype="step", color=color, label=label
        )
    lower.set_yscale("symlog", linthresh=1)
    lower.set_ylim(bottom=0)
    lower.set_xlim(-0.02, 1.02)
    lower.set_title("Slices by label", color=theme.ink, fontsize=9, loc="left")
    lower.set_xlabel("Predicted probability")
    _legend(lower, theme, loc="upper center", ncols=2)
    return figure


def loss_bars(evaluation: Evaluation, theme: Theme = LIGHT) -> Figure:
    """The model's log loss beside what predicting the prevalence costs."""
    figure, (axes,) = _chart("Log loss by slice (nats)", theme)
    level: LevelScores = evaluation.slice
    rows = [("weighted", level.weighted_log_loss, level.prevalence_loss)]
    rows += [
        (name, scores.log_loss, scores.prevalence_log_loss)
        for name, scores in level.classes.items()
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
    _legend(axes, theme, loc="lower right")
    return figure


def _chart(
    title: str, theme: Theme, *, panels: int = 1, heights: Sequence[float] = ()
) -> tuple[Figure, list[Axes]]:
    figure = Figure(
        figsize=CHART_SIZE_INCH, facecolor=theme.paper, layout="constrained"
    )
    columns = figure.subplots(
        panels, squeeze=False, height_ratios=heights or [1.0] * panels
    )
    all_axes = list(columns.ravel())
    for axes in all_axes:
        axes.set_facecolor(theme.paper)
        axes.tick_params(colors=theme.ink, labelsize=8, length=0)
        axes.xaxis.label.set(color=theme.ink, fontsize=8)
        axes.yaxis.label.set(color=theme.ink, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(theme.faint)
        axes.grid(color=theme.faint, linewidth=0.4, alpha=0.5)
        axes.set_axisbelow(True)
    all_axes[0].set_title(title, color=theme.ink, fontsize=9, loc="left")
    return figure, all_axes


def _epoch_panels(
    history: pd.DataFrame, theme: Theme, *panels: tuple[str, str]
) -> tuple[Figure, list[Axes]]:
    """Two columns of the history, one above the other: (column, title) each."""
    figure, both_axes = _chart(panels[0][1], theme, panels=2)
    both_axes[1].set_title(panels[1][1], color=theme.ink, fontsize=9, loc="left")
    colors = (MODEL_COLOR, SECOND_COLOR)
    for axes, (column, _), color in zip(both_axes, panels, colors, strict=True):
        _over_epochs(axes, history[column], color=color)
        _finish_epochs(axes, history, theme)
    both_axes[0].set_xlabel("")
    return figure, both_axes


def _over_epochs(axes: Axes, values: pd.Series[float], **style: Any) -> None:
    marker = "o" if len(values) < 12 else ""
    axes.plot(range(1, len(values) + 1), values, marker=marker, markersize=3, **style)


def _finish_epochs(axes: Axes, history: pd.DataFrame, theme: Theme) -> None:
    """Mark where one phase of the recipe gives way to the next."""
    axes.set_xlabel("Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(0.5, len(history) + 0.5)
    for epoch, (before, after) in enumerate(pairwise(history["phase"]), start=1):
        if before != after:
            axes.axvline(epoch + 0.5, color=theme.ink, linewidth=0.9, linestyle=":")


def _class_style(k: int, theme: Theme) -> dict[str, Any]:
    color = theme.ink if k == 0 else _SUBTYPE_COLORS[k - 1]
    width = 2.0 if k == 0 else 1.2
    return {"color": color, "linewidth": width, "label": CLASSES[k]}


def _drawable(labels_NK: Floats) -> list[int]:
    """The classes with both values, `any` last so that it lies on top."""
    has_both_K = labels_NK.min(axis=0) != labels_NK.max(axis=0)
    return [int(k) for k in reversed(np.flatnonzero(has_both_K))]


def _unit_square(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=xlabel, ylabel=ylabel)


def _legend(axes: Axes, theme: Theme, **options: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, frameon=False, labelcolor=theme.ink, **options)


def _wilson_interval(frequency_Q: Floats, count_Q: Floats) -> tuple[Floats, Floats]:
    """The 95% interval of a frequency. Source: Wilson 1927."""
    z = 1.96
    middle_Q = frequency_Q + z**2 / (2 * count_Q)
    spread = frequency_Q * (1 - frequency_Q) / count_Q + (z / (2 * count_Q)) ** 2
    scale_Q = 1 + z**2 / count_Q
    half_Q = z * np.sqrt(spread)
    return (middle_Q - half_Q) / scale_Q, (middle_Q + half_Q) / scale_Q
