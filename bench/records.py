"""Results files: records, one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.estimates import Estimate
from bench.measure import BenchError, Record

RESULTS_DIR = Path(__file__).parent / "results"
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
    """The newest record of each thing on each kind of hardware, the oldest first.

    Args:
        folder: holds results files, or none.

    Raises:
        BenchError: a line of a file is no record.
    """
    found: list[Record] = []
    for file in sorted(folder.glob("*.jsonl")):
        found += read_records(file)
    found.sort(key=lambda record: record.date)
    newest = {(record.key, hardware_of(record)): record for record in found}
    return list(newest.values())


def hardware_of(record: Record) -> str:
    """What a record was measured on, for people."""
    environment = record.environment
    processor = f"{environment['cores']} cores of {environment['processor']}"
    if record.device == "cpu":
        return f"{processor}, no GPU used"
    return f"{', '.join(environment['gpus'])}; {processor}"
