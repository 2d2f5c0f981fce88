"""What became slower, beyond noise, from one results file to another.

    python bench/compare.py A.jsonl B.jsonl

Two figures differ when their intervals do not overlap: each holds its true median with
95 %. More seconds or MiB count as slower. Files of different hardware are compared,
with a warning. Status 1 if a figure of ichfast became slower. A slower limit or peer is
only shown: it means that the machine became slower.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.harness.estimates import Estimate
from bench.harness.measure import BenchError, Record
from bench.harness.records import read_records


@dataclass(frozen=True, slots=True)
class Change:
    """One figure in both files."""

    record: Record
    """The later record."""

    before: Estimate
    after: Estimate

    @property
    def verdict(self) -> str:
        """``slower``, ``faster`` or ``same`` within noise."""
        less, more = "slower", "faster"
        if not self.record.more_is_better:
            less, more = more, less
        if self.after.high < self.before.low:
            return less
        return more if self.after.low > self.before.high else "same"


def compare(before: Sequence[Record], after: Sequence[Record]) -> list[Change]:
    """Compare the figures that both have; of a repeated figure the last counts.

    Args:
        before: Records of the earlier file.
        after: Records of the later file.
    """
    earlier = {record.key: record.estimate for record in before if record.estimate}
    later = {record.key: record for record in after}
    return [
        Change(record, earlier[key], record.estimate)
        for key, record in later.items()
        if record.estimate is not None and key in earlier
    ]


def warnings(before: Sequence[Record], after: Sequence[Record]) -> list[str]:
    """Explain why the comparison may be unfair.

    Args:
        before: Records of the earlier file.
        after: Records of the later file.
    """
    reasons = []
    for fact in ("processor", "cores", "gpus"):
        old, new = (records[-1].environment.get(fact) for records in (before, after))
        if old != new:
            reasons.append(f"not the same machine: {fact} {old} and {new}")
    settings = {record.key: record.settings for record in before}
    differing = [r for r in after if settings.get(r.key, r.settings) != r.settings]
    if differing:
        names = ", ".join(sorted({f"{r.stage} {r.name}" for r in differing}))
        reasons.append(f"not the same settings: {names}")
    return reasons


def format_changes(changes: Sequence[Change]) -> str:
    """Format the changes as lines, the slower ones first."""
    order = ("slower", "faster", "same")
    ranked = sorted(changes, key=lambda change: order.index(change.verdict))
    return "\n".join(
        f"{change.verdict:6}  {change.after.median / change.before.median:5.2f} x  "
        f"{change.before.median:10,.1f} -> {change.after.median:10,.1f} "
        f"{change.record.unit}  {' / '.join(change.record.key)} ({change.record.role})"
        for change in ranked
    )


def main(arguments: Sequence[str]) -> int:
    """Compare two files; returns the exit status."""
    if len(arguments) != 2:
        print("usage: python bench/compare.py A.jsonl B.jsonl", file=sys.stderr)
        return 2
    try:
        before, after = (read_records(Path(argument)) for argument in arguments)
    except BenchError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    for warning in warnings(before, after):
        print(f"Warning: {warning}", file=sys.stderr)
    changes = compare(before, after)
    if not changes:
        print("Error: the files have no measurement in common", file=sys.stderr)
        return 2
    print(format_changes(changes))
    ours = [c for c in changes if c.record.role == "ichfast"]
    return int(any(change.verdict == "slower" for change in ours))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
