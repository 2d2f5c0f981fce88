"""Predictions tables that ichfast did not write: 299 wrong ones, and some right ones.

A table is made by changing a right one, in pandas for all three forms of file, or in
the file for one of them.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ichfast.evaluation.predictions import COLUMNS, LABEL_COLUMNS, SUFFIXES
from ichfast.labels import CLASSES

TEXTS = ("slice_id", "series", "study", "patient", "run")

Write = Callable[[Path], None]
Change = Callable[[pd.DataFrame], pd.DataFrame]


def right_table() -> pd.DataFrame:
    """Five slices of two patients; the last one without labels."""
    rows = [(f"ID_{n}", f"R{n}", "S", f"P{n // 3}", 2.5 * n, 0) for n in range(5)]
    table = pd.DataFrame(rows, columns=list(COLUMNS[:6]))
    table["run"] = "first"
    table["trained_on"] = False
    table[list(CLASSES)] = np.random.default_rng(0).random((5, 6)).astype(np.float32)
    table[list(LABEL_COLUMNS)] = np.eye(5, 6)
    table.loc[4, list(LABEL_COLUMNS)] = np.nan
    return table


def write_as_is(path: Path, table: pd.DataFrame) -> None:
    """Write a table of any columns and types, without a checksum."""
    if path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    elif path.suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        write_arrays(path, **_arrays(table))


def _arrays(table: pd.DataFrame) -> dict[str, Any]:
    columns = {str(name): table[name].to_numpy() for name in table}
    return {
        name: values.astype(str) if values.dtype == object else values
        for name, values in columns.items()
    }


def write_arrays(path: Path, **arrays: Any) -> None:
    """Write an npz, also of arrays with pickles."""
    with path.open("wb") as file:
        np.savez(file, allow_pickle=True, **arrays)


def arrays(**changed: Any) -> dict[str, Any]:
    """The arrays of the right table, some of them changed."""
    return _arrays(right_table()) | changed


def cell(name: str, value: Any) -> Change:
    """One value of a column is another one."""

    def change(table: pd.DataFrame) -> pd.DataFrame:
        values = table[name].astype(object).tolist()
        values[1] = value
        return table.assign(**{name: values})

    return change


def column(name: str, values: Any) -> Change:
    """All values of a column are others."""
    return lambda table: table.assign(**{name: values})


def without(name: str) -> Change:
    """A column is missing."""
    return lambda table: table.drop(columns=name)


def _changes() -> Iterator[tuple[str, Change]]:
    """What is wrong in each of the three forms."""
    for name in COLUMNS:
        yield f"no {name}", without(name)
        if name not in TEXTS:
            yield f"words in {name}", column(name, list("abcde"))
            yield f"infinity in {name}", column(name, [np.inf, *[0.0] * 4])
        if name not in (*TEXTS, *LABEL_COLUMNS, "trained_on"):
            yield f"dates in {name}", column(name, pd.date_range("2020", periods=5))
    for number in (-0.01, 1.01, -4.2, np.nan):
        yield f"any {number}", cell("any", number)
        yield f"subdural {number}", cell("subdural", number)
    for number in (-1.0, 0.5, 2.0):
        yield f"label {number}", cell("label_any", number)
        yield f"trained_on {number}", column("trained_on", [number - 1e-3, *[0.0] * 4])
    for number in (-2.0, 0.5, np.nan, 1e300):
        yield f"fold {number}", cell("fold", number)
    yield "no rows", lambda table: table.iloc[:0]
    yield "no columns", lambda table: table[[]]
    yield "one slice twice", cell("slice_id", "ID_0")
    yield "one slice only", column("slice_id", "ID_0")
    yield "an empty slice id", cell("slice_id", "")
    yield "a huge slice id", cell("slice_id", "x" * 5000)
    yield "a huge run", cell("run", "y" * 40_000)


def _parquet(**columns: Any) -> Write:
    """A parquet file with some columns of other arrow types."""

    def write(path: Path) -> None:
        rows = pa.Table.from_pandas(right_table(), preserve_index=False)
        for name, values in columns.items():
            rows = rows.set_column(rows.column_names.index(name), name, values)
        pq.write_table(rows, path)

    return write


def _parquet_twice(path: Path) -> None:
    rows = pa.Table.from_pandas(right_table(), preserve_index=False)
    pq.write_table(rows.append_column("any", pa.array([0.5] * 5)), path)


def _text(change: Callable[[str], str], encoding: str = "utf-8") -> Write:
    """A csv whose text is changed."""

    def write(path: Path) -> None:
        content = change(right_table().to_csv(index=False)).encode(encoding)
        path.write_bytes(content)

    return write


def _row(line: int, change: Callable[[str], str]) -> Write:
    def on_line(text: str) -> str:
        lines = text.splitlines()
        lines[line] = change(lines[line])
        return "\n".join(lines) + "\n"

    return _text(on_line)


def _npz(**changed: Any) -> Write:
    return lambda path: write_arrays(path, **arrays(**changed))


def _npz_member(name: str, content: bytes) -> Write:
    """An npz with one member more."""

    def write(path: Path) -> None:
        write_arrays(path, **arrays())
        with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that are there twice
            archive.writestr(name, content)

    return write


def _content(content: bytes) -> Write:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def zipped(content: bytes) -> bytes:
    """A zip with one member."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("member", content)
    return buffer.getvalue()


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _lists() -> pa.Array:
    return pa.array([[0.5]] * 5)


def _not_utf8() -> pa.Array:
    buffers = pa.array([b"\xff"] * 5).buffers()
    return pa.Array.from_buffers(pa.string(), 5, buffers)


_FILES: dict[str, dict[str, Write]] = {
    ".parquet": {
        "lists": _parquet(any=_lists()),
        "lists of texts": _parquet(run=pa.array([["first"]] * 5)),
        "structs": _parquet(any=pa.array([{"value": 0.5}] * 5)),
        "bytes in a text": _parquet(run=pa.array([b"first"] * 5)),
        "bytes in a number": _parquet(any=pa.array([b"0.5"] * 5)),
        "bytes of one length": _parquet(run=pa.array([b"x"] * 5, pa.binary(1))),
        "texts that are not UTF-8": _parquet(run=_not_utf8()),
        "decimals": _parquet(any=pa.array([0.5] * 5).cast(pa.decimal128(5, 2))),
        "truths in a probability": _parquet(any=pa.array([True] * 5)),
        "truths in a label": _parquet(label_any=pa.array([True] * 5)),
        "numbers in a text": _parquet(slice_id=pa.array(range(5))),
        "times": _parquet(any=pa.array([1] * 5, pa.duration("s"))),
        "a probability that is missing": _parquet(any=pa.nulls(5)),
        "a large number": _parquet(fold=pa.array([2**60 + 1] * 5)),
        "a column twice": _parquet_twice,
        "another format": lambda path: write_arrays(path, **arrays()),
        "magic at both ends": _content(b"PAR1" + bytes(40) + b"PAR1"),
        "nothing": _content(b""),
    },
    ".csv": {
        "a value more in a row": _row(2, lambda line: line + ",1"),
        "a value more in the first row": _row(1, lambda line: line + ",1"),
        "a value less in a row": _row(3, lambda line: line.rpartition(",")[0]),
        "a quote that does not end": _row(2, lambda line: '"' + line),
        "a column twice": _text(lambda text: text.replace("series", "any", 1)),
        "a space in a number": _row(1, lambda line: line.replace(",0,", ", 0 ,")),
        "a decimal comma": _text(lambda text: text.replace(",", ";").replace(".", ",")),
        "tabs": _text(lambda text: text.replace(",", "\t")),
        "Latin-1": _text(lambda text: text.replace("ID_3", "IDä"), "latin-1"),
        "UTF-16": _text(str, "utf-16"),
        "a NUL in a number": _text(lambda text: text.replace("2.5", "2\0.5")),
        "its header only": _text(lambda text: text.splitlines()[0]),
        "another format": _content(_npy(np.zeros(5))),
        "nothing": _content(b""),
        "a line break only": _content(b"\n"),
    },
    ".npz": {
        "objects": _npz(run=np.array(["first"] * 5, object)),
        "bytes in a text": _npz(run=np.array([b"first"] * 5)),
        "bytes in a number": _npz(any=np.array([b"0.5"] * 5)),
        "complex numbers": _npz(any=np.full(5, 0.5 + 1j)),
        "truths in a probability": _npz(any=np.ones(5, bool)),
        "records": _npz(any=np.zeros(5, [("a", "f4")])),
        "two dimensions": _npz(any=np.zeros((5, 1))),
        "one number for all": _npz(any=np.array(0.5)),
        "one text for all": _npz(run=np.array("first")),
        "a short column": _npz(any=np.zeros(4)),
        "numbers in a text": _npz(slice_id=np.arange(5)),
        "a trained_on of -2": _npz(trained_on=np.full(5, -2, np.int8)),
        "a column twice": _npz_member("any.npy", _npy(np.zeros(5))),
        "a column without its suffix": _npz_member("any", b"0.5"),
        "a zip in it": _npz_member("any", zipped(b"0.5")),
        "one array": _content(_npy(np.zeros(5))),
        "another format": _content(b"slice_id,any\nID_0,0.5\n"),
        "nothing": _content(b""),
    },
}
"""What is wrong in files of one form."""


def wrong_files() -> dict[str, tuple[str, Write]]:
    """Every wrong file, by name: its suffix, and what writes it."""
    found: dict[str, tuple[str, Write]] = {}
    for suffix in SUFFIXES:
        for name, change in _changes():

            def write(path: Path, change: Change = change) -> None:
                write_as_is(path, change(right_table()))

            found[f"{suffix} with {name}"] = suffix, write
        for name, write_file in _FILES[suffix].items():
            found[f"{suffix} with {name}"] = suffix, write_file
    return found


def _parquet_with(**options: Any) -> Write:
    """A parquet file of the right table, written in another way."""
    return lambda path: pq.write_table(
        pa.Table.from_pandas(right_table(), preserve_index=False), path, **options
    )


def _swapped() -> dict[str, Any]:
    """The arrays with bytes in the other order."""
    return {
        name: array.astype(array.dtype.newbyteorder(">"))
        for name, array in arrays().items()
    }


def _in_pandas(change: Change) -> Write:
    return lambda path: write_as_is(path, change(right_table()))


def _reordered(table: pd.DataFrame) -> pd.DataFrame:
    return table[table.columns[::-1]].assign(note="mine", score=1.5)


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """The table with other types that hold the same values."""
    kinds: dict[str, Any] = {
        "run": "category",
        "slice_id": "large_string[pyarrow]",
        "fold": "int8",
        "trained_on": "uint8",
        "position_mm": "float32",
        "label_any": "Int8",
        **dict.fromkeys(CLASSES, "float32"),
    }
    return table.astype(kinds)


RIGHT: dict[str, tuple[str, Write]] = {
    **{f"other columns in a {s}": (s, _in_pandas(_reordered)) for s in SUFFIXES},
    "other types": (".parquet", _in_pandas(_typed)),
    "numbers as categories": (
        ".parquet",
        _parquet(fold=pa.array([0.0] * 5).dictionary_encode()),
    ),
    "zstd": (".parquet", _parquet_with(compression="zstd", version="1.0")),
    "two row groups": (".parquet", _parquet_with(row_group_size=3)),
    "no schema of arrow": (".parquet", _parquet_with(store_schema=False)),
    "a byte order mark": (".csv", _text(str, "utf-8-sig")),
    "line ends of Windows": (".csv", _text(lambda text: text.replace("\n", "\r\n"))),
    "quotes": (".csv", _text(lambda text: text.replace("first", '"first"'))),
    "small letters": (".csv", _text(lambda text: text.replace("False", "false"))),
    "0 for false": (".csv", _text(lambda text: text.replace("False", "0"))),
    "no line end": (".csv", _text(str.rstrip)),
    "big-endian numbers": (".npz", _npz(**_swapped())),
    "truths": (".npz", _npz(trained_on=np.zeros(5, bool))),
    "a member more": (".npz", _npz_member("note", b"mine")),
}
"""Files with the values of the right table: their suffixes, and what writes them."""
