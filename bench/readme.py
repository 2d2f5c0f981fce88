"""The figures in README.md: a table and a picture of the newest committed records.

python bench/readme.py

Rewrites the text between the two marks, and bench/results/throughput.png.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.harness.measure import BenchError, Record
from bench.harness.records import RESULTS_DIR, hardware_of, read_newest
from bench.harness.table import format_number
from bench.plot import write_figure
from bench.stages import STAGES
from ichfast.system.files import write_text_atomically

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN = "<!-- figures: `python bench/readme.py` writes them; do not edit -->"
END = "<!-- end of figures -->"
HEADER = "| stage | case | ichfast | limit | ichfast / limit | others |"
RULE = "|---|---|--:|--:|--:|---|"
FIGURE = "![Medians of ichfast, its limits and its peers](bench/results/throughput.png)"


def make_block(records: Sequence[Record]) -> str:
    """Make the text between the marks: tables by machine and commit, newest first.

    Args:
        records: Of `read_newest`.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.estimate is not None:
            groups.setdefault((hardware_of(record), record.commit), []).append(record)
    parts = [_make_table(group) for group in reversed(groups.values())]
    measured = {record.stage for group in groups.values() for record in group}
    missing = [stage.replace("_", " ") for stage in STAGES if stage not in measured]
    if missing:
        parts.append(f"Not measured by a committed record: {', '.join(missing)}.")
    if all(record.device == "cpu" for group in groups.values() for record in group):
        parts.append("On a GPU: not measured.")
    if groups:
        parts.append(FIGURE)
    return "\n\n".join(parts)


def _make_table(group: Sequence[Record]) -> str:
    last = group[-1]
    turns = min(len(record.values) for record in group)
    caption = (
        f"{hardware_of(last)}; commit `{last.commit}`, {last.date[:10]}; medians of "
        f"{turns} turns or more, `~` where they spread over more than a quarter:"
    )
    ours = [record for record in group if record.role == "ichfast"]
    first = {(each.stage, each.case): each for each in reversed(ours)}
    rows = [
        # Limits and peers are compared with the first of a case.
        _make_row(
            record,
            _compared_with(record, group)
            if first[record.stage, record.case] is record
            else [],
        )
        for record in ours
    ]
    return "\n".join([caption, "", HEADER, RULE, *rows])


def _compared_with(record: Record, group: Sequence[Record]) -> list[Record]:
    place = (record.stage, record.case)
    return [each for each in group if (each.stage, each.case) == place and each.ratio]


def _make_row(record: Record, others: Sequence[Record]) -> str:
    limits = [each for each in others if each.role == "limit"]
    peers = [each for each in others if each.role == "peer"]
    cells = (
        record.stage.replace("_", " "),
        record.case if record.name.startswith("ichfast") else _case_and_name(record),
        f"{_median(record)} {record.unit}",
        "<br>".join(f"{each.name} {_median(each)}" for each in limits),
        "<br>".join(f"{each.ratio.median:.2f}" for each in limits if each.ratio),
        "<br>".join(
            f"{each.name} {_median(each)}: {each.ratio.median:.1f} x"
            for each in peers
            if each.ratio
        ),
    )
    return f"| {' | '.join(cells)} |"


def _case_and_name(record: Record) -> str:
    return f"{record.case}: {record.name}"


def _median(record: Record) -> str:
    assert record.estimate is not None
    return ("~" if record.is_noisy else "") + format_number(record.estimate.median)


def replace_block(text: str, block: str) -> str:
    """Replace the text between the marks of a README.

    Args:
        text: The README.
        block: The new text.

    Raises:
        BenchError: A mark is missing, repeated, or in the wrong order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after:
        raise BenchError(f"{README.name} needs the lines {BEGIN} and {END} once each")
    return f"{before}{begin}\n\n{block}\n\n{end}{after}"


def main() -> int:
    """Write the block and the picture; returns the exit status."""
    try:
        records = read_newest(RESULTS_DIR)
        text = replace_block(README.read_text(encoding="utf-8"), make_block(records))
        hardware = hardware_of(records[-1]) if records else ""
        newest = [record for record in records if hardware_of(record) == hardware]
        write_figure(newest, RESULTS_DIR / "throughput.png")
        write_text_atomically(README, text)
    except (BenchError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(README)
    return 0


if __name__ == "__main__":
    sys.exit(main())
