"""The predictions table: one row a slice, written by `predict`, read by the rest.

Columns, in this order:

    slice_id, series, study, patient   as in the store; each slice is there once
    position_mm                        along the series' normal; may be missing
    fold                               the slice's fold, -1 where it has none
    run                                name of the run that predicted it; several
                                       names, joined by +, for an ensemble
    trained_on                         whether one of these runs trained on this
                                       patient; missing where that is not known
    any ... subdural                   six probabilities in `labels.CLASSES` order
    label_any ... label_subdural       six labels, 0 or 1, each missing where unknown
    series_any ... series_subdural     labels of the whole series, in all its rows; the
                                       six are there only if the store has some
    study_any ... study_subdural       the same of the whole study
    series_prob_any ... _subdural      probabilities of the whole series by a head that
                                       reads it, in all its rows; the six are there only
                                       if such a head predicted every row
    std_any ... std_subdural           standard deviation of the runs' probabilities of
                                       the slice; missing where fewer than two predicted
                                       it; the six are there only for ensembles
    entropy_any ... entropy_subdural   binary entropy of the six probabilities, in bits;
                                       there with std

The suffix of the file decides its format: ``.parquet``, ``.csv`` or ``.npz`` (an array
for each column, strings as unicode, no pickles; a missing value is NaN, or -1 in
trained_on). In a csv a text that a spreadsheet would run as a formula has a ``'`` in
front (`ichfast.system.spreadsheet`).

1. A file is written with its SHA-256 beside it, and read only if that is right.
2. A file without one may come from elsewhere. It is read with a warning.
3. In either case the types and values of all columns are checked. Columns with other
   names are not read.

Shape letters: N slices, K classes.
"""

from __future__ import annotations

import csv
import io
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from ichfast.errors import PredictionError, first_line
from ichfast.labels import CLASSES
from ichfast.store.tables import BAG_LABELS
from ichfast.system.checksums import (
    ChecksumError,
    output_with_checksum,
    read_with_checksum,
)
from ichfast.system.spreadsheet import escape_formula, unescape_formula
from ichfast.system.untrusted import is_text, max_unpacked_bytes, read_parquet

TEXT_COLUMNS = ("slice_id", "series", "study", "patient", "run")
KEY_COLUMNS = (
    *("slice_id", "series", "study", "patient", "position_mm", "fold"),
    *("run", "trained_on"),
)
LABEL_COLUMNS = tuple(f"label_{name}" for name in CLASSES)
COLUMNS = (*KEY_COLUMNS, *CLASSES, *LABEL_COLUMNS)
BAG_COLUMNS = (*BAG_LABELS["series"], *BAG_LABELS["study"])
SERIES_PROB_COLUMNS = tuple(f"series_prob_{name}" for name in CLASSES)
STD_COLUMNS = tuple(f"std_{name}" for name in CLASSES)
ENTROPY_COLUMNS = tuple(f"entropy_{name}" for name in CLASSES)

OPTIONAL_GROUPS = (
    *(BAG_LABELS["series"], BAG_LABELS["study"]),
    *(SERIES_PROB_COLUMNS, STD_COLUMNS, ENTROPY_COLUMNS),
)
"""Columns that a table may have after `COLUMNS`, in this order: all six of a group or
none."""

ALL_COLUMNS = (*COLUMNS, *(name for names in OPTIONAL_GROUPS for name in names))

COUNT_COLUMN = "num_slices"
"""A column of tables of series or studies (`ichfast.evaluation.study_table`)."""

SUFFIXES = (".parquet", ".csv", ".npz")

MAX_LINE_BYTES = 2**16
"""Limit for each of the first two lines of a csv, which decide its columns."""

MAX_FOLD = 127
"""Limit for the number of a fold, which a store's folds keep as int8."""

MAX_TEXT_LENGTH = 4096
"""Limit for an id, or for the names of the runs of an ensemble, in characters."""


def write_predictions(path: Path, table: pd.DataFrame) -> None:
    """Write a predictions table and its checksum, atomically.

    Args:
        path: ends in one of `SUFFIXES`. Replaced if it exists.
        table: has the columns of this module's docstring, or those of
            `ichfast.evaluation.study_table`.

    Raises:
        PredictionError: another suffix, a folder that cannot be written, or a text
            that Python cannot write to a csv (NUL, before Python 3.11).
    """
    check_destination(path)
    # Not to the file: arrow has words of its own for a full disk.
    try:
        content = _FORMATS[path.suffix](table)
    except csv.Error as error:
        raise PredictionError(
            f"cannot write {path}: {error}; a text holds a character that csv cannot: "
            "name a .parquet file"
        ) from error
    with output_with_checksum(path, PredictionError) as temporary:
        temporary.write_bytes(content)


def read_predictions(path: Path) -> pd.DataFrame:
    """Read and check a predictions table.

    Returns:
        The columns of this module's docstring: texts (NaN where missing), fold int64,
        trained_on boolean, the others float64. Those of `OPTIONAL_GROUPS` are there
        only if the file has them.

    Raises:
        PredictionError: no such file, a wrong checksum, not a table, a table of series
            or studies, or columns that are missing or do not hold what this module's
            docstring says.
    """
    _check_suffix(path)
    if not path.is_file():
        raise PredictionError(
            f"no predictions at {path}; make them with `ichfast predict RUN {path}`"
        )
    content = _checked_content(path)
    try:
        rows = _READERS[path.suffix](content)
        rows.validate(full=True)
    except Exception as error:  # numpy and pyarrow raise nearly anything here
        reason = first_line(error)
        raise PredictionError(f"{path} is damaged or not a table: {reason}") from error
    if "slice_id" not in rows.column_names and COUNT_COLUMN in rows.column_names:
        raise PredictionError(
            f"{path} has one row a series or study, expected one row a slice; predict "
            "again without --level (`ichfast evaluate` has a --level of its own)"
        )
    try:
        table = _typed(rows, from_csv=path.suffix == ".csv")
        _check_values(table)
    except ValueError as error:
        raise PredictionError(
            f"{path} {error}; write it with `ichfast predict`"
        ) from error
    return table.astype({"fold": np.int64, "trained_on": "boolean"})


def _checked_content(path: Path) -> bytes:
    try:
        return read_with_checksum(path)
    except ChecksumError as error:
        raise PredictionError(f"{path}: {error}") from error
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or "it is too large"
        raise PredictionError(f"cannot read {path}: {reason}") from error


def probs_NK(table: pd.DataFrame) -> npt.NDArray[np.float64]:
    """The six probabilities, shape (N, 6), float64."""
    probs: npt.NDArray[np.float64] = table[list(CLASSES)].to_numpy(np.float64)
    return probs


def labels_NK(table: pd.DataFrame) -> npt.NDArray[np.float64]:
    """The six labels, shape (N, 6), float64, NaN where one is missing."""
    return _with_missing(table, LABEL_COLUMNS)


def bag_labels_NK(table: pd.DataFrame, bag: str) -> npt.NDArray[np.float64] | None:
    """The labels of the series or study of each slice, shape (N, 6), float64.

    Args:
        table: a predictions table.
        bag: ``series`` or ``study``.

    Returns:
        0, 1 or NaN; None if the table has none.
    """
    names = BAG_LABELS[bag]
    return _with_missing(table, names) if names[0] in table else None


def series_probs_NK(table: pd.DataFrame) -> npt.NDArray[np.float64] | None:
    """The probabilities of the whole series of each slice, shape (N, 6), float64.

    None if the table has none, as no head read the series.
    """
    if SERIES_PROB_COLUMNS[0] not in table:
        return None
    probs: npt.NDArray[np.float64] = table[list(SERIES_PROB_COLUMNS)].to_numpy(
        np.float64
    )
    return probs


def std_NK(table: pd.DataFrame) -> npt.NDArray[np.float64] | None:
    """The standard deviations of the runs' probabilities, shape (N, 6), float64.

    NaN where fewer than two runs predicted a slice; None if the table has none.
    """
    return _with_missing(table, STD_COLUMNS) if STD_COLUMNS[0] in table else None


def entropy_NK(table: pd.DataFrame) -> npt.NDArray[np.float64] | None:
    """The entropies of the probabilities, in bits, shape (N, 6), float64.

    NaN where one is missing; None if the table has none.
    """
    names = ENTROPY_COLUMNS
    return _with_missing(table, names) if names[0] in table else None


def _with_missing(table: pd.DataFrame, names: Sequence[str]) -> npt.NDArray[np.float64]:
    columns = table[list(names)]
    values: npt.NDArray[np.float64] = columns.to_numpy(np.float64, na_value=np.nan)
    return values


def check_destination(path: Path) -> None:
    """Refuse a path that predictions cannot be written to, and make its folder.

    Call it before the work begins, which may take hours.

    Raises:
        PredictionError: another suffix, or a folder that cannot be written.
    """
    _check_suffix(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PredictionError(
            f"cannot write {path}: {error.strerror}; name another file"
        ) from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        reason = "it is a folder" if path.is_dir() else "its folder is read-only"
        raise PredictionError(f"cannot write {path}: {reason}; name another file")


def _check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise PredictionError(
            f"predictions are {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} files, "
            f"got {path.name!r}"
        )


def _parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _csv(table: pd.DataFrame) -> bytes:
    # Python quotes a carriage return, which ends a row for readers, from 3.13 on.
    has_return = any(
        "\r" in text
        for name in table.columns.intersection(TEXT_COLUMNS)
        for text in table[name].dropna()
    )
    text = _with_texts(table, escape_formula).to_csv(
        index=False,
        float_format="%.9g",
        quoting=csv.QUOTE_ALL if has_return else csv.QUOTE_MINIMAL,
    )
    return text.encode()


def _npz(table: pd.DataFrame) -> bytes:
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for name in table.columns:
        column = table[name]
        if name in TEXT_COLUMNS:
            arrays[name] = column.fillna("").to_numpy(dtype=str)
        elif name == "trained_on":
            arrays[name] = column.astype("Int8").fillna(-1).to_numpy(np.int8)
        elif name in (*LABEL_COLUMNS, *BAG_COLUMNS):
            arrays[name] = column.to_numpy(np.float32, na_value=np.nan)
        else:
            arrays[name] = column.to_numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


_FORMATS: dict[str, Callable[[pd.DataFrame], bytes]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".npz": _npz,
}
"""For each suffix a function that makes the content of a file."""


def _with_texts(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """The table with its texts changed."""
    texts = table.columns.intersection(TEXT_COLUMNS)
    changed = {name: table[name].map(change, na_action="ignore") for name in texts}
    return table.assign(**changed)


def _read_parquet(content: bytes) -> pa.Table:
    return read_parquet(pa.py_buffer(content), (*ALL_COLUMNS, COUNT_COLUMN))


def _read_csv(content: bytes) -> pa.Table:
    """Read the columns of a csv as texts, null where empty."""
    _check_lines(content)
    wrong: list[pa.csv.InvalidRow] = []

    def skip(row: pa.csv.InvalidRow) -> str:
        wrong.append(row)
        return "skip"

    rows = pa.csv.read_csv(
        pa.BufferReader(content),
        pa.csv.ReadOptions(use_threads=False),  # so that rows are numbered
        pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
        pa.csv.ConvertOptions(
            column_types=dict.fromkeys(ALL_COLUMNS, pa.string()),
            strings_can_be_null=True,
            null_values=[""],
        ),
    )
    if wrong:
        row = wrong[0]
        raise ValueError(
            f"row {row.number} has {row.actual_columns} values, expected "
            f"{row.expected_columns}"
        )
    return rows


def _check_lines(content: bytes) -> None:
    """Refuse a csv with endless columns, each of which takes a KB or more."""
    file = io.BytesIO(content)
    for _ in range(2):
        if len(file.readline(MAX_LINE_BYTES)) == MAX_LINE_BYTES:
            raise ValueError(f"a line has {MAX_LINE_BYTES:,} bytes or more")


def _read_npz(content: bytes) -> pa.Table:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        limit = max_unpacked_bytes(len(content))
        if sum(member.file_size for member in archive.infolist()) > limit:
            raise ValueError(f"it would become more than {limit:,} bytes")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        names = [name for name in arrays.files if name in (*ALL_COLUMNS, COUNT_COLUMN)]
        return pa.table([_npz_column(name, arrays[name]) for name in names], names)


def _npz_column(name: str, array_N: npt.NDArray[np.generic] | bytes) -> pa.Array:
    if isinstance(array_N, bytes):
        raise ValueError(f"{name} is not an array")
    # Arrow takes neither swapped bytes nor a NUL in a text.
    native = object if array_N.dtype.kind == "U" else array_N.dtype.newbyteorder("=")
    native_N = array_N.astype(native)
    return pa.array(native_N, mask=native_N == -1 if name == "trained_on" else None)


_READERS: dict[str, Callable[[bytes], pa.Table]] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".npz": _read_npz,
}
"""For each suffix a function that reads the columns, of any type."""


def _typed(rows: pa.Table, *, from_csv: bool) -> pd.DataFrame:
    """Convert the columns to str and float64.

    Args:
        rows: any table.
        from_csv: all values are texts, and formulas are escaped.

    Raises:
        ValueError: a column is missing, is there twice, or holds another type.
    """
    names = rows.column_names
    wanted = [*COLUMNS, *_optional_columns_of(names)]
    if missing := [name for name in wanted if name not in names]:
        raise ValueError(f"lacks the columns {', '.join(missing)}")
    if repeated := [name for name in wanted if names.count(name) > 1]:
        raise ValueError(f"has the columns {', '.join(repeated)} more than once")
    columns = {
        name: _texts(rows[name], name)
        if name in TEXT_COLUMNS
        else _numbers(rows[name], name, from_csv=from_csv)
        for name in wanted
    }
    table: pd.DataFrame = pa.table(columns).to_pandas()
    return _with_texts(table, unescape_formula) if from_csv else table


def _optional_columns_of(names: Sequence[str]) -> list[str]:
    """The columns of each optional group of which a table has some."""
    return [
        column
        for columns in OPTIONAL_GROUPS
        if any(name in names for name in columns)
        for column in columns
    ]


def _texts(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    if not (is_text(column.type) or pa.types.is_null(column.type)):
        raise ValueError(f"has {column.type} in the column {name}, expected texts")
    return column.cast(pa.string())


def _numbers(column: pa.ChunkedArray, name: str, *, from_csv: bool) -> pa.ChunkedArray:
    kind, is_truth = column.type, name == "trained_on"
    expected = "true and false" if is_truth else "numbers"
    is_right = from_csv or pa.types.is_null(kind) or (is_truth and kind == pa.bool_())
    if not (is_right or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise ValueError(f"has {kind} in the column {name}, expected {expected}")
    try:
        values = column.cast(pa.bool_()) if from_csv and is_truth else column
        return values.cast(pa.float64())
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"has values other than {expected} in the column {name}"
        ) from error


Numbers = npt.NDArray[np.float64]


def _is_flag(values_N: Numbers) -> npt.NDArray[np.bool_]:
    return np.isnan(values_N) | (values_N == 0) | (values_N == 1)


_VALUES: tuple[
    tuple[tuple[str, ...], Callable[[Numbers], npt.NDArray[np.bool_]], str], ...
] = (
    (("position_mm",), lambda values_N: ~np.isinf(values_N), "finite numbers"),
    (
        ("fold",),
        lambda values_N: np.isin(values_N, range(-1, MAX_FOLD + 1)),
        f"whole numbers from -1 to {MAX_FOLD}",
    ),
    (("trained_on",), _is_flag, "true and false"),
    (
        (*CLASSES, *SERIES_PROB_COLUMNS),
        lambda values_N: (values_N >= 0) & (values_N <= 1),
        "probabilities, in [0, 1]",
    ),
    (
        (*STD_COLUMNS, *ENTROPY_COLUMNS),
        lambda values_N: np.isnan(values_N) | ((values_N >= 0) & (values_N <= 1)),
        "numbers in [0, 1]",
    ),
    ((*LABEL_COLUMNS, *BAG_COLUMNS), _is_flag, "0 and 1"),
)
"""Columns of numbers, what is right in them, and the name of that."""


def _check_values(table: pd.DataFrame) -> None:
    """Check the values of all columns.

    Raises:
        ValueError: some are wrong; the message counts them and shows the first.
    """
    if table.empty:
        raise ValueError("holds no slices")
    for name in TEXT_COLUMNS:
        num_long = int((table[name].str.len() > MAX_TEXT_LENGTH).sum())
        if num_long:
            raise ValueError(
                f"has {num_long:,} texts in the column {name} that are longer than "
                f"{MAX_TEXT_LENGTH:,} characters"
            )
    slice_ids = table["slice_id"]
    num_unnamed = int((slice_ids.isna() | (slice_ids == "")).sum())
    if num_unnamed:
        raise ValueError(f"has {num_unnamed:,} rows without a slice_id")
    repeated = slice_ids[slice_ids.duplicated()]
    if len(repeated):
        raise ValueError(
            f"has {len(repeated):,} rows that repeat a slice, such as "
            f"{repeated.iloc[0]!r:.80}; expected one row a slice"
        )
    for names, is_right, expected in _VALUES:
        for name in table.columns.intersection(names, sort=False):
            values_N = table[name].to_numpy(np.float64)
            wrong = values_N[~is_right(values_N)]
            if wrong.size:
                raise ValueError(
                    f"has {wrong.size:,} values in the column {name} that are not "
                    f"{expected}, such as {wrong[0]:g}"
                )
