"""Charts of the training of a run: loss, learning rate and speed over the epochs."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ichfast.report.charts.style import (
    LIGHT,
    MODEL_COLOR,
    SECOND_COLOR,
    Theme,
    add_legend,
    set_title,
    stacked,
)


def loss_curves(history: pd.DataFrame, theme: Theme = LIGHT) -> Figure:
    """Draw the training and validation loss, weighted and unweighted.

    Args:
        history: one row an epoch, with the columns phase, train_loss, valid_loss and
            valid_weighted_log_loss.
        theme: light or dark.
    """
    figure, (axes,) = stacked("Loss (nats)", theme)
    lines = (
        ("train_loss", "training", theme.faint, "-"),
        ("valid_loss", "validation", MODEL_COLOR, "-"),
        ("valid_weighted_log_loss", "validation, any counts 2 of 7", theme.ink, "--"),
    )
    for column, label, color, style in lines:
        _over_epochs(axes, history[column], color=color, linestyle=style, label=label)
    _finish_epochs(axes, history, theme)
    add_legend(axes, theme)
    return figure


def schedule_curves(history: pd.DataFrame, theme: Theme = LIGHT) -> Figure:
    """Draw the validation accuracy above the learning rate.

    Args:
        history: one row an epoch, with the columns phase, valid_accuracy and
            learning_rate.
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
    """Draw the slices per second above the share of time spent waiting for slices.

    Args:
        history: one row an epoch, with the columns phase, slices_per_s and wait_share,
            which is in [0, 1].
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


def _epoch_panels(
    history: pd.DataFrame, theme: Theme, *panels: tuple[str, str]
) -> tuple[Figure, list[Axes]]:
    """Draw two columns of the history, given as (column, title), as two panels."""
    figure, both_axes = stacked(panels[0][1], theme, panels=2)
    set_title(both_axes[1], panels[1][1], theme)
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
    """Label the axis of epochs, and mark where a phase of the recipe begins."""
    axes.set_xlabel("Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(0.5, len(history) + 0.5)
    for epoch, (before, after) in enumerate(pairwise(history["phase"]), start=1):
        if before != after:
            axes.axvline(epoch + 0.5, color=theme.ink, linewidth=0.9, linestyle=":")
