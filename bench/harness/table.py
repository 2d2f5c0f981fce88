"""Records as a table for people and as one object for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.harness.estimates import WANTED_COVERAGE
from bench.harness.measure import Record

HEADER = ("stage", "case", "what", "median", "MB/s", "95 %", "ichfast is", "")


def format_table(records: Sequence[Record]) -> str:
    """Format records as a table: each stage, its limits and its peers."""
    return align(HEADER, [_row(record) for record in records], right=(3, 4, 5, 6))


def align(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int]
) -> str:
    """Format a table with columns as wide as their widest cell.

    Args:
        header: Texts of the first line.
        rows: Texts of the other lines.
        right: Numbers of the columns that are aligned to the right.
    """
    cells = [header, *rows]
    widths = [max(len(row[k]) for row in cells) for k in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if k in right else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths).rstrip())
    return "\n".join(lines)


def _row(record: Record) -> tuple[str, ...]:
    start = (record.stage.replace("_", " "), record.case, record.name)
    if record.estimate is None:
        return (*start, "", "", "", "", f"not measured: {record.reason}")
    notes = [record.role] if record.role != "ichfast" else []
    if record.cache == "cold":
        notes.append("cold cache")
    if record.is_noisy:
        notes.append("noisy")
    is_exact = record.estimate.low == record.estimate.high
    if record.estimate.coverage < WANTED_COVERAGE and not is_exact:
        notes.append(f"{len(record.values)} turns, too few for 95 %")
    if "aim" in record.settings:
        side = "over" if record.more_is_better else "under"
        aim = format_number(record.settings["aim"])
        notes.append(f"aim: {side} {aim} {record.unit}")
    if "aim_ratio" in record.settings:
        notes.append(f"aim: {record.settings['aim_ratio']:.0%} of it or more")
    low, high = map(format_number, (record.estimate.low, record.estimate.high))
    return (
        *start,
        f"{format_number(record.estimate.median)} {record.unit}",
        _megabytes(record),
        f"{low} to {high}",
        _ratio(record),
        ", ".join(notes),
    )


def _ratio(record: Record) -> str:
    if record.ratio is None:
        return ""
    if record.role == "limit":
        return f"{record.ratio.median:.0%} of it"
    return f"{record.ratio.median:.1f} x as fast"


def _megabytes(record: Record) -> str:
    """Format the rate in 10^6 bytes per second, where `unit_bytes` is known."""
    if record.estimate is None or "unit_bytes" not in record.settings:
        return ""
    return format_number(record.estimate.median * record.settings["unit_bytes"] / 1e6)


def format_number(value: float) -> str:
    """Format a number with three figures, or all figures before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def summarize(records: Sequence[Record]) -> dict[str, Any]:
    """Collect medians and ratios by stage, case and name, for JSON."""
    stages: dict[str, Any] = {}
    for record in records:
        if record.estimate is None:
            continue
        case = stages.setdefault(record.stage, {}).setdefault(record.case, {})
        case[record.name] = {
            "role": record.role,
            "unit": record.unit,
            "median": record.estimate.median,
            "low": record.estimate.low,
            "high": record.estimate.high,
            "ichfast_over_this": record.ratio and record.ratio.median,
            "noisy": record.is_noisy,
        }
    left_out = [
        {"stage": record.stage, "name": record.name, "reason": record.reason}
        for record in records
        if record.estimate is None
    ]
    return {"stages": stages, "left_out": left_out}
