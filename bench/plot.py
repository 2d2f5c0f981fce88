"""Results as a picture: bars of medians, a panel for each case and unit.

All bars of a panel are of one commit, whose number is in the title.

python bench/plot.py RESULTS.jsonl [OUT.png]
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.harness.measure import BenchError, Record
from bench.harness.records import newest_of, read_records
from bench.harness.table import format_number
from ichfast.report.charts.style import LIGHT, MODEL_COLOR, SECOND_COLOR
from ichfast.system.files import atomic_path

COLORS = {"ichfast": MODEL_COLOR, "limit": LIGHT.faint, "peer": SECOND_COLOR}
DPI = 160
NUM_COLUMNS = 2
BAR_INCH, PANEL_INCH, WIDTH_INCH = 0.22, 0.62, 10.0


def draw(records: Sequence[Record]) -> Figure:
    """Draw the measured records that `newest_of` chooses.

    Raises:
        BenchError: No record was measured.
    """
    measured = [each for each in newest_of(records) if each.estimate is not None]
    if not measured:
        raise BenchError("nothing was measured, so there is nothing to draw")
    dates = {record.commit: record.date[:10] for record in measured}
    panels: dict[tuple[str, str, str, int], list[Record]] = {}
    for each in measured:
        number = list(dates).index(each.commit) + 1
        panel = (each.stage.replace("_", " "), each.case, each.unit, number)
        panels.setdefault(panel, []).append(each)
    # Panels with the same number of bars are side by side.
    tallest_first = sorted(panels.items(), key=lambda item: -len(item[1]))
    heights = [
        len(bars) * BAR_INCH + PANEL_INCH for _, bars in tallest_first[::NUM_COLUMNS]
    ]
    figure = Figure(figsize=(WIDTH_INCH, sum(heights) + 0.6), layout="constrained")
    axes = figure.subplots(
        len(heights), NUM_COLUMNS, squeeze=False, height_ratios=heights
    ).ravel()
    for ax in axes[len(panels) :]:
        ax.remove()
    for ax, (panel, bars) in zip(axes, tallest_first, strict=False):
        stage, case, unit, number = panel
        _draw_panel(ax, f"{stage}: {case}, {unit} [{number}]", bars)
    figure.suptitle(_title(measured[-1], dates), fontsize=8, color=LIGHT.ink)
    return figure


def _draw_panel(ax: Axes, title: str, records: Sequence[Record]) -> None:
    found = [record.estimate for record in records if record.estimate is not None]
    medians = [each.median for each in found]
    errors = [
        [each.median - each.low for each in found],
        [each.high - each.median for each in found],
    ]
    ax.barh(
        [record.name for record in records],
        medians,
        xerr=errors,
        color=[COLORS[record.role] for record in records],
        error_kw={"ecolor": LIGHT.ink, "elinewidth": 1, "capsize": 2},
    )
    for row, each in enumerate(found):
        text = f"  {format_number(each.median)}"
        ax.text(each.high, row, text, va="center", fontsize=8)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.18 * max(each.high for each in found))
    ax.set_title(title, loc="left", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)


def _title(record: Record, dates: Mapping[str, str]) -> str:
    environment = record.environment
    gpus = environment.get("gpus") or ["no GPU"]
    commits = "; ".join(
        f"[{number}] {commit}, {date}"
        for number, (commit, date) in enumerate(dates.items(), start=1)
    )
    return (
        f"{environment.get('processor')}, {environment.get('cores')} cores, {gpus[0]}; "
        f"commits: {commits}\n"
        "blue: ichfast, grey: the limit in the same run, orange: peers; "
        "lines: 95 % of the median"
    )


def write_figure(records: Sequence[Record], path: Path) -> None:
    """Draw records to a file.

    Args:
        records: As for `draw`.
        path: A PNG file; replaced if it exists.

    Raises:
        BenchError: No record was measured.
    """
    figure = draw(records)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})


def main(arguments: Sequence[str]) -> int:
    """Draw one results file; returns the exit status."""
    if len(arguments) not in (1, 2):
        print("usage: python bench/plot.py RESULTS.jsonl [OUT.png]", file=sys.stderr)
        return 2
    results = Path(arguments[0])
    out = Path(arguments[1]) if len(arguments) == 2 else results.with_suffix(".png")
    try:
        write_figure(read_records(results), out)
    except (BenchError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
