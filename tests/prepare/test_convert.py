"""A unit keeps to its limits of time and memory, its page to the listing's order."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ichfast.dicom.slices import Slice, read_slices
from ichfast.errors import RejectError, SourceError
from ichfast.prepare import convert
from ichfast.prepare.convert import (
    MAX_STALLS,
    Job,
    _count_stalls,
    convert_unit,
    read_file,
)
from ichfast.prepare.journal import Journal
from ichfast.prepare.plan import cut_units
from ichfast.sources.listing import Entry
from ichfast.sources.places import Place
from ichfast.sources.sources import list_entries
from tests.dicom.dicom_files import ct_file, ramp


def test_a_file_of_slices_that_nearly_hang_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [one] = read_slices(ct_file(ramp()))
    begun = []

    def slow(_: bytes, _name: str) -> Iterator[Slice]:
        for number in range(1000):
            begun.append(number)
            time.sleep(0.02)
            yield one

    monkeypatch.setattr(convert, "FILE_TIMEOUTS", 0.01)
    job = Job(Journal(tmp_path, (512,)), None, slow, 10.0, lambda _: "")
    with pytest.raises(RejectError) as caught:
        list(convert._decode(job, "", b""))
    assert caught.value.code == "timeout"
    assert 1 <= len(begun) <= 5  # how many depends on the load


def rows_of(archive: Path, store: Path) -> pa.Table:
    """The rows of the page of a unit with all members of an archive."""
    journal = Journal(store, (512,))
    journal.path.mkdir(parents=True)
    [unit] = cut_units(list_entries([archive]), 99, first_unit=0)
    convert_unit(Job(journal, None, read_file, 60.0, lambda entry: entry.key), unit)
    page = journal.read(unit)
    assert [reject[0] for reject in page.rejects] == [2]
    return page.rows


def test_rows_that_are_packed_early_are_the_same_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = np.stack([ramp("<u2", first=0)] * 3)
    whole = [
        ct_file(frames, NumberOfFrames="3", SOPInstanceUID=f"1.{number}")
        for number in range(5)
    ]
    whole[2] = whole[2][:-1]
    archive = tmp_path / "reversed.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for number in reversed(range(5)):
            info = tarfile.TarInfo(f"{number}.dcm")
            info.size = len(whole[number])
            tar.addfile(info, io.BytesIO(whole[number]))
    late = rows_of(archive, tmp_path / "late")
    monkeypatch.setattr(convert, "_PACKED_ROWS", 4)
    early = rows_of(archive, tmp_path / "early")
    # Of frames without a position, it is NaN, which equals nothing.
    assert early.drop("position_mm").equals(late.drop("position_mm"))
    expected = [f"1.{number}.{frame}" for number in (0, 1, 3, 4) for frame in (1, 2, 3)]
    assert early["slice_id"].to_pylist() == expected


def test_only_stalls_in_a_row_end_the_run(tmp_path: Path) -> None:
    job = Job(Journal(tmp_path, (512,)), None, read_file, 1.0, lambda e: e.key)
    stalled: set[Place] = set()
    stall = RejectError("timeout", "no answer")
    entries = [Entry(0, Path(str(k)), "", str(k), 1) for k in range(2 * MAX_STALLS)]
    for entry in entries:
        _count_stalls(job, stalled, entry, stall if int(entry.key) % 4 else b"x")
    _count_stalls(job, stalled, entries[0], b"x")
    for entry in entries:  # members of one archive are one stall
        _count_stalls(job, stalled, replace(entry, container=Path("a.zip")), stall)
    for entry in entries[: MAX_STALLS - 2]:
        _count_stalls(job, stalled, entry, stall)
    with pytest.raises(SourceError, match="10 files in a row give nothing for 300 s"):
        _count_stalls(job, stalled, entries[-1], stall)
