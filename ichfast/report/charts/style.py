"""The style of the charts: paper, colours, axes. One calm style for all.

1. The object-oriented matplotlib API only: no pyplot, no global state, so figures
   may be made in any thread and nothing needs closing.
2. Colours are Okabe and Ito's, told apart by the colour-blind; `any` is drawn in
   the ink of the text. The same class has the same colour everywhere.
3. Text that came from outside is drawn as it stands, never read as a formula.

`ichfast.report.charts.training` and `ichfast.report.charts.results` draw in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ichfast.labels import CLASSES

CHART_SIZE_INCH = (4.8, 3.6)
"""Small on purpose: its text stays readable at the width of a phone."""


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


def stacked(
    title: str, theme: Theme, *, panels: int = 1, heights: Sequence[float] = ()
) -> tuple[Figure, list[Axes]]:
    """An empty chart of `CHART_SIZE_INCH`: panels one above the other.

    Args:
        title: of the uppermost panel.
        theme: light or dark.
        panels: how many.
        heights: of the panels, relative to each other; all alike if left out.
    """
    figure = _paper(CHART_SIZE_INCH, theme)
    column = figure.subplots(
        panels, squeeze=False, height_ratios=heights or [1.0] * panels
    )
    all_axes = list(column.ravel())
    for axes in all_axes:
        _style(axes, theme)
    set_title(all_axes[0], title, theme)
    return figure, all_axes


def panel_a_class(theme: Theme) -> tuple[Figure, list[Axes]]:
    """An empty chart with a square panel for each class, two side by side."""
    figure = _paper((CHART_SIZE_INCH[0], 6.9), theme)
    all_axes = list(figure.subplots(3, 2, sharex=True, sharey=True).ravel())
    for axes in all_axes:
        _style(axes, theme)
        axes.set_box_aspect(1)
    return figure, all_axes


def set_title(axes: Axes, title: str, theme: Theme) -> None:
    """Say what a panel shows."""
    axes.set_title(title, color=theme.ink, fontsize=9, loc="left")


def add_legend(axes: Axes, theme: Theme, **options: Any) -> None:
    """Name the lines, where any has a name."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, frameon=False, labelcolor=theme.ink, **options)


def set_unit_square(axes: Axes, xlabel: str, ylabel: str) -> None:
    """Let both axes run from 0 to 1."""
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=xlabel, ylabel=ylabel)


def class_color(k: int, theme: Theme) -> str:
    """The colour of a class, by its place in `labels.CLASSES`."""
    return theme.ink if k == 0 else _SUBTYPE_COLORS[k - 1]


def class_style(k: int, theme: Theme) -> dict[str, Any]:
    """How a class's line is drawn among those of the others."""
    width = 2.0 if k == 0 else 1.2
    return {"color": class_color(k, theme), "linewidth": width, "label": CLASSES[k]}


def _paper(size_inch: tuple[float, float], theme: Theme) -> Figure:
    return Figure(figsize=size_inch, facecolor=theme.paper, layout="constrained")


def _style(axes: Axes, theme: Theme) -> None:
    axes.set_facecolor(theme.paper)
    axes.tick_params(colors=theme.ink, labelsize=8, length=0)
    axes.xaxis.label.set(color=theme.ink, fontsize=8)
    axes.yaxis.label.set(color=theme.ink, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.faint)
    axes.grid(color=theme.faint, linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)
