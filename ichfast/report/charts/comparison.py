"""A comparison of runs as a picture, with a bar for each of them.

Loss, accuracy and speed are beside those of the reference. Below is the weighted log
loss, beside those that other teams published.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
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
    by_reference = [row for row in rows if row.published_by != "another team"]
    by_teams = [
        row
        for row in rows
        if row.published_by != "reference" and row.weighted_loss is not None
    ]
    heights = [1.2 + 0.32 * len(each) for each in (by_reference, by_teams)]
    figure = Figure(figsize=(11, sum(heights)), layout="constrained", facecolor="white")
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)
    above, below = parts[:, 0]
    panels = above.subplots(1, len(PANELS), sharey=True)
    labels = [f"{row.name}, {row.size} px, {row.folds} folds" for row in by_reference]
    for axes, (field, title, form) in zip(panels, PANELS, strict=True):
        _bars(axes, by_reference, field, form)
        axes.set_title(title, fontsize=10, loc="left")
    _name_rows(panels[0], labels)
    above.supxlabel(
        "grey: published by the reference; blue: ours. Losses compare within one kind "
        "of folds.",
        fontsize=8,
    )
    axes = below.subplots()
    _bars(axes, by_teams, "weighted_loss", "{:.5f}")
    axes.set_title(
        "Weighted log loss, beside that of other teams", fontsize=10, loc="left"
    )
    _name_rows(axes, list(map(_team_label, by_teams)))
    below.supxlabel(
        "grey: published by other teams, on other slices; blue: ours, on its own "
        "validation.",
        fontsize=8,
    )
    return figure


def _team_label(row: Row) -> str:
    size = f", {row.size} px" if row.size else ""
    addition = "" if row.is_ours else f", {row.addition}"
    return f"{row.name}{size}{addition} ({row.measured_on})"


def _bars(axes: Axes, rows: Sequence[Row], field: str, form: str) -> None:
    """Draw a bar and a number for each row; a dash where the value is not known."""
    values = [getattr(row, field) for row in rows]
    colors = [MODEL_COLOR if row.is_ours else LIGHT.faint for row in rows]
    axes.barh(range(len(rows)), [value or 0.0 for value in values], color=colors)
    for place, value in enumerate(values):
        text = "  -" if value is None else f"  {form.format(value)}"
        axes.text(value or 0.0, place, text, va="center", fontsize=8)
    axes.margins(x=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _name_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels, fontsize=8, parse_math=False)
    axes.invert_yaxis()


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
