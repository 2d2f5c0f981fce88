"""docs/packed.md is complete: a reader that was written after it reads a store."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt
import pytest

from ichfast.packed import pack
from ichfast.prepare.packing import pack_store
from ichfast.store.store import Store

PAGE = (Path(__file__).parents[2] / "docs" / "packed.md").read_text("utf-8")


def up(number: int, step: int) -> int:
    return -(-number // step) * step


def numbers(content: bytes, at: int, count: int = 1) -> tuple[int, ...]:
    return struct.unpack_from(f"<{count}I", content, at)


def read_shard(content: bytes) -> list[bytes]:
    """The records of a shard, in the order of its rows."""
    end = len(content)
    assert content[:8] == b"ICPSHARD"
    assert numbers(content, 8) == (1,)
    assert content[end - 64 : end - 56] == b"ICPINDEX"
    index_at, count = struct.unpack_from("<2Q", content, end - 56)
    assert numbers(content, 12, 2) == numbers(content, end - 40, 2)
    assert numbers(content, end - 32) == (
        google_crc32c.value(content[index_at:][: 16 * count]),
    )
    assert numbers(content, end - 4) == (google_crc32c.value(content[end - 64 : -4]),)
    records = []
    for number in range(count):
        at, size, crc32c = struct.unpack_from("<Q2I", content, index_at + 16 * number)
        records.append(content[at : at + size])
        assert numbers(records[-1], 4) == (crc32c,)
    return records


def read_record(record: bytes) -> npt.NDArray[np.uint16]:
    """The slice of a record."""
    assert record[:4] == b"ICP1"
    crc32c, size, payload_bytes, rows, columns, pixels_crc32c = numbers(record, 4, 6)
    assert (crc32c, size) == (google_crc32c.value(record[8:]), len(record))
    blocks = -(-columns // 16)
    widths_at = up(32 + 4 * -(-rows // 16), 16)
    at = payload_at = up(widths_at + rows * -(-blocks // 2), 16)
    pixels = [[0] * (columns + 1) for _ in range(rows + 1)]  # with zeros around
    for y in range(rows):
        if y % 16 == 0:
            assert numbers(record, 32 + y // 4) == (at - payload_at,)
        for block in range(blocks):
            byte = record[widths_at + y * -(-blocks // 2) + block // 2]
            width = byte >> 4 if block % 2 else byte & 15
            width += width == 15
            bits = int.from_bytes(record[at : at + 2 * width], "little")
            at += 2 * width
            for x in range(16 * block, min(16 * block + 16, columns)):
                z = bits >> (x % 16 * width) & ((1 << width) - 1)
                residual = -(z + 1) // 2 if z % 2 else z // 2
                above, left, both = pixels[y][x + 1], pixels[y + 1][x], pixels[y][x]
                pixels[y + 1][x + 1] = (residual + above + left - both) % 2**16
    assert at == payload_at + payload_bytes
    assert not any(record[at:])
    stored_HW = np.array(pixels, np.uint16)[1:, 1:]
    assert pixels_crc32c == google_crc32c.value(stored_HW.astype("<u2").tobytes())
    return stored_HW


def test_the_example_of_the_page_is_what_is_packed() -> None:
    rows = re.search(r"2 rows of 4 pixels, `([\d ]+)` and `([\d ]+)`", PAGE)
    assert rows is not None
    stored_HW = np.array([row.split() for row in rows.groups()], np.uint16)
    lines = re.findall(r"^ *\d+ ((?: [0-9a-f]{2}){16})$", PAGE, re.MULTILINE)
    record = bytes.fromhex("".join(lines)) + bytes(96)
    assert pack(stored_HW) == record
    np.testing.assert_array_equal(read_record(record), stored_HW)


@pytest.mark.slow
def test_a_reader_written_after_the_page_reads_a_packed_store(
    tiny_store: Store, tmp_path: Path
) -> None:
    pack_store(tiny_store.path, tmp_path / "packed", workers=1)
    num_read = 0
    shards = [shard.name for shard in tiny_store.header.shards]
    places = tiny_store.table[["shard", "row_in_shard"]].itertuples(index=False)
    for index, (shard, row) in enumerate(places):
        if not shards[shard].endswith("-63x65.npy"):
            continue
        file = (tmp_path / "packed" / "level-512" / shards[shard]).with_suffix(".icp")
        stored_HW = read_record(read_shard(file.read_bytes())[row])
        np.testing.assert_array_equal(stored_HW, tiny_store.slice_HW(index))
        num_read += 1
    assert num_read == 6
