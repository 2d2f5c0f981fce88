"""Tables of text are read in bounded memory, and none of their rows is lost."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pandas as pd
import pyarrow as pa
import pytest

from ichfast.system.text_table import (
    MAX_COLUMNS,
    MAX_HEADER_BYTES,
    NOT_A_TABLE,
    _Csv,
    open_text_table,
)


class _WatchedStream(io.BytesIO):
    """Records its calls after the first line was read."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.calls: list[str] = []

    def readline(self, size: int | None = -1, /) -> bytes:
        self.calls.clear()
        return super().readline(size)

    def read(self, size: int | None = -1, /) -> bytes:
        self.calls.append("read")
        return super().read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self.calls.append("seek")
        return super().seek(offset, whence)


def test_the_header_is_read_without_taking_rows() -> None:
    """A regression: Arrow reads ahead, and its header reader sometimes took rows."""
    row = "ID_0123456789ab_any,0\n"
    count = 5 * 2**20 // len(row)
    stream = _WatchedStream(("ID,Label\n" + row * count).encode())
    table = _Csv(stream)
    rows = table.read(["ID", "Label"])
    assert len(rows) == count
    assert rows.column_names == ["ID", "Label"]
    assert "read" not in stream.calls[: stream.calls.index("seek")]


def test_a_first_line_without_end_is_not_read_to_its_end() -> None:
    stream = io.BytesIO(b"x" * (MAX_HEADER_BYTES + 100))
    with pytest.raises(pa.ArrowInvalid):
        _Csv(stream)
    assert stream.tell() == MAX_HEADER_BYTES


def test_a_csv_of_very_many_columns_is_refused_before_it_takes_memory() -> None:
    names = [f"c{k}" for k in range(MAX_COLUMNS)]
    assert len(_Csv(io.BytesIO((",".join(names) + "\n").encode())).names) == MAX_COLUMNS
    names.append("one more")
    with pytest.raises(ValueError, match="more than 10,000 columns"):
        _Csv(io.BytesIO((";".join(names) + "\n").encode()))


def test_only_the_named_columns_are_read_and_in_that_order(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"a;b;c\n1;\xff;3\n4;5;\n")
    pd.DataFrame({"a": [1, 4], "b": [[1], []], "c": [3.0, None]}).to_parquet(
        tmp_path / "a.parquet"
    )
    for name, three in (("a.csv", "3"), ("a.parquet", "3")):
        with open_text_table(tmp_path / name) as table:
            assert table.names == ("a", "b", "c")
            assert table.read(["c", "a"]).to_pylist() == [
                {"c": three, "a": "1"},
                {"c": "", "a": "4"},
            ]


def test_a_file_that_would_unpack_to_far_more_is_refused(tmp_path: Path) -> None:
    content = b"ID,Label\n" + b"ID_1_any,0\n" * 300_000
    (tmp_path / "labels.csv.gz").write_bytes(gzip.compress(content))
    with ZipFile(tmp_path / "labels.csv.zip", "w", ZIP_DEFLATED) as archive:
        archive.writestr("labels.csv", content)
    for name in ("labels.csv.gz", "labels.csv.zip"):
        with (
            pytest.raises(ValueError, match="it would unpack to more than"),
            open_text_table(tmp_path / name),
        ):
            pass


def test_a_parquet_file_that_would_become_far_more_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"ID": ["x" * 10**6] * 1000, "Label": 0}).to_parquet(
        tmp_path / "labels.parquet"
    )
    with (
        open_text_table(tmp_path / "labels.parquet") as table,
        pytest.raises(NOT_A_TABLE, match="would become more than"),
    ):
        table.read(["ID"])


def test_an_encrypted_or_damaged_zip_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv.zip"
    with ZipFile(path, "w") as archive:
        archive.writestr("labels.csv", "ID,Label\n")
    content = bytearray(path.read_bytes())
    for start, flag in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(start) + flag] |= 1
    path.write_bytes(content)
    with pytest.raises(NOT_A_TABLE, match="encrypted"), open_text_table(path):
        pass
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(NOT_A_TABLE), open_text_table(path):
            pass
