"""Results files: records, one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.harness.estimates import Estimate
from bench.harness.measure import BenchError, Record

RESULTS_DIR = Path(__file__).parents[1] / "results"
"""Files that are committed."""


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Append records to a results file, one JSON object a line."""
    lines = "".join(json.dumps(asdict(record)) + "\n" for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(lines)


def read_records(path: Path) -> list[Record]:
    """Read a results file.

    Raises:
        BenchError: no such file, or a line that is no record.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(
            f"no results in {path}; make some with `python bench/throughput.py`"
        ) from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_from_json(json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            raise BenchError(
                f"{path}, line {number} is no record of this version; "
                "remove the line, or measure again"
            ) from error
    if not records:
        raise BenchError(f"{path} holds no record; measure again")
    return records


def _from_json(found: dict[str, Any]) -> Record:
    record = Record(**found)
    return replace(
        record,
        values=tuple(record.values),
        estimate=Estimate(**found["estimate"]) if found["estimate"] else None,
        ratio=Estimate(**found["ratio"]) if found["ratio"] else None,
    )


def read_newest(folder: Path) -> list[Record]:
    """The newest records of all results files, as `newest_of` chooses them.

    Args:
        folder: holds results files, or none.

    Raises:
        BenchError: a line of a file is no record.
    """
    found: list[Record] = []
    for file in sorted(folder.glob("*.jsonl")):
        found += read_records(file)
    return newest_of(found)


def newest_of(records: Iterable[Record]) -> list[Record]:
    """Of each case on each kind of hardware the records of one commit, oldest first.

    It is the last commit at which ichfast was measured in that case, so what stands
    side by side was measured side by side. Of a thing measured twice the last counts.
    """
    by_date = sorted(records, key=lambda record: record.date)
    commit_of = {
        _place_of(record): record.commit
        for record in by_date
        if record.role == "ichfast" and record.estimate is not None
    }
    chosen = {
        (*_place_of(record), record.name): record
        for record in by_date
        if record.commit == commit_of.get(_place_of(record))
    }
    return list(chosen.values())


def _place_of(record: Record) -> tuple[str, str, str]:
    return hardware_of(record), record.stage, record.case


def hardware_of(record: Record) -> str:
    """What a record was measured on, for people."""
    environment = record.environment
    processor = f"{environment['cores']} cores of {environment['processor']}"
    if record.device == "cpu":
        return f"{processor}, no GPU used"
    return f"{', '.join(environment['gpus'])}; {processor}"
