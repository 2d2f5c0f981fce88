"""Records as a table for people and as one object for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.measure import Record

HEADER = ("stage", "case", "what", "rate", "MB/s", "95 %", "ichfast is", "")


def format_table(records: Sequence[Record]) -> str:
    """The records as lines: each stage, its limit and its peers."""
    rows = [HEADER, *(_row(record) for record in records)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(HEADER))]
    left = (0, 1, 2, 7)
    lines = [
        "  ".join(
            cell.ljust(width) if k in left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths).rstrip())
    return "\n".join(lines)


def _row(record: Record) -> tuple[str, ...]:
    start = (record.stage.replace("_", " "), record.case, record.name)
    if record.rate is None:
        return (*start, "", "", "", "", f"not measured: {record.reason}")
    notes = [record.role] if record.role != "ichfast" else []
    if record.cache == "cold":
        notes.append("cold cache")
    if record.is_noisy:
        notes.append("noisy")
    return (
        *start,
        f"{_number(record.rate.median)} {record.unit}",
        _megabytes(record),
        f"{_number(record.rate.low)} to {_number(record.rate.high)}",
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
    """The rate in 10^6 bytes a second, where what is counted has a size."""
    if record.rate is None or "unit_bytes" not in record.settings:
        return ""
    return _number(record.rate.median * record.settings["unit_bytes"] / 1e6)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def summarize(records: Sequence[Record]) -> dict[str, Any]:
    """The medians and ratios by stage, case and name, for JSON."""
    stages: dict[str, Any] = {}
    for record in records:
        if record.rate is None:
            continue
        case = stages.setdefault(record.stage, {}).setdefault(record.case, {})
        case[record.name] = {
            "role": record.role,
            "unit": record.unit,
            "median": record.rate.median,
            "low": record.rate.low,
            "high": record.rate.high,
            "ichfast_over_this": record.ratio and record.ratio.median,
            "noisy": record.is_noisy,
        }
    left_out = [
        {"stage": record.stage, "name": record.name, "reason": record.reason}
        for record in records
        if record.rate is None
    ]
    return {"stages": stages, "left_out": left_out}
