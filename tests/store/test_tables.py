"""A table that does not fit its header is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ichfast.errors import StoreError
from ichfast.store.header import StoreHeader, read_header
from ichfast.store.tables import (
    ADDED_COLUMNS,
    read_rejected,
    read_rows,
    rows_of,
    table_schema,
    write_rejected,
    write_rows,
)
from ichfast.system.files import file_crc32c
from tests.conftest import write_store


@pytest.fixture
def header(tmp_path: Path) -> StoreHeader:
    """The header of a store in `tmp_path`."""
    write_store(tmp_path / "store")
    return read_header(tmp_path / "store")


def with_first(rows: pa.Table, name: str, value: int | None) -> pa.Table:
    values = pa.array([value, *rows[name].to_pylist()[1:]], rows[name].type)
    return rows.set_column(rows.schema.get_field_index(name), name, values)


def as_text(rows: pa.Table, name: str) -> pa.Table:
    number = rows.schema.get_field_index(name)
    return rows.set_column(number, name, rows[name].cast(pa.string()))


def not_utf8(rows: pa.Table) -> pa.Table:
    raw = pa.array([b"\xff"] * len(rows))
    text = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    return rows.set_column(0, "slice_id", text)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda rows: rows.slice(1), "expected"),
        (lambda rows: with_first(rows, "shard", -1), "points outside"),
        (lambda rows: with_first(rows, "shard", 99), "points outside"),
        (lambda rows: with_first(rows, "shard", None), "lacks a value of shard"),
        (lambda rows: with_first(rows, "row_in_shard", -1), "points outside"),
        (lambda rows: with_first(rows, "row_in_shard", 9999), "points outside"),
        (lambda rows: with_first(rows, "row_in_shard", None), "lacks a value"),
        (lambda rows: with_first(rows, "slice_id", None), "lacks a value of slice_id"),
        (lambda rows: with_first(rows, "rows", 511), "other shapes"),
        (lambda rows: with_first(rows, "columns", 513), "other shapes"),
        (lambda rows: with_first(rows, "any", 2), "labels other than 0 and 1"),
        (lambda rows: with_first(rows, "subdural", -1), "labels other than 0 and 1"),
        (lambda rows: with_first(rows, "study_any", 2), "labels other than 0 and 1"),
        (lambda rows: rows.drop_columns("quirks"), "other columns than format 1"),
        (lambda rows: rows.append_column("x", rows["any"]), "other columns than"),
        (lambda rows: as_text(rows, "study_any"), "other columns than format 1"),
        (not_utf8, "is not a parquet table"),
    ],
)
def test_a_table_that_cannot_be_of_the_store_is_refused(
    tmp_path: Path,
    header: StoreHeader,
    change: Callable[[pa.Table], pa.Table],
    problem: str,
) -> None:
    file = tmp_path / "store" / "slices.parquet"
    pq.write_table(change(read_rows(tmp_path / "store", header)), file)
    with pytest.raises(StoreError, match="does not match its checksum"):
        read_rows(tmp_path / "store", header)
    with pytest.raises(StoreError, match=problem):
        read_rows(tmp_path / "store", replace(header, table_crc32c=file_crc32c(file)))


def test_rows_come_back_as_they_were_written(
    tmp_path: Path, header: StoreHeader
) -> None:
    rows = read_rows(tmp_path / "store", header)
    parts = [rows.slice(0, 5), rows.slice(5)]
    crc32c = write_rows(tmp_path, parts, header.levels)
    assert pq.read_table(tmp_path / "slices.parquet").equals(rows)
    assert crc32c == file_crc32c(tmp_path / "slices.parquet")
    frame = rows.to_pandas(types_mapper={pa.int8(): pd.Int8Dtype()}.get)
    assert rows_of(frame, header.levels).equals(rows)


def test_a_column_that_is_missing_is_unknown(
    tmp_path: Path, header: StoreHeader
) -> None:
    frame = read_rows(tmp_path / "store", header).to_pandas()
    names = ["quirks", "tilt_deg", "instance_number", "is_signed"]
    rows = rows_of(frame.drop(columns=names), header.levels)
    assert rows.schema.equals(table_schema(header.levels))
    assert [rows[name][0].as_py() for name in names] == ["", None, -1, False]


def test_a_store_of_version_0_1_opens_with_nulls(
    tmp_path: Path, header: StoreHeader
) -> None:
    file = tmp_path / "store" / "slices.parquet"
    rows = read_rows(tmp_path / "store", header)
    pq.write_table(rows.drop_columns(list(ADDED_COLUMNS)), file)
    old = read_rows(tmp_path / "store", replace(header, table_crc32c=file_crc32c(file)))
    assert old.schema.equals(table_schema(header.levels))
    assert old.equals(rows)
    assert all(old[name].null_count == len(rows) for name in ADDED_COLUMNS)


def test_names_that_look_like_nothing_survive(
    tmp_path: Path, header: StoreHeader
) -> None:
    names = ["NA", "nan", "", 'a,"b"', "é", "a\nb"]
    rejected = pd.DataFrame({"path": names, "reason": "not-dicom", "detail": "007"})
    crc32c = write_rejected(tmp_path / "store", rejected)
    found = read_rejected(tmp_path / "store", replace(header, rejected_crc32c=crc32c))
    pd.testing.assert_frame_equal(found, rejected, check_dtype=False)
