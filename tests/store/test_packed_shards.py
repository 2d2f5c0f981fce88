"""Packed files of shards hold the slices of raw ones; all damage is found and named."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from ichfast.errors import StoreError
from ichfast.packed import pack, reference
from ichfast.packed.record import find_layout
from ichfast.store import store as store_module
from ichfast.store.header import read_header
from ichfast.store.levels import halve_into
from ichfast.store.packed_shards import (
    PackedReader,
    PackedWriter,
    unpack_record,
)
from ichfast.store.shards import Shard
from ichfast.store.store import Store
from ichfast.store.verify import shard_damage, verify_store
from ichfast.store.writer import UnitWriter
from tests.conftest import contents
from tests.mutations import mutations
from tests.packed.slices import draw_slice
from tests.store.slice_store import simple_rows, write_slices
from tests.store.test_mutations import check_line
from tests.store.test_store import edit_header
from tests.store.test_verify import DAMAGES

SHAPES = ((17, 40), (1, 1), (1, 19), (33, 2), (17, 40), (64, 65), (17, 40))
"""Rows and columns of the slices of `write`. Two starts and an odd number of blocks in
those of 17x40."""

NAME = "00000-17x40.icp"
"""The shard of three slices, 0, 4 and 6 of the store."""


def write(path: Path, *, packed: bool = True, seed: int = 0) -> None:
    """Write a store of slices of all `SHAPES`."""
    rows = simple_rows(len(SHAPES))
    labels_NK = np.zeros((len(rows), 6))
    write_slices(path, drawn(seed), rows, labels_NK, packed=packed)


def drawn(seed: int = 0) -> list[npt.NDArray[np.uint16]]:
    """Slices of all `SHAPES`."""
    rng = np.random.default_rng(seed)
    return [draw_slice(shape, 3, rng) & np.uint16(0x7FFF) for shape in SHAPES]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed store. Not to be changed."""
    path = tmp_path_factory.mktemp("packed") / "store"
    write(path)
    return path


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(sound, tmp_path / "store"))


# What it gives


def halved(stored_HW: npt.NDArray[np.uint16], halvings: int) -> npt.NDArray[np.uint16]:
    if not halvings:
        return stored_HW
    shape = [-(-side // 2**halvings) for side in stored_HW.shape]
    out_HW = np.empty(shape, np.uint16)
    halve_into(stored_HW, halvings, out_HW)
    return out_HW


def test_tables_digests_and_checksums_are_those_of_a_raw_store(
    sound: Path, tmp_path: Path
) -> None:
    write(tmp_path / "raw", packed=False)
    found, expected = contents(sound), contents(tmp_path / "raw")
    for name in ("slices.parquet", "rejected.csv"):
        assert found[name] == expected[name]
    packed, raw = read_header(sound), read_header(tmp_path / "raw")
    assert packed.is_packed
    assert not raw.is_packed
    assert packed.digest == raw.digest
    for one, other in zip(packed.shards, raw.shards, strict=True):
        assert one.name == other.name.replace(".npy", ".icp")
        assert replace(one, name=other.name, packed_bytes=None) == other
    assert replace(packed, shards=raw.shards, format_version=1) == raw
    for shard in packed.shards:
        for level in (512, 256):
            content = found[f"level-{level}/{shard.name}"]
            assert shard.num_bytes(level) == len(content)


@pytest.mark.parametrize("past_cache", [False, True])
def test_pixels_are_those_of_a_raw_store_halved_as_often_as_asked(
    sound: Path, tmp_path: Path, *, past_cache: bool
) -> None:
    write(tmp_path / "raw", packed=False)
    with (
        Store(tmp_path / "raw") as raw,
        Store(sound, past_cache=past_cache) as packed,
    ):
        for level in (512, 256):
            for index in range(len(raw)):
                stored_HW = raw.slice_HW(index, level)
                found_HW = packed.slice_HW(index, level)
                np.testing.assert_array_equal(found_HW, stored_HW)
                assert found_HW.flags.owndata
                for halvings in range(4):
                    expected_HW = halved(stored_HW, halvings)
                    for each, check in ((raw, True), (packed, True), (packed, False)):
                        out_HW = np.full_like(expected_HW, 7)
                        each.read_into(
                            index, level, out_HW, halvings=halvings, check=check
                        )
                        np.testing.assert_array_equal(out_HW, expected_HW)


def shard_of(slices: list[npt.NDArray[np.uint16]], path: Path) -> Shard:
    """Write slices of one shape as a unit with one level; return its shard."""
    with UnitWriter(path, 0, (512,), packed=True) as writer:
        for row, stored_HW in enumerate(slices):
            name, found, sums = writer.add(stored_HW)
            assert found == row
            assert sums == {512: google_crc32c.value(stored_HW.tobytes())}
            assert name.endswith(".icp")
    (shard,) = writer.shards
    return shard


def test_every_value_of_a_pixel_comes_back(tmp_path: Path) -> None:
    values_N = np.arange(2**16, dtype=np.uint16)
    shuffled_N = np.random.default_rng(1).permutation(values_N)
    slices = [values_N.reshape(256, 256), shuffled_N.reshape(256, 256)]
    reader = PackedReader(tmp_path, shard_of(slices, tmp_path), 512, past_cache=False)
    for row, expected_HW in enumerate(slices):
        out_HW = np.zeros_like(expected_HW)
        reader.read_into(row, out_HW)
        np.testing.assert_array_equal(out_HW, expected_HW)
        assert len(np.unique(out_HW)) == 2**16


@pytest.mark.slow
def test_the_largest_slice_comes_back(tmp_path: Path) -> None:
    stored_HW = np.zeros((4096, 4096), np.uint16)
    stored_HW.ravel()[::257] = np.arange(65281, dtype=np.uint16)
    shard = shard_of([stored_HW], tmp_path)
    reader = PackedReader(tmp_path, shard, 512, past_cache=True)
    out_HW = np.ones_like(stored_HW)
    reader.read_into(0, out_HW)
    assert (out_HW == stored_HW).all()
    assert shard_damage(tmp_path, shard, 512, None) == []


def test_threads_read_at_once_what_one_reads(sound: Path) -> None:
    with Store(sound) as store:
        expected = [
            (index, level, halvings, halved(store.slice_HW(index, level), halvings))
            for index in range(len(store))
            for level in (512, 256)
            for halvings in (0, 1, 2)
        ]

    def read_all(seed: int) -> None:
        for k in np.random.default_rng(seed).permutation(len(expected)):
            index, level, halvings, expected_HW = expected[k]
            out_HW = np.empty_like(expected_HW)
            opened.read_into(index, level, out_HW, halvings=halvings)
            np.testing.assert_array_equal(out_HW, expected_HW)

    with Store(sound, past_cache=True) as opened, ThreadPoolExecutor(4) as pool:
        list(pool.map(read_all, range(12)))


def test_records_are_read_without_unpacking_them(sound: Path) -> None:
    with Store(sound) as store:
        for level in store.levels:
            sizes_N = store.record_bytes_N(level)
            assert sizes_N.dtype == np.int64
            for index, size in enumerate(sizes_N.tolist()):
                record_R = np.zeros(size, np.uint8)
                store.read_record_into(index, level, record_R)
                expected_HW = store.slice_HW(index, level)
                assert record_R.tobytes() == pack(expected_HW)
                for halvings in range(3):
                    out_HW = np.zeros_like(halved(expected_HW, halvings))
                    unpack_record(record_R, halvings, out_HW)
                    np.testing.assert_array_equal(out_HW, halved(expected_HW, halvings))


def test_a_raw_store_has_no_records(tmp_path: Path) -> None:
    write(tmp_path / "raw", packed=False)
    with Store(tmp_path / "raw") as store:
        for read in (
            lambda: store.record_bytes_N(512),
            lambda: store.read_record_into(0, 512, np.empty(128, np.uint8)),
        ):
            with pytest.raises(
                StoreError, match=r"not packed; .*`ichfast pack .* NEW`"
            ):
                read()


# What is on the disk


def read_file(content: bytes) -> list[npt.NDArray[np.uint16]]:
    """The slices of a file, by nothing but the description of its format."""
    magic, version, rows, columns = struct.unpack_from("<8s3I", content)
    assert (magic, version) == (b"ICPSHARD", 1)
    assert content[20:64] == bytes(44)
    footer = content[-64:]
    name, index_at, count, *shape, index_crc32c = struct.unpack_from("<8s2Q3I", footer)
    assert (name, shape) == (b"ICPINDEX", [rows, columns])
    assert footer[36:60] == bytes(24)
    assert struct.unpack("<I", footer[60:]) == (google_crc32c.value(footer[:60]),)
    index = content[index_at : index_at + 16 * count]
    assert google_crc32c.value(index) == index_crc32c
    padding = content[index_at + 16 * count : -64]
    assert padding == bytes(-16 * count % 64)
    slices, end = [], 64
    for at, num_bytes, crc32c in struct.iter_unpack("<QII", index):
        record = content[at : at + num_bytes]
        assert at == end
        assert num_bytes % 64 == 0
        assert record[:4] == b"ICP1"
        header = struct.unpack_from("<7I", record, 4)
        assert header[0] == crc32c == google_crc32c.value(record[8:])
        assert header[1] == num_bytes
        assert header[3:5] == (rows, columns)
        out_HW = np.empty((rows, columns), np.uint16)
        reference.unpack(np.frombuffer(record, np.uint8), out_HW)
        assert header[5:] == (google_crc32c.value(out_HW.tobytes()), 0)
        slices.append(out_HW)
        end = at + num_bytes
    assert end == index_at
    return slices


def test_a_file_is_as_its_format_is_described(sound: Path) -> None:
    with Store(sound) as store:
        table = store.table
        for number, shard in enumerate(store.header.shards):
            for level in store.levels:
                slices = read_file((sound / f"level-{level}" / shard.name).read_bytes())
                positions = np.flatnonzero(table["shard"] == number).tolist()
                assert len(slices) == len(positions) == shard.count
                for position in positions:
                    np.testing.assert_array_equal(
                        slices[table["row_in_shard"][position]],
                        store.slice_HW(position, level),
                    )


def test_records_are_read_past_the_page_cache_in_whole_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    slices = [draw_slice((60, 70), 12, rng) for _ in range(9)]
    shard = shard_of(slices, tmp_path)
    reader = PackedReader(tmp_path, shard, 512, past_cache=True)
    num_bytes = shard.num_bytes(512)
    seen: list[tuple[bool, int, int]] = []
    preadv = os.preadv

    def watched(descriptor: int, buffers: list[memoryview], start: int) -> int:
        is_direct = bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)
        seen.append((is_direct, start, start + len(buffers[0])))
        return preadv(descriptor, buffers, start)

    monkeypatch.setattr(os, "preadv", watched)
    for row in (8, *range(9)):
        out_HW = np.empty_like(slices[row])
        reader.read_into(row, out_HW)
        np.testing.assert_array_equal(out_HW, slices[row])
    if not reader._file.is_direct:
        pytest.skip("the file system of the temporary folder has no O_DIRECT")
    assert {start % 4096 for _, start, _ in seen} == {0}
    for is_direct, _, end in seen:  # the last page of the file is not whole
        assert end % 4096 == 0 or end == num_bytes
        assert is_direct == (end % 4096 == 0)
    assert {is_direct for is_direct, _, _ in seen} == {False, True}


def test_a_failed_unit_leaves_no_packed_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: PackedWriter) -> int:
        raise OSError(28, "No space left on device")

    def write_one() -> None:
        with UnitWriter(tmp_path, 0, (512, 256), packed=True) as writer:
            writer.add(np.ones((9, 7), np.uint16))

    monkeypatch.setattr(PackedWriter, "complete", fail)
    with pytest.raises(OSError, match="No space"):
        write_one()
    assert contents(tmp_path) == {}


# A flipped bit, anywhere


def part_places() -> dict[str, range]:
    """The parts of the file `NAME` at level 512, and the bytes of each."""
    slices, layout = drawn(), find_layout(17, 40)
    found: dict[str, range] = {}

    def add(name: str, first: int, size: int) -> None:
        found[name] = range(first, first + size)

    for name, first, size in (
        *(("magic", 0, 8), ("version", 8, 4), ("rows", 12, 4), ("columns", 16, 4)),
        ("zeros", 20, 44),
    ):
        add(f"header: {name}", first, size)
    at = 64
    for row, index in enumerate((0, 4, 6)):
        record = pack(slices[index])
        (payload_bytes,) = struct.unpack_from("<I", record, 12)
        end = layout.payload_at + payload_bytes
        fields = (
            *("magic", "checksum", "bytes", "payload bytes", "rows", "columns"),
            *("checksum of pixels", "zero"),
        )
        for k, name in enumerate(fields):
            add(f"record {row}: {name}", at + 4 * k, 4)
        add(f"record {row}: starts", at + 32, layout.widths_at - 32)
        widths = layout.payload_at - layout.widths_at
        add(f"record {row}: widths", at + layout.widths_at, widths)
        add(f"record {row}: payload", at + layout.payload_at, payload_bytes)
        add(f"record {row}: padding", at + end, len(record) - end)
        at += len(record)
    for row in range(3):
        for name, first, size in (
            ("place", 0, 8),
            ("bytes", 8, 4),
            ("checksum", 12, 4),
        ):
            add(f"index {row}: {name}", at + 16 * row + first, size)
    add("index: padding", at + 48, 16)
    at += 64
    for name, first, size in (
        *(("magic", 0, 8), ("place of the index", 8, 8), ("count", 16, 8)),
        *(("rows", 24, 4), ("columns", 28, 4), ("checksum of the index", 32, 4)),
        *(("zeros", 36, 24), ("checksum", 60, 4)),
    ):
        add(f"footer: {name}", at + first, size)
    return found


PARTS = part_places()


def shard_and_rows(store: Path) -> tuple[Shard, pd.DataFrame]:
    """The shard `NAME`, and what the table has of its slices."""
    with Store(store) as opened:
        shards, table = opened.header.shards, opened.table
    (number,) = (k for k, shard in enumerate(shards) if shard.name == NAME)
    rows = table[table["shard"] == number]
    return shards[number], rows[["slice_id", "row_in_shard", "crc32c"]]


def test_the_parts_are_the_whole_file(sound: Path) -> None:
    places = [place for part in PARTS.values() for place in part]
    assert places == list(range((sound / "level-512" / NAME).stat().st_size))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["header", "index", "footer"])
def test_each_flipped_bit_around_the_records_is_found_and_named(
    store: Path, where: str
) -> None:
    file = store / "level-512" / NAME
    shard, rows = shard_and_rows(store)
    for part in flipped(file, where):
        (damage,) = shard_damage(store, shard, 512, rows)
        assert (damage.level, damage.shard) == (512, NAME), part
        assert damage.problem.startswith(f"{file} is damaged: its "), part
        with pytest.raises(StoreError, match="is damaged: its ") as caught:
            PackedReader(store, shard, 512, past_cache=False)
        check_line(caught.value)
        assert str(caught.value).startswith(damage.problem)
    assert shard_damage(store, shard, 512, rows) == []


@pytest.mark.slow
@pytest.mark.parametrize("damaged_row", [0, 1, 2])
def test_each_flipped_bit_of_a_record_is_found_and_named_and_not_read(
    store: Path, damaged_row: int
) -> None:
    file = store / "level-512" / NAME
    shard, rows = shard_and_rows(store)
    sums = rows["crc32c"].tolist()
    with Store(store) as opened:
        expected = [opened.slice_HW(index) for index in (0, 4, 6)]
    out_HW = np.empty((17, 40), np.uint16)
    slice_id = ("ID_0", "ID_4", "ID_6")[damaged_row]
    line = f"{file}: slice {slice_id} (row {damaged_row}) does not match its checksum"
    for part in flipped(file, f"record {damaged_row}"):
        (damage,) = shard_damage(store, shard, 512, rows)
        assert (damage.level, damage.shard) == (512, NAME), part
        assert damage.problem == line, part
        reader = PackedReader(store, shard, 512, past_cache=False)
        check_refused(reader, damaged_row)
        for row in {0, 1, 2} - {damaged_row}:
            reader.read_into(row, out_HW, crc32c=sums[row])
            np.testing.assert_array_equal(out_HW, expected[row])
    assert shard_damage(store, shard, 512, rows) == []


def flipped(file: Path, where: str) -> Iterator[str]:
    """Flip a bit of each byte, and each bit of a short part, one by one.

    Args:
        file: `NAME`.
        where: the beginning of the names of the parts.

    Yields:
        The part.
    """
    descriptor = os.open(file, os.O_RDWR)
    for part in (part for part in PARTS if part.startswith(where)):
        for place in PARTS[part]:
            (before,) = os.pread(descriptor, 1, place)
            for bit in range(8) if len(PARTS[part]) <= 24 else [place % 8]:
                os.pwrite(descriptor, bytes([before ^ 1 << bit]), place)
                yield part
            os.pwrite(descriptor, bytes([before]), place)
    os.close(descriptor)


def check_refused(reader: PackedReader, row: int) -> None:
    """A slice is not read, whole, halved or as a record; the file and row are named."""
    record_R = np.empty(reader.record_bytes_N[row], np.uint8)
    shape = reader.slice_shape
    whole_HW = np.empty(shape, np.uint16)
    half_HW = np.empty((-(-shape[0] // 2), -(-shape[1] // 2)), np.uint16)
    for read in (
        partial(reader.read_into, row, whole_HW),
        partial(reader.read_into, row, half_HW, halvings=1),
        partial(reader.read_record_into, row, record_R),
    ):
        with pytest.raises(StoreError) as caught:
            read()
        check_line(caught.value)
        assert str(caught.value).startswith(f"{reader.path} is damaged: row {row}: ")


def test_verify_of_a_store_names_file_and_slice(store: Path) -> None:
    before = contents(store)
    for name in ("record 1: payload", "record 1: widths", "record 1: starts"):
        place = PARTS[name][3]
        content = bytearray(before[f"level-512/{NAME}"])
        content[place] ^= 16
        (store / "level-512" / NAME).write_bytes(content)
        assert verify_store(store) == [
            f"{store}/level-512/{NAME}: slice ID_4 (row 1) does not match its checksum"
        ]
        with Store(store) as opened, pytest.raises(StoreError, match=rf"{NAME} is dam"):
            opened.slice_HW(4)


def test_a_damaged_record_of_a_slice_that_was_dropped_is_found(store: Path) -> None:
    content = bytearray((store / "level-512" / NAME).read_bytes())
    content[PARTS["record 1: payload"][0]] ^= 1
    (store / "level-512" / NAME).write_bytes(content)
    shard, rows = shard_and_rows(store)
    kept = rows[rows["row_in_shard"] != 1]
    for known, what in ((kept, "a row without a slice"), (None, "a row")):
        (damage,) = shard_damage(store, shard, 512, known)
        assert damage.problem == (
            f"{store}/level-512/{NAME}: {what} does not match its checksum"
        )


# Other content that fits together


def rewrite(file: Path, change: Callable[[list[bytes]], object]) -> None:
    """Change the records of a file, with the index and footer that belong to them."""
    content = file.read_bytes()
    records = [content[at : at + size] for at, size, _ in entries(content)]
    change(records)
    at, index = 64, b""
    for record in records:
        index += struct.pack("<QI4s", at, len(record), record[4:8])
        at += len(record)
    file.write_bytes(
        content[:64] + b"".join(records) + index_and_footer(content, index)
    )


def entries(content: bytes) -> list[tuple[int, int, int]]:
    """The index of a file: place, bytes and checksum of each record."""
    index_at, count = struct.unpack_from("<2Q", content, len(content) - 56)
    return list(struct.iter_unpack("<QII", content[index_at : index_at + 16 * count]))


def index_and_footer(content: bytes, index: bytes, at: int | None = None) -> bytes:
    """The end of a file, with another index.

    Args:
        content: of the file.
        index: all entries.
        at: its place; None leaves it where it is.
    """
    (index_at,) = struct.unpack_from("<Q", content, len(content) - 56)
    place = index_at if at is None else at
    footer = struct.pack("<8s2Q", b"ICPINDEX", place, len(index) // 16) + content[12:20]
    footer += struct.pack("<I24x", google_crc32c.value(index))
    footer += struct.pack("<I", google_crc32c.value(footer))
    return index + bytes(-len(index) % 64) + footer


def sealed(record: bytes) -> bytes:
    """A record with the checksum that belongs to it."""
    return record[:4] + struct.pack("<I", google_crc32c.value(record[8:])) + record[8:]


@pytest.fixture
def alike(tmp_path: Path) -> Path:
    """A packed store of three slices whose records have the same size."""
    rng = np.random.default_rng(2)
    slices = [rng.integers(0, 2**15, (4, 16), np.uint16) for _ in range(3)]
    path = tmp_path / "alike"
    write_slices(
        path, slices, simple_rows(3), np.zeros((3, 6)), levels=(512,), packed=True
    )
    with Store(path) as store:
        assert len(set(store.record_bytes_N(512).tolist())) == 1
    return path


def check_slices_refused(path: Path, positions: set[int]) -> None:
    """These slices are refused, each by its name; all others are read."""
    problems = verify_store(path)
    assert [f"slice ID_{k} " in "\n".join(problems) for k in range(3)] == [
        k in positions for k in range(3)
    ]
    with Store(path) as store:
        for k in range(3):
            if k not in positions:
                store.slice_HW(k)
                continue
            with pytest.raises(StoreError, match=r"\.icp is damaged: row") as caught:
                store.slice_HW(k)
            check_line(caught.value)


def swap(records: list[bytes]) -> None:
    records[0], records[1] = records[1], records[0]


def repeat(records: list[bytes]) -> None:
    records[0] = records[1]


@pytest.mark.parametrize("has_its_index", [False, True])
@pytest.mark.parametrize(("change", "positions"), [(swap, {0, 1}), (repeat, {0})])
def test_a_record_of_another_slice_is_refused(
    alike: Path,
    change: Callable[[list[bytes]], None],
    positions: set[int],
    *,
    has_its_index: bool,
) -> None:
    (file,) = (alike / "level-512").iterdir()
    before = file.read_bytes()
    rewrite(file, len)
    assert file.read_bytes() == before
    rewrite(file, change)
    if not has_its_index:
        (end,) = struct.unpack_from("<Q", before, len(before) - 56)
        file.write_bytes(file.read_bytes()[:end] + before[end:])
        with Store(alike) as store:
            for k in positions:  # the index alone tells
                with pytest.raises(StoreError, match="its record has the CRC-32C"):
                    store.slice_HW(k, check=False)
    check_slices_refused(alike, positions)


def exchange(index: list[tuple[int, int, int]]) -> None:
    index[0], index[1] = index[1], index[0]


def overlap(index: list[tuple[int, int, int]]) -> None:
    index[1] = index[0]


def shorten(index: list[tuple[int, int, int]]) -> None:
    index[2] = (index[2][0], index[2][1] - 64, index[2][2])


@pytest.mark.parametrize("change", [exchange, overlap, shorten])
def test_an_index_of_records_that_do_not_follow_each_other_is_refused(
    alike: Path, change: Callable[[list[tuple[int, int, int]]], None]
) -> None:
    (file,) = (alike / "level-512").iterdir()
    content = file.read_bytes()
    index = entries(content)
    change(index)
    end = index_and_footer(content, b"".join(struct.pack("<QII", *e) for e in index))
    file.write_bytes(content[: -len(end)] + end)
    line = f"{file} is damaged: its records do not lie one behind the other"
    assert verify_store(alike) == [line]
    with Store(alike) as store, pytest.raises(StoreError, match="one behind the other"):
        store.slice_HW(2, check=False)


def test_other_pixels_in_a_sound_record_are_refused(alike: Path) -> None:
    (file,) = (alike / "level-512").iterdir()

    def change(records: list[bytes]) -> None:
        size = len(records[2])
        record = pack(np.full((4, 16), 5, np.uint16)).ljust(size, b"\0")
        records[2] = sealed(record[:8] + struct.pack("<I", size) + record[12:])

    rewrite(file, change)
    check_slices_refused(alike, {2})


def test_a_sound_record_with_a_wrong_checksum_of_its_pixels_is_refused(
    alike: Path,
) -> None:
    (file,) = (alike / "level-512").iterdir()

    def change(records: list[bytes]) -> None:
        records[1] = sealed(records[1][:24] + b"\1\2\3\4" + records[1][28:])

    rewrite(file, change)
    check_slices_refused(alike, {1})


def test_a_sound_record_that_is_not_the_one_of_the_index_is_refused(
    alike: Path,
) -> None:
    (file,) = (alike / "level-512").iterdir()
    before = file.read_bytes()

    def change(records: list[bytes]) -> None:
        records[2] = sealed(records[2][:-1] + b"\1")  # the same pixels

    rewrite(file, change)
    end = len(before) - 128
    file.write_bytes(file.read_bytes()[:end] + before[end:])
    check_slices_refused(alike, {2})


def test_verify_unpacks_and_does_not_trust_the_checksum_in_a_record(
    alike: Path,
) -> None:
    (file,) = (alike / "level-512").iterdir()

    def change(records: list[bytes]) -> None:
        at = find_layout(4, 16).payload_at
        flipped = bytes([records[1][at] ^ 4])
        records[1] = sealed(records[1][:at] + flipped + records[1][at + 1 :])

    rewrite(file, change)
    (problem,) = verify_store(alike)
    assert problem == f"{file}: slice ID_1 (row 1) does not match its checksum"


def test_a_file_of_another_store_is_refused(store: Path, tmp_path: Path) -> None:
    write(tmp_path / "other", seed=1)
    for level in (512, 256):
        file = store / f"level-{level}" / NAME
        other = tmp_path / "other" / f"level-{level}" / NAME
        file.write_bytes(other.read_bytes())
        # As if it had the same size.
        edit_header(store, replace_bytes(file.stat().st_size, level))
        problems = verify_store(store)
        assert [f"slice ID_{k} " in "".join(problems) for k in (0, 4, 6)] == [True] * 3
        with Store(store) as opened:
            for index in (0, 4, 6):
                with pytest.raises(StoreError, match=r"CRC-32C .*, expected"):
                    opened.slice_HW(index, level)


def replace_bytes(num_bytes: int, level: int) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        (shard,) = (each for each in document["shards"] if each["name"] == NAME)
        shard["bytes"][str(level)] = num_bytes

    return change


@pytest.mark.parametrize("damage", DAMAGES)
def test_anything_in_the_place_of_a_packed_file_is_found(
    store: Path, damage: Callable[[Path], None]
) -> None:
    damage(store / "level-256" / NAME)
    (problem,) = verify_store(store)
    assert f"level-256/{NAME}" in problem
    with pytest.raises(StoreError, match=f"level-256/{NAME}") as caught:
        Store(store)
    check_line(caught.value)


@pytest.mark.parametrize("past_cache", [False, True])
def test_a_packed_file_cut_short_while_open_is_an_error(
    store: Path, *, past_cache: bool
) -> None:
    file = store / "level-512" / NAME
    with Store(store, past_cache=past_cache) as opened:
        opened.slice_HW(0)
        os.truncate(file, PARTS["record 1: payload"][2])
        if not past_cache:  # whole pages are read
            opened.slice_HW(0)
        for index in (4, 6):
            with pytest.raises(StoreError, match="was cut short since it was ope"):
                opened.slice_HW(index)


def test_a_packed_file_cut_short_before_it_is_opened_is_an_error(store: Path) -> None:
    with Store(store) as opened:
        os.truncate(store / "level-512" / NAME, 100)
        with pytest.raises(StoreError, match="100 bytes, expected") as caught:
            opened.slice_HW(0)
        check_line(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("is_open", [False, True])
def test_no_damaged_file_is_read_as_something_else(
    store: Path, *, is_open: bool
) -> None:
    file = store / "level-512" / NAME
    before = file.read_bytes()
    shard, rows = shard_and_rows(store)
    with Store(store) as opened:
        expected = [opened.slice_HW(index) for index in (0, 4, 6)]
    num_refused = 0
    for after in mutations(before, seed=1):
        file.write_bytes(before)
        reader = PackedReader(store, shard, 512, past_cache=False) if is_open else None
        file.write_bytes(after)
        assert shard_damage(store, shard, 512, None)
        for row, crc32c in enumerate(rows["crc32c"].tolist()):
            out_HW = np.empty((17, 40), np.uint16)
            try:
                reader = reader or PackedReader(store, shard, 512, past_cache=False)
                reader.read_into(row, out_HW, crc32c=crc32c)
            except StoreError as error:
                check_line(error)
                num_refused += 1
            else:
                np.testing.assert_array_equal(out_HW, expected[row])
    assert num_refused > 300


# Hostile sizes and names


def shards_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = document["shards"]
    return found


def rename_all(document: dict[str, Any], suffix: str, **fields: int) -> None:
    document.update(fields)
    for shard in shards_of(document):
        shard["name"] = shard["name"].replace(".icp", suffix)


def set_bytes(value: object) -> Callable[[dict[str, Any]], None]:
    return lambda document: shards_of(document)[0]["bytes"].update({"512": value})


@pytest.mark.parametrize(
    "change",
    [
        *map(set_bytes, (0, -1, 63, 2**53 + 1, 2**63, 10**30, 1e9, "128", True, None)),
        lambda document: shards_of(document)[0].update(bytes={}),
        lambda document: shards_of(document)[0].update(bytes=[128, 128]),
        lambda document: shards_of(document)[0]["bytes"].update({"128": 128}),
        lambda document: shards_of(document)[0].pop("bytes"),
        lambda document: shards_of(document)[0].update(count=2**31 - 1),
        lambda document: shards_of(document)[0].update(count=2**31),
        lambda document: shards_of(document)[0].update(rows=2**24, columns=2),
        lambda document: shards_of(document)[0].update(rows=18),
        lambda document: shards_of(document)[0].update(name="../00000-17x40.icp"),
        lambda document: shards_of(document)[0].update(name="00000-17x40.icp\n"),
        lambda document: shards_of(document)[0].update(name="00000-17x40.npy"),
        lambda document: rename_all(document, ".npy"),
        lambda document: rename_all(document, ""),
        lambda document: document.update(format_version=1),
        lambda document: rename_all(document, ".npy", format_version=1),
    ],
)
def test_a_hostile_header_is_one_line_and_takes_no_memory(
    store: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    edit_header(store, change)
    check_takes_no_memory(store, r"store\.json is damaged .* prepare` again")


def check_takes_no_memory(store: Path, message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(StoreError, match=message) as caught:
            Store(store)
        assert len(verify_store(store)) >= 1
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()
    check_line(caught.value)


@pytest.mark.parametrize("count", [3, 2**31 - 1])
def test_a_header_with_large_sizes_takes_no_memory(store: Path, count: int) -> None:
    edit_header(store, set_bytes(2**53))
    edit_header(store, lambda document: shards_of(document)[0].update(count=count))
    edit_header(
        store,
        lambda document: shards_of(document)[0]["bytes"].update({"256": 2**40}),
    )
    check_takes_no_memory(store, r"bytes, store.json promises 9,007,199,254,740,992;")


def test_a_file_that_claims_a_large_record_takes_no_memory(store: Path) -> None:
    """A file may be large and take no space on the disk."""
    file = store / "level-512" / NAME
    content, size = file.read_bytes(), 2**32 - 64
    index = struct.pack("<QII", 64, size, 0)
    index += struct.pack("<QII", 64 + size, 128, 0)
    index += struct.pack("<QII", 64 + size + 128, 128, 0)
    index_at = 64 + size + 256
    with file.open("wb") as opened:
        opened.write(content[:64])
        opened.seek(index_at)
        opened.write(index_and_footer(content, index, index_at))
    edit_header(store, replace_bytes(file.stat().st_size, 512))
    (problem,) = verify_store(store)
    assert "its records are not as long as those of slices of (17, 40)" in problem
    with (
        Store(store) as opened_store,
        pytest.raises(StoreError, match="not as long as"),
    ):
        opened_store.slice_HW(0)


def test_a_packed_store_for_which_the_format_is_too_new_is_one_line(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a build without packed slices says: it reads version 1 only."""
    monkeypatch.setattr("ichfast.store.header.PACKED_VERSION", -1)
    with pytest.raises(StoreError, match="has format version 2, this ichfast reads 1"):
        Store(store)


def test_a_packed_level_larger_than_the_memory_is_read_past_the_page_cache(
    sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = read_header(sound)
    packed_bytes = sum(shard.num_bytes(512) for shard in header.shards)
    for spare, expected in ((0, False), (-1, True)):
        monkeypatch.setattr(
            store_module, "total_memory", lambda spare=spare: packed_bytes + spare
        )
        with Store(sound) as store:
            assert store.past_cache(512) is expected


def test_the_header_of_a_packed_store_tells_sizes_that_no_shape_tells(
    sound: Path,
) -> None:
    document = json.loads((sound / "store.json").read_text())
    assert document["format_version"] == 2
    for shard in document["shards"]:
        assert set(shard) == {"name", "rows", "columns", "count", "crc32c", "bytes"}
        for level, size in shard["bytes"].items():
            file = sound / f"level-{level}" / shard["name"]
            assert size == file.stat().st_size
