"""Columns of text out of csv and parquet files, in memory proportional to the file.

1. ``.csv``, the same as ``.gz``, ``.bz2``, ``.xz`` or as the one csv of a ``.zip``,
   and ``.parquet``. Any other suffix is read as csv.
2. A csv is UTF-8, with or without a byte order mark, or UTF-16 with one. The separator
   is the comma, semicolon or tab that is most often in the first line.
3. Only the columns that are asked for are read, as text; a missing value is an empty
   text. A number or a truth value of a parquet file becomes its usual text.
4. What would unpack out of proportion to the file is an error.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from ichfast.system.untrusted import NOT_PARQUET, max_unpacked_bytes, read_parquet

MAX_HEADER_BYTES = 2**20
"""Upper limit of a csv's first line, bytes."""

MAX_COLUMNS = 10_000
"""Upper limit of a csv's columns. Arrow takes 8 KiB for each, more than its name."""

SEPARATORS = (b",", b";", b"\t")

NOT_A_TABLE = (
    *NOT_PARQUET,
    *(EOFError, RuntimeError, struct.error),
    *(lzma.LZMAError, zlib.error, zipfile.BadZipFile),
)
"""Errors of `open_text_table` and of reading, for a file that is no valid table."""


MAX_COLUMNS_SHOWN, MAX_NAME_SHOWN = 12, 40
"""Upper limits of the columns that a message names, and of characters of a name."""


class TextTable(Protocol):
    """A file whose columns can be read."""

    names: tuple[str, ...]
    """Names of the columns, as written and in the file's order."""

    readable: tuple[str, ...]
    """Those that are there once and have a single value in each row."""

    def read(self, names: Sequence[str], raw: Sequence[str] = ()) -> pa.Table:
        """Read columns as texts without nulls.

        Args:
            names: columns that are there once; an error if one is no text.
            raw: more of `readable`, which are given as bytes.
        """


def column_key(name: str) -> str:
    """The name of a column without case, spaces and punctuation."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def shown_names(names: Sequence[str]) -> str:
    """Names of columns as one line of a message; empty without names."""
    texts = (" ".join(name.split())[:MAX_NAME_SHOWN] for name in names)
    shown = [text or "(without a name)" for text in islice(texts, MAX_COLUMNS_SHOWN)]
    if len(names) > MAX_COLUMNS_SHOWN:
        shown.append(f"and {len(names) - MAX_COLUMNS_SHOWN:,} more")
    return ", ".join(shown)


@contextmanager
def open_text_table(path: Path) -> Iterator[TextTable]:
    """Open a csv or parquet file.

    Raises:
        NOT_A_TABLE: the file cannot be read, or unpacks out of proportion.
    """
    with _content(path) as stream:
        if path.suffix.lower() == ".parquet":
            yield _Parquet(stream)
        else:
            yield _Csv(stream)


@contextmanager
def _content(path: Path) -> Iterator[IO[bytes]]:
    """Open a file; what is compressed is unpacked in memory, up to the limit."""
    openers: dict[str, Any] = {
        ".gz": gzip.open,
        ".xz": lzma.open,
        ".bz2": bz2.open,
        ".zip": _open_zip,
    }
    opener = openers.get(path.suffix.lower(), Path.open)
    with opener(path, "rb") as stream:
        if opener is Path.open:
            yield stream
            return
        max_bytes = max_unpacked_bytes(path.stat().st_size)
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it would unpack to more than {max_bytes:,} bytes")
    yield io.BytesIO(content)


@contextmanager
def _open_zip(path: Path, _mode: str) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(path) as archive:
        members = [
            member
            for member in archive.infolist()
            if not member.is_dir() and not member.filename.startswith("__MACOSX/")
        ]
        if len(members) != 1:
            raise ValueError(f"it holds {len(members):,} files, expected one csv")
        with archive.open(members[0]) as stream:
            yield stream


class _Csv:
    """A csv. The header is parsed alone.

    Arrow reads ahead in a thread, so a first reader of the whole stream could take rows
    from the second.
    """

    names: tuple[str, ...]

    def __init__(self, stream: IO[bytes]) -> None:
        if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            stream.seek(0)
            stream = io.BytesIO(stream.read().decode("utf-16").encode())
        stream.seek(0)
        header = stream.readline(MAX_HEADER_BYTES)
        separator = max(SEPARATORS, key=header.count)
        if header.count(separator) >= MAX_COLUMNS:
            raise ValueError(f"its first line has more than {MAX_COLUMNS:,} columns")
        self._stream = stream
        self._parsing = pa_csv.ParseOptions(delimiter=separator.decode())
        found = pa_csv.open_csv(io.BytesIO(header), parse_options=self._parsing)
        self.names = tuple(found.schema.names)
        self.readable = _once(self.names)

    def read(self, names: Sequence[str], raw: Sequence[str] = ()) -> pa.Table:
        self._stream.seek(0)
        as_text = pa_csv.ConvertOptions(
            column_types=dict.fromkeys(raw, pa.binary())
            | dict.fromkeys(names, pa.string()),
            include_columns=[*names, *raw],
            strings_can_be_null=False,
        )
        return pa_csv.read_csv(
            self._stream, parse_options=self._parsing, convert_options=as_text
        )


class _Parquet:
    names: tuple[str, ...]
    readable: tuple[str, ...]

    def __init__(self, stream: IO[bytes]) -> None:
        self._content = pa.py_buffer(stream.read())
        schema = pq.read_schema(pa.BufferReader(self._content))
        self.names = tuple(schema.names)
        self.readable = tuple(
            name for name in _once(self.names) if _is_single(schema.field(name).type)
        )

    def read(self, names: Sequence[str], raw: Sequence[str] = ()) -> pa.Table:
        wanted = [*names, *raw]
        rows = read_parquet(self._content, wanted).select(wanted)
        texts = [pc.fill_null(column.cast(pa.string()), "") for column in rows.columns]
        kinds = [pa.string()] * len(names) + [pa.binary()] * len(raw)
        return pa.table(texts, names=wanted).cast(
            pa.schema(zip(wanted, kinds, strict=True))
        )


def _once(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name, count in Counter(names).items() if count == 1)


def _is_single(kind: pa.DataType) -> bool:
    """Whether the values of a column are texts, numbers or truth values."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_null(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
    )
