"""docs/store.md is complete: a reader that was written after it reads a store."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ichfast.store.levels import LEVELS, reduce_to_level
from ichfast.store.store import Store
from ichfast.store.tables import ADDED_COLUMNS, LABEL_COLUMNS, table_schema
from tests.docs.pages import DOCS, blocks

PAGE = DOCS / "store.md"


def section(title: str) -> str:
    """The text of the page below a heading."""
    return re.split(r"^##+ ", PAGE.read_text("utf-8").split(title, 1)[1], flags=re.M)[0]


def rows_of(text: str) -> dict[str, str]:
    """The names in the first column of a table, with the second column."""
    rows = re.findall(r"^\| (`.+?) \| (.+?) \|", text, re.MULTILINE)
    return {
        name: kind for names, kind in rows for name in re.findall(r"`(\w+)`", names)
    }


@pytest.fixture
def document(tiny_store_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tiny_store_path / "store.json").read_text())
    return found


def test_the_page_lists_the_fields_of_the_header_and_of_a_shard(
    document: dict[str, Any],
) -> None:
    assert rows_of(section("## `store.json`")).keys() == document.keys()
    assert rows_of(section("## A shard")).keys() == document["shards"][0].keys()


def test_the_checksum_of_the_header_is_that_of_the_page(
    tiny_store_path: Path, document: dict[str, Any]
) -> None:
    *names, last = document
    assert last == "crc32c"
    line = json.dumps({name: document[name] for name in names})
    assert "\n" not in line
    assert google_crc32c.value(line.encode("ascii")) == document["crc32c"]
    text = (tiny_store_path / "store.json").read_text("utf-8")
    assert text == json.dumps(document, indent=1) + "\n"
    fields = {"slices.parquet": "table_crc32c", "rejected.csv": "rejected_crc32c"}
    for name, field in fields.items():
        content = (tiny_store_path / name).read_bytes()
        assert google_crc32c.value(content) == document[field]


def test_the_checksum_of_the_header_needs_no_json_writer(
    tiny_store_path: Path, document: dict[str, Any]
) -> None:
    text = (tiny_store_path / "store.json").read_text("ascii")
    line = re.sub(r"^ +", "", text, flags=re.MULTILINE)
    line = line.replace(",\n", ", ").replace("\n", "")
    line = line.replace(f', "crc32c": {document["crc32c"]}', "")
    assert google_crc32c.value(line.encode("ascii")) == document["crc32c"]


@pytest.mark.parametrize("shape", [(63, 65), (638, 490), (1, 600)])
def test_a_slice_that_is_not_square_is_where_the_page_says(
    shape: tuple[int, int],
) -> None:
    shorter, longer = sorted(shape)
    n = max(1, round(shorter * 256 / longer))
    expected_HW = np.zeros((256, 256), np.uint16)
    expected_HW[(256 - n) // 2 :][:n] = 1
    if shape[1] == shorter:
        expected_HW = expected_HW.T
    assert np.array_equal(reduce_to_level(np.ones(shape, np.uint16), 256), expected_HW)


def test_the_digest_is_that_of_the_page(tiny_store: Store) -> None:
    plan = json.dumps(dict(tiny_store.header.plan), sort_keys=True)
    digest = hashlib.sha256(plan.encode("ascii")).hexdigest()
    assert digest[:16] == tiny_store.header.digest


def test_the_page_lists_the_columns_of_the_table_with_their_types() -> None:
    listed = rows_of(section("## `slices.parquet`"))
    names = {pa.float64(): "double", pa.bool_(): "bool"}
    ranges = {*LABEL_COLUMNS, *ADDED_COLUMNS}
    for field in table_schema(LEVELS):
        if field.name not in ranges:
            kind = names.get(field.type, str(field.type))
            assert kind in listed.pop(field.name), field.name
    ends = {"any", "subdural", "series_any", "series_subdural", "study_any"}
    assert listed.keys() == ends | {"study_subdural", "manufacturer", "series_number"}


def test_shards_and_checksums_are_as_the_page_says(
    tiny_store_path: Path, document: dict[str, Any]
) -> None:
    table = pq.read_table(tiny_store_path / "slices.parquet").to_pylist()
    for number, shard in enumerate(document["shards"]):
        for level in document["levels"]:
            is_source = level == 512
            rows, columns = shard["rows"], shard["columns"]
            if not is_source:
                rows = columns = level
            content = (tiny_store_path / f"level-{level}" / shard["name"]).read_bytes()
            literal = (
                "{'descr': '<u2', 'fortran_order': False, "
                f"'shape': ({shard['count']}, {rows}, {columns}), }}"
            )
            header = b"\x93NUMPY\x01\x00" + (4086).to_bytes(2, "little")
            assert content[:4096] == header + literal.encode().ljust(4085) + b"\n"
            assert len(content) == shard["bytes"][str(level)]
            size = rows * columns * 2
            ours = [
                google_crc32c.value(content[4096 + k * size :][:size])
                for k in range(shard["count"])
            ]
            joined = b"".join(crc32c.to_bytes(4, "little") for crc32c in ours)
            assert google_crc32c.value(joined) == shard["crc32c"][str(level)]
            column = "crc32c" if is_source else f"crc32c_{level}"
            for row in table:
                if row["shard"] == number:
                    assert row[column] == ours[row["row_in_shard"]]


def test_the_reader_of_the_page_reads_every_slice(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ichfast-store").symlink_to(tiny_store.path)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    (reader,) = (each.text for each in blocks(PAGE) if each.language == "python")
    exec(compile(reader, PAGE.name, "exec"), found)
    for level in tiny_store.levels:
        for position in range(len(tiny_store)):
            hu_HW = tiny_store.slice_HW(position, level).astype(np.int32) - 1024
            assert np.array_equal(found["read_hu"](position, level), hu_HW)


def test_a_pixel_of_level_256_is_the_mean_that_the_page_says(tiny_store: Store) -> None:
    (position,) = np.flatnonzero(tiny_store.table["rows"] == 512)[:1]
    a_HW = tiny_store.slice_HW(int(position)).astype(np.int64)
    sum_HW = a_HW[::2, ::2] + a_HW[1::2, ::2] + a_HW[::2, 1::2] + a_HW[1::2, 1::2]
    assert np.array_equal(tiny_store.slice_HW(int(position), 256), (sum_HW + 2) // 4)
