"""The predictions table: one row a slice, written by `predict`, read by the rest.

Columns, in this order:

    slice_id, series, study, patient   as in the store
    position_mm                        along the series' normal
    fold                               the slice's fold, -1 where it has none
    run                                name of the run that predicted it; several
                                       names, joined by +, for an ensemble
    trained_on                         whether one of these runs trained on this
                                       patient; missing where that is not known
    any ... subdural                   six probabilities in `labels.CLASSES` order
    label_any ... label_subdural       six labels, 0 or 1; missing where unlabelled

The suffix of the file decides its format: ``.parquet``, ``.csv`` or ``.npz`` (an array
for each column, strings as unicode, no pickles; a missing value is NaN, or -1 in
trained_on). In a csv a text that a spreadsheet would run as a formula has a ``'`` in
front (`ichfast.system.spreadsheet`).

Shape letters: N slices, K classes.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from ichfast.errors import PredictionError, first_line
from ichfast.labels import CLASSES
from ichfast.system.files import output_path
from ichfast.system.spreadsheet import escape_formula, unescape_formula
from ichfast.system.untrusted import max_unpacked_bytes, read_parquet

TEXT_COLUMNS = ("slice_id", "series", "study", "patient", "run")
NUMBER_COLUMNS = ("position_mm", "fold")
KEY_COLUMNS = (
    *("slice_id", "series", "study", "patient", "position_mm", "fold"),
    *("run", "trained_on"),
)
LABEL_COLUMNS = tuple(f"label_{name}" for name in CLASSES)
COLUMNS = (*KEY_COLUMNS, *CLASSES, *LABEL_COLUMNS)
SUFFIXES = (".parquet", ".csv", ".npz")

MAX_LINE_BYTES = 2**16
"""Limit for each of the first two lines of a csv, which decide its columns."""


def write_predictions(path: Path, table: pd.DataFrame) -> None:
    """Write a predictions table, atomically.

    Args:
        path: ends in one of `SUFFIXES`. Replaced if it exists.
        table: has the columns of this module's docstring.

    Raises:
        PredictionError: another suffix, or a folder that cannot be written.
    """
    check_destination(path)
    with output_path(path, PredictionError) as temporary:
        if path.suffix == ".parquet":
            table.to_parquet(temporary, index=False)
        elif path.suffix == ".csv":
            _with_texts(table, escape_formula).to_csv(
                temporary, index=False, float_format="%.9g"
            )
        else:
            _write_npz(temporary, table)


def read_predictions(path: Path) -> pd.DataFrame:
    """Read a predictions table.

    Raises:
        PredictionError: no such file, not a table, or columns missing.
    """
    _check_suffix(path)
    if not path.is_file():
        raise PredictionError(
            f"no predictions at {path}; make them with `ichfast predict RUN {path}`"
        )
    try:
        table = _read(path)
    except Exception as error:  # numpy and pandas raise nearly anything here
        reason = first_line(error)
        raise PredictionError(f"{path} is damaged or not a table: {reason}") from error
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise PredictionError(
            f"{path} lacks the columns {', '.join(missing)}; "
            "write it with `ichfast predict`"
        )
    return _with_numbers(table[list(COLUMNS)].copy(), path)


def _with_numbers(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Convert the columns of numbers, and trained_on, or refuse the table."""
    try:
        table = table.astype({"trained_on": "boolean"})
    except (TypeError, ValueError) as error:
        raise PredictionError(
            f"{path}: the column trained_on holds values other than true and false; "
            "write it with `ichfast predict`"
        ) from error
    for name in (*NUMBER_COLUMNS, *CLASSES, *LABEL_COLUMNS):
        try:
            table[name] = pd.to_numeric(table[name])
        except (TypeError, ValueError) as error:
            raise PredictionError(
                f"{path}: the column {name} holds values other than numbers: "
                f"{first_line(error)}; write it with `ichfast predict`"
            ) from error
    return table


def probs_NK(table: pd.DataFrame) -> npt.NDArray[np.float64]:
    """The six probabilities, shape (N, 6), float64."""
    probs: npt.NDArray[np.float64] = table[list(CLASSES)].to_numpy(np.float64)
    return probs


def labels_NK(table: pd.DataFrame) -> npt.NDArray[np.float64]:
    """The six labels, shape (N, 6), float64, NaN where the slice has none."""
    columns = table[list(LABEL_COLUMNS)]
    labels: npt.NDArray[np.float64] = columns.to_numpy(np.float64, na_value=np.nan)
    return labels


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


def _write_npz(path: Path, table: pd.DataFrame) -> None:
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for name in table.columns:
        column = table[name]
        if name in TEXT_COLUMNS:
            arrays[name] = column.fillna("").to_numpy(dtype=str)
        elif name == "trained_on":
            arrays[name] = column.astype("Int8").fillna(-1).to_numpy(np.int8)
        elif name in LABEL_COLUMNS:
            arrays[name] = column.to_numpy(np.float32, na_value=np.nan)
        else:
            arrays[name] = column.to_numpy()
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _read(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        rows = read_parquet(pa.py_buffer(path.read_bytes()), COLUMNS)
        frame: pd.DataFrame = rows.to_pandas()
        return frame
    if path.suffix == ".csv":
        kinds = {**dict.fromkeys(TEXT_COLUMNS, "str"), "trained_on": "boolean"}
        _check_lines(path)
        table = pd.read_csv(
            path,
            dtype=kinds,
            keep_default_na=False,
            na_values=[""],
            index_col=False,
            usecols=lambda name: name in COLUMNS,
        )
        return _with_texts(table, unescape_formula)
    _check_unpacked(path)
    with np.load(path, allow_pickle=False) as arrays:
        table = pd.DataFrame(
            {name: arrays[name] for name in arrays.files if name in COLUMNS}
        )
    if "trained_on" in table:
        table["trained_on"] = table["trained_on"].astype("Int8").replace(-1, pd.NA)
    return table


def _with_texts(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """The table with its texts changed."""
    texts = table.columns.intersection(TEXT_COLUMNS)
    changed = {name: table[name].map(change, na_action="ignore") for name in texts}
    return table.assign(**changed)


def _check_lines(path: Path) -> None:
    """Refuse a csv with endless columns, each of which takes pandas a KB or more."""
    with path.open("rb") as file:
        for _ in range(2):
            if len(file.readline(MAX_LINE_BYTES)) == MAX_LINE_BYTES:
                raise ValueError(f"a line has {MAX_LINE_BYTES:,} bytes or more")


def _check_unpacked(path: Path) -> None:
    """Refuse an npz whose arrays are too large for the size of the file."""
    most = max_unpacked_bytes(path.stat().st_size)
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > most:
            raise ValueError(f"it would become more than {most:,} bytes")
