"""The tables of a store: `slices.parquet`, one row per slice, and `rejected.csv`.

Rows of `slices.parquet` are sorted by `ORDER`. A row's number is the store position of
its slice, by which the rest of ichfast names it.

Shape letters: N slices in the store, S shards.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ichfast.errors import StoreError, first_line
from ichfast.labels import CLASSES
from ichfast.store.header import StoreHeader, tables_dir
from ichfast.store.levels import checksum_column
from ichfast.system.files import atomic_path, file_crc32c
from ichfast.system.spreadsheet import escape_formula, unescape_formula
from ichfast.system.untrusted import NOT_PARQUET, read_parquet

ORDER = ("patient", "study", "series", "position_mm", "instance_number", "slice_id")
"""The columns by which rows are sorted."""

BAGS = ("series", "study")
"""What a label can be of, other than of a slice."""

BAG_LABELS = {bag: tuple(f"{bag}_{name}" for name in CLASSES) for bag in BAGS}
"""For each kind of bag, the columns of its labels in `CLASSES` order. They are equal in
all rows of a bag."""

LABEL_COLUMNS = (*CLASSES, *(name for bag in BAGS for name in BAG_LABELS[bag]))
"""All columns of labels: int8, 0, 1 or null."""

ACQUISITION_COLUMNS: dict[str, pa.DataType] = {
    **dict.fromkeys(("manufacturer", "model", "kernel", "kernel_name"), pa.string()),
    **dict.fromkeys(("kvp", "exposure_mas"), pa.float64()),
    "contrast": pa.string(),
    "slice_spacing_mm": pa.float64(),
    "sex": pa.string(),
    "age_decade": pa.int8(),
    "image_type": pa.string(),
    "series_number": pa.int32(),
}
"""Columns of how a slice was acquired (`ichfast.dicom.acquisition`), null where that is
not known."""

ADDED_COLUMNS: dict[str, pa.DataType] = {
    **ACQUISITION_COLUMNS,
    **dict.fromkeys(LABEL_COLUMNS[len(CLASSES) :], pa.int8()),
}
"""Columns that stores of version 0.1 do not have, with their types. They may be null,
and all are where a store does not have the column."""

EXTRA_PREFIX = "extra_"
"""Beginning of the columns of extra classes, such as ``extra_fracture``: labels that
are stored and not trained on. A store has those of its label files."""

_UNKNOWN: dict[pa.DataType, Any] = {
    pa.string(): "",
    pa.float64(): math.nan,
    pa.int64(): -1,
    pa.int32(): -1,
    pa.bool_(): False,
}
"""For each type of column, the value of a slice whose file does not say."""

_NEW_STORE = "copy it back, or delete the store and run `ichfast prepare` again"


def table_schema(levels: Sequence[int]) -> pa.Schema:
    """Columns and types of `slices.parquet` in a store with these levels, in order.

    Empty strings, NaN and -1 (instance_number) are values missing in the DICOM file.
    `tilt_deg` is the rotation of the slice about the patient's left-right axis, 0 for
    an upright gantry. `shard` is an index into the header's shards. Labels are 0, 1 or
    null, each class by itself; those of the slice have the name of the class. Unknown
    values of `ADDED_COLUMNS` are null.
    """
    text, number = pa.string(), pa.float64()
    columns = [
        *(("slice_id", text), ("patient", text), ("study", text), ("series", text)),
        *(("position_mm", number), ("rows", pa.int32()), ("columns", pa.int32())),
        *(("row_spacing_mm", number), ("column_spacing_mm", number)),
        *(("thickness_mm", number), ("instance_number", pa.int64())),
        *(("tilt_deg", number), ("shard", pa.int32()), ("row_in_shard", pa.int32())),
        *((checksum_column(level), pa.int64()) for level in levels),
        *(("rescale_slope", number), ("rescale_intercept", number)),
        *(("bits_stored", pa.int32()), ("is_signed", pa.bool_())),
        *(("window_center", number), ("window_width", number)),
        *(("transfer_syntax_uid", text), ("quirks", text)),
        *((name, pa.int8()) for name in CLASSES),
        *ADDED_COLUMNS.items(),
    ]
    return pa.schema(columns)


def extra_columns(rows: pa.Table) -> list[str]:
    """The columns of extra classes, sorted."""
    return sorted({name for name in rows.column_names if name.startswith(EXTRA_PREFIX)})


def label_columns(rows: pa.Table) -> list[str]:
    """All columns of labels that a store's rows have."""
    return [*LABEL_COLUMNS, *extra_columns(rows)]


def _with_extra(schema: pa.Schema, rows: pa.Table) -> pa.Schema:
    fields = [pa.field(name, pa.int8()) for name in extra_columns(rows)]
    return pa.schema([*schema, *fields])


def write_rows(path: Path, parts: Iterable[pa.Table], levels: Sequence[int]) -> int:
    """Write `slices.parquet` to the store at `path`.

    Args:
        path: the store's folder.
        parts: consecutive parts of the sorted rows, at least one, with the columns of
            `table_schema` and the same extra classes. Each becomes a row group.
        levels: the store's.

    Returns:
        The file's checksum, CRC-32C.
    """
    parts = iter(parts)
    first = next(parts)
    schema = _with_extra(table_schema(levels), first)
    parts = chain([first], parts)
    del first
    with (
        atomic_path(path / "slices.parquet") as temporary,
        pq.ParquetWriter(temporary, schema) as writer,
    ):
        for part in parts:
            writer.write_table(part.select(schema.names).cast(schema))
            del part  # before the next one is made
            pa.default_memory_pool().release_unused()
    return file_crc32c(path / "slices.parquet")


def rows_of(table: pd.DataFrame, levels: Sequence[int]) -> pa.Table:
    """Rows for `write_rows`, from pandas.

    Args:
        table: one row per slice, sorted, with columns of `table_schema`. One that is
            missing gets the value for unknown, or null where that is allowed; only
            labels of slices must be there.
        levels: the store's.
    """
    schema = table_schema(levels)
    missing = {
        field.name: None if field.name in ADDED_COLUMNS else _UNKNOWN[field.type]
        for field in schema
        if field.name not in table and field.name not in CLASSES
    }
    return pa.Table.from_pandas(
        table.assign(**missing), schema=schema, preserve_index=False
    ).replace_schema_metadata(None)


def read_rows(path: Path, header: StoreHeader) -> pa.Table:
    """Read and check `slices.parquet`.

    Args:
        path: the store's folder.
        header: the store's.

    Returns:
        The columns of `table_schema` and of extra classes, one row per slice. Columns
        of the schema that the file does not have are null.

    Raises:
        StoreError: the file is missing, damaged, or does not fit the header.
    """
    file = tables_dir(path) / "slices.parquet"
    content = pa.py_buffer(checked_content(file, header.table_crc32c, _NEW_STORE))
    try:
        rows = read_parquet(content)
        rows.validate(full=True)
    except NOT_PARQUET as error:
        raise StoreError(
            f"{file} is not a parquet table ({first_line(error)}); {_NEW_STORE}"
        ) from error
    rows = with_added_columns(rows)
    schema = _with_extra(table_schema(header.levels), rows)
    if set(rows.schema) != set(schema) or len(rows.schema) != len(schema):
        raise StoreError(f"{file} has other columns than format 1; {_NEW_STORE}")
    rows = rows.select(schema.names)
    if problem := _contradiction(rows, header):
        raise StoreError(f"{file} {problem}; {_NEW_STORE}")
    return rows


def read_table(path: Path, header: StoreHeader) -> pd.DataFrame:
    """Read and check `slices.parquet` for pandas. Labels are ``Int8``, may be null.

    Args:
        path: the store's folder.
        header: the store's.

    Raises:
        StoreError: the file is missing, damaged, or does not fit the header.
    """
    table: pd.DataFrame = read_rows(path, header).to_pandas(
        types_mapper={pa.int8(): pd.Int8Dtype()}.get
    )
    return table


def with_added_columns(rows: pa.Table) -> pa.Table:
    """Add the columns of `ADDED_COLUMNS` that rows do not have, with nulls."""
    for name, kind in ADDED_COLUMNS.items():
        if name not in rows.column_names:
            rows = rows.append_column(name, pa.nulls(len(rows), kind))
    return rows


def _contradiction(rows: pa.Table, header: StoreHeader) -> str:
    """A value of the table that its store cannot have; empty if there is none."""
    if len(rows) != header.counts["slices"]:
        return f"has {len(rows):,} slices, expected {header.counts['slices']:,}"
    nullable = {*label_columns(rows), *ADDED_COLUMNS}
    for field in rows.schema:
        # An unknown number may be null as well as NaN.
        may_lack = field.name in nullable or pa.types.is_floating(field.type)
        if not may_lack and rows[field.name].null_count:
            return f"lacks a value of {field.name}"
    shapes_S3 = np.array([[s.count, s.rows, s.columns] for s in header.shards])
    shard_N, row_N = rows["shard"].to_numpy(), rows["row_in_shard"].to_numpy()
    if not ((shard_N >= 0) & (shard_N < len(shapes_S3))).all():
        return "points outside the store's shards"
    count_N, rows_N, columns_N = shapes_S3[shard_N].T
    if not ((row_N >= 0) & (row_N < count_N)).all():
        return "points outside the store's shards"
    shape_N2 = [rows[name].to_numpy() for name in ("rows", "columns")]
    if not (np.array_equal(shape_N2, [rows_N, columns_N])):
        return "gives slices other shapes than their shards have"
    for name in label_columns(rows):
        if pc.any(pc.greater(pc.cast(rows[name], pa.uint8(), safe=False), 1)).as_py():
            return f"has labels other than 0 and 1 ({name})"
    return ""


def write_rejected(path: Path, rejected: pd.DataFrame) -> int:
    """Write `rejected.csv` to the folder `path`.

    Args:
        path: the store's folder.
        rejected: columns path, reason (a fixed code), detail.

    Returns:
        The file's checksum, CRC-32C.
    """
    with atomic_path(path / "rejected.csv") as temporary:
        temporary.write_text(rejected_csv(rejected), encoding="utf-8")
    return file_crc32c(path / "rejected.csv")


REJECTED_HEADER = "path,reason,detail"
"""First line of `rejected.csv`."""


def rejected_csv(rejected: pd.DataFrame) -> str:
    """The text of `rejected.csv`, which a spreadsheet does not run.

    Args:
        rejected: columns path, reason (a fixed code), detail.
    """
    texts = rejected[REJECTED_HEADER.split(",")].map(escape_formula)
    text: str = texts.to_csv(index=False)
    return text


def read_rejected(path: Path, header: StoreHeader) -> pd.DataFrame:
    """Read and check `rejected.csv`.

    Args:
        path: the store's folder.
        header: the store's.

    Returns:
        Columns path, reason, detail, all text.

    Raises:
        StoreError: the file is missing or damaged.
    """
    advice = "copy it back; until then the store can be read, but not appended to"
    file = tables_dir(path) / "rejected.csv"
    content = checked_content(file, header.rejected_crc32c, advice)
    texts = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
    return texts.map(unescape_formula)


def checked_content(file: Path, crc32c: int, advice: str) -> bytes:
    """Read a file whose checksum is right. A damaged one is never held in memory.

    Args:
        file: a file of the store.
        crc32c: its checksum in the header.
        advice: end of the error's message; says what to do.

    Raises:
        StoreError: the file is missing or damaged.
    """
    try:
        if file_crc32c(file) == crc32c:
            return file.read_bytes()
    except OSError as error:
        raise StoreError(f"cannot read {file}: {error.strerror}; {advice}") from error
    raise StoreError(f"{file} does not match its checksum; {advice}")


def patients_N(table: pd.DataFrame) -> npt.NDArray[np.object_]:
    """The patient of each slice, shape (N,); the study where no patient is known.

    Args:
        table: a predictions table, or a store's.
    """
    patient = table["patient"].fillna("").to_numpy(dtype=object)
    study = studies_N(table)
    return np.where(patient == "", study, patient)


def studies_N(table: pd.DataFrame) -> npt.NDArray[np.object_]:
    """The study of each slice, shape (N,); empty where it is not known.

    Args:
        table: a predictions table, or a store's.
    """
    return table["study"].fillna("").to_numpy(dtype=object)


def units_N(table: pd.DataFrame, unit: str) -> npt.NDArray[np.object_]:
    """What a fold has all slices of, for each slice, shape (N,).

    Args:
        table: a store's.
        unit: ``patient`` or ``study``.
    """
    return studies_N(table) if unit == "study" else patients_N(table)
