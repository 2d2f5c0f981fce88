"""Slice model, smoothing and blend along some of the series that validate.

The blend is the cross-fitted one: its shares were chosen on other patients.

Above are the series that the series head improves most, below those that it makes
worst, among the series with a labelled hemorrhage.

Shape letters: N slices of the store, S series, Z slices of a series, K classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ichfast.errors import PredictionError
from ichfast.evaluation.logits import Floats, sigmoid
from ichfast.evaluation.metrics import weighted_log_loss
from ichfast.report.charts.style import (
    LIGHT,
    MODEL_COLOR,
    SECOND_COLOR,
    set_title,
    style_axes,
)
from ichfast.series.comparison import ModelComparison
from ichfast.system.files import output_path

PICTURE = "series.png"
"""The picture in a series run's folder."""

NUM_COLUMNS = 3
"""Series that are improved most, and as many that are made worst."""


def draw_series_models(run_dir: Path, compared: ModelComparison) -> None:
    """Draw the models of a series run into its folder, if a series has a hemorrhage.

    Args:
        run_dir: the folder of the series run.
        compared: its models on the series that validate.

    Raises:
        PredictionError: the folder cannot be written.
    """
    figure = series_models(compared)
    if figure is not None:
        with output_path(run_dir / PICTURE, PredictionError) as temporary:
            figure.savefig(temporary, format="png", dpi=150)


def series_models(compared: ModelComparison) -> Figure | None:
    """Draw the models along series; None if no series has a labelled hemorrhage.

    Args:
        compared: the models on the series that validate.
    """
    gain_S = _gains(compared)
    order = [int(s) for s in np.argsort(-gain_S) if not np.isnan(gain_S[s])]
    if not order:
        return None
    num_below = min(NUM_COLUMNS, len(order) // 2)
    rows = [order[: min(NUM_COLUMNS, len(order) - num_below)]]
    if num_below:
        rows.append(order[::-1][:num_below])
    figure = Figure(
        figsize=(10.5, 2.9 * len(rows)), facecolor=LIGHT.paper, layout="constrained"
    )
    grid = figure.subplots(len(rows), NUM_COLUMNS, sharey=True, squeeze=False)
    for all_axes, series in zip(grid, rows, strict=True):
        for axes, s in zip(all_axes, series, strict=False):
            _draw(axes, compared, s)
        for axes in all_axes[len(series) :]:
            axes.set_axis_off()
        all_axes[0].set_ylabel("probability of any")
    figure.legend(
        *grid[0][0].get_legend_handles_labels(),
        loc="outside upper right",
        ncols=4,
        fontsize=8,
        frameon=False,
    )
    figure.supxlabel(
        "slices from bottom to top; above the series that the head improves most, "
        "below those that it makes worst",
        fontsize=8,
    )
    return figure


def _gains(compared: ModelComparison) -> Floats:
    """By how much the blend lowers the loss of each series; NaN without hemorrhage."""
    gain_S = np.full(len(compared.valid), np.nan)
    for s, rows_Z in enumerate(compared.valid.rows):
        labels_ZK = compared.valid.labels_NK[rows_Z].astype(np.float64)
        if (labels_ZK[:, 0] == 1).any():
            before, after = (
                weighted_log_loss(sigmoid(logits_NK[rows_Z]), labels_ZK)
                for logits_NK in (compared.slice_model_NK, compared.crossfitted_NK)
            )
            gain_S[s] = before - after
    return gain_S


def _draw(axes: Axes, compared: ModelComparison, s: int) -> None:
    rows_Z = compared.valid.rows[s]
    labels_ZK = compared.valid.labels_NK[rows_Z].astype(np.float64)
    number_Z = np.arange(1, len(rows_Z) + 1)
    style_axes(axes, LIGHT)
    axes.fill_between(
        number_Z,
        labels_ZK[:, 0],
        step="mid",
        color=LIGHT.faint,
        alpha=0.35,
        linewidth=0,
        label="label",
    )
    losses = []
    for name, logits_NK, color, line in (
        ("slice model", compared.slice_model_NK, SECOND_COLOR, "-"),
        ("smoothed", compared.smoothed_NK, LIGHT.ink, ":"),
        ("blend with head", compared.crossfitted_NK, MODEL_COLOR, "-"),
    ):
        probs_ZK = sigmoid(logits_NK[rows_Z])
        axes.plot(number_Z, probs_ZK[:, 0], line, color=color, lw=1.4, label=name)
        losses.append(weighted_log_loss(probs_ZK, labels_ZK))
    set_title(axes, f"weighted log loss {losses[0]:.3f} to {losses[2]:.3f}", LIGHT)
    axes.set_ylim(-0.02, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
