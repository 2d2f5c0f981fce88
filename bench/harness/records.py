"""Results files: one record in each line, as a JSON object."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.harness.estimates import Estimate
from bench.harness.measure import BenchError, Record

RESULTS_DIR = Path(__file__).parents[1] / "results"
"""Folder of the results files that are committed."""


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Append records to a results file, one JSON object in each line.

    Args:
        path: The file; created with its folder if missing.
        records: What is appended.
    """
    lines = "".join(json.dumps(asdict(record)) + "\n" for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(lines)


def read_records(path: Path) -> list[Record]:
    """Read a results file.

    Raises:
        BenchError: There is no such file, or a line is not a record.
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
                f"{path}, line {number} is not a record of this version; "
                "remove the line, or measure again"
            ) from error
    if not records:
        raise BenchError(f"{path} has no records; measure again")
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
    """Read the results files of a folder and choose with `newest_of`.

    Raises:
        BenchError: A line of a file is not a record.
    """
    found: list[Record] = []
    for file in sorted(folder.glob("*.jsonl")):
        found += read_records(file)
    return newest_of(found)


def newest_of(records: Iterable[Record]) -> list[Record]:
    """Choose the records of one commit for each case and hardware, oldest first.

    It is the last commit at which ichfast was measured in that case, so that figures
    shown together were measured together. Of two records with one key the last counts.
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
    """Describe the hardware of a record for people."""
    environment = record.environment
    processor = f"{environment['cores']} cores of {environment['processor']}"
    if record.device == "cpu":
        return f"{processor}, no GPU used"
    return f"{', '.join(environment['gpus'])}; {processor}"
