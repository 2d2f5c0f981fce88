"""The style of all charts: paper, colours, axes.

1. Only the object-oriented API of matplotlib is used, without pyplot or global state.
   Figures can be drawn in any thread, and nothing needs closing.
2. Colours are those of Okabe and Ito, which the colour-blind can tell apart; `any` has
   the colour of the text. A class has the same colour in all charts.
3. Text from outside is drawn as it is, never read as a formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ichfast.labels import CLASSES

CHART_SIZE_INCH = (4.8, 3.6)
"""Width and height of a chart, small so that its text can be read on a phone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Theme:
    """The colours that differ between a light and a dark page."""

    paper: str
    ink: str
    faint: str
    """Colour of grid lines and of everything to compare with."""


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
    """Make an empty chart of `CHART_SIZE_INCH` with panels one above the other.

    Args:
        title: title of the upper panel.
        theme: light or dark.
        panels: number of panels.
        heights: relative heights of the panels; equal if left out.
    """
    figure = _paper(CHART_SIZE_INCH, theme)
    column = figure.subplots(
        panels, squeeze=False, height_ratios=heights or [1.0] * panels
    )
    all_axes = list(column.ravel())
    for axes in all_axes:
        style_axes(axes, theme)
    set_title(all_axes[0], title, theme)
    return figure, all_axes


def panel_a_class(theme: Theme) -> tuple[Figure, list[Axes]]:
    """Make an empty chart with a square panel for each class, two side by side."""
    figure = _paper((CHART_SIZE_INCH[0], 6.9), theme)
    all_axes = list(figure.subplots(3, 2, sharex=True, sharey=True).ravel())
    for axes in all_axes:
        style_axes(axes, theme)
        axes.set_box_aspect(1)
    return figure, all_axes


def set_title(axes: Axes, title: str, theme: Theme) -> None:
    """Set the title of a panel.

    Args:
        axes: the panel.
        title: what it shows.
        theme: light or dark.
    """
    axes.set_title(title, color=theme.ink, fontsize=9, loc="left")


def add_legend(axes: Axes, theme: Theme, **options: Any) -> None:
    """Add a legend if a line has a name.

    Args:
        axes: the panel.
        theme: light or dark.
        **options: further arguments of `Axes.legend`.
    """
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, frameon=False, labelcolor=theme.ink, **options)


def set_unit_square(axes: Axes, xlabel: str, ylabel: str) -> None:
    """Let both axes run from 0 to 1.

    Args:
        axes: the panel.
        xlabel: name of the horizontal axis.
        ylabel: name of the vertical axis.
    """
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=xlabel, ylabel=ylabel)


def class_color(k: int, theme: Theme) -> str:
    """The colour of a class.

    Args:
        k: index of the class in `labels.CLASSES`.
        theme: light or dark.
    """
    return theme.ink if k == 0 else _SUBTYPE_COLORS[k - 1]


def class_style(k: int, theme: Theme) -> dict[str, Any]:
    """The line style of a class in a chart of all classes.

    Args:
        k: index of the class in `labels.CLASSES`.
        theme: light or dark.
    """
    width = 2.0 if k == 0 else 1.2
    return {"color": class_color(k, theme), "linewidth": width, "label": CLASSES[k]}


def _paper(size_inch: tuple[float, float], theme: Theme) -> Figure:
    return Figure(figsize=size_inch, facecolor=theme.paper, layout="constrained")


def style_axes(axes: Axes, theme: Theme) -> None:
    """Give a panel its colours.

    Args:
        axes: the panel.
        theme: light or dark.
    """
    axes.set_facecolor(theme.paper)
    axes.tick_params(colors=theme.ink, labelsize=8, length=0)
    axes.xaxis.label.set(color=theme.ink, fontsize=8)
    axes.yaxis.label.set(color=theme.ink, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.faint)
    axes.grid(color=theme.faint, linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)
