"""A comparison of runs as a picture: loss, accuracy and speed, a bar for each run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ichfast.errors import PredictionError
from ichfast.report.charts.style import LIGHT, MODEL_COLOR
from ichfast.report.comparison import Row
from ichfast.system.files import output_path

PANELS = (
    ("valid_loss", "Validation loss", "{:.4f}"),
    ("accuracy", "Accuracy at 0.5", "{:.4f}"),
    ("images_per_s", "Training images/s", "{:.3g}"),
)
"""Field, title, and number format of each panel."""


def comparison_figure(rows: Sequence[Row]) -> Figure:
    """Draw the rows from top to bottom, ours in colour."""
    figure = Figure(
        figsize=(11, 1.4 + 0.32 * len(rows)), layout="constrained", facecolor="white"
    )
    panels = figure.subplots(1, len(PANELS), sharey=True)
    places = range(len(rows))
    labels = [f"{row.name}, {row.size} px, {row.folds} folds" for row in rows]
    panels[0].set_yticks(places, labels, fontsize=8, parse_math=False)
    panels[0].invert_yaxis()
    colors = [MODEL_COLOR if row.is_ours else LIGHT.faint for row in rows]
    for axes, (field, title, form) in zip(panels, PANELS, strict=True):
        values = [getattr(row, field) for row in rows]
        axes.barh(places, [value or 0.0 for value in values], color=colors)
        for place, value in zip(places, values, strict=True):
            text = "  -" if value is None else f"  {form.format(value)}"
            axes.text(value or 0.0, place, text, va="center", fontsize=8)
        axes.margins(x=0.25)
        axes.set_title(title, fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(
        "grey: published by the reference; blue: ours. Losses compare within one kind "
        "of folds.",
        fontsize=8,
    )
    return figure


def draw_comparison(rows: Sequence[Row], path: Path) -> None:
    """Write the chart as PNG, atomically.

    Args:
        rows: the experiments.
        path: the PNG. Replaced if it exists.

    Raises:
        PredictionError: another suffix, or a file that cannot be written.
    """
    if path.suffix != ".png":
        raise PredictionError(f"the picture is a .png file, got {path.name!r}")
    with output_path(path, PredictionError) as temporary:
        comparison_figure(rows).savefig(temporary, format="png", dpi=150)
