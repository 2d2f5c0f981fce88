"""A store returns what was written, and finds what is not as written."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import mmap
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pandas as pd
import pytest

from ichfast.errors import StoreError
from ichfast.labels import CLASSES
from ichfast.store import store as store_module
from ichfast.store.levels import checksum_column, reduce_to_level
from ichfast.store.raw_shards import RawReader
from ichfast.store.store import Store
from ichfast.store.verify import verify_store
from ichfast.store.writer import UnitWriter
from ichfast.system.checksums import FIELD, with_checksum
from tests.conftest import write_store


@pytest.fixture
def copied(tiny_store_path: Path, tmp_path: Path) -> Path:
    """A copy of the tiny store that a test may damage."""
    return Path(shutil.copytree(tiny_store_path, tmp_path / "store"))


def edit_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a header, and write it with the right checksum."""
    header = json.loads((path / "store.json").read_text())
    del header[FIELD]
    change(header)
    (path / "store.json").write_text(with_checksum(header))


# What it gives


def test_every_slice_comes_back_bit_for_bit(tmp_path: Path) -> None:
    slices = write_store(tmp_path / "store")
    with Store(tmp_path / "store") as store:
        assert len(store) == len(slices) == 29
        for index, expected_HW in enumerate(slices):
            np.testing.assert_array_equal(store.slice_HW(index), expected_HW)
            np.testing.assert_array_equal(
                store.slice_HW(index, 256), reduce_to_level(expected_HW, 256)
            )


def test_a_slice_is_the_callers_own(tiny_store: Store) -> None:
    stored_HW = tiny_store.slice_HW(0)
    assert stored_HW.dtype == np.uint16
    before_HW = stored_HW.copy()
    stored_HW[...] = 1
    np.testing.assert_array_equal(tiny_store.slice_HW(0), before_HW)


def test_a_slice_outlives_the_store_that_gave_it(tiny_store_path: Path) -> None:
    store = Store(tiny_store_path)
    stored_HW = store.slice_HW(3)
    before = stored_HW.copy()
    store.close()
    np.testing.assert_array_equal(stored_HW, before)
    with pytest.raises(StoreError, match="closed"):
        store.slice_HW(3)


def test_closing_lets_go_of_every_file(tiny_store_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with Store(tiny_store_path) as store:
            for index in range(len(store)):
                store.slice_HW(index, 256)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("index", [-1, 29])
def test_a_position_outside_the_store_is_refused(tiny_store: Store, index: int) -> None:
    with pytest.raises(StoreError, match=f"holds slices 0 to 28, asked for {index}"):
        tiny_store.slice_HW(index)


def test_a_level_that_the_store_lacks_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "store", levels=(512,))
    with Store(tmp_path / "store") as store:
        assert store.levels == (512,)
        assert "crc32c_256" not in store.table
        with pytest.raises(StoreError, match="has the levels 512, asked for 256"):
            store.slice_HW(0, 256)


def test_a_slice_is_read_into_memory_of_the_callers(tiny_store: Store) -> None:
    for index in range(len(tiny_store)):
        expected_HW = tiny_store.slice_HW(index)
        out_HW = np.zeros_like(expected_HW)
        tiny_store.read_into(index, 512, out_HW)
        np.testing.assert_array_equal(out_HW, expected_HW)


@pytest.mark.parametrize("past_cache", [False, True])
def test_a_shard_cut_short_while_open_is_an_error_and_not_the_end(
    copied: Path, past_cache: bool
) -> None:
    with Store(copied, past_cache=past_cache) as store:
        store.slice_HW(0)
        os.truncate(copied / "level-512" / "00000.npy", 4096 + 512 * 512 * 2 + 1000)
        store.slice_HW(0)
        with pytest.raises(StoreError, match=r"00000\.npy has 529,384 bytes, expec"):
            store.slice_HW(1)
        with pytest.raises(StoreError, match=r"ichfast verify STORE --repair"):
            store.slice_HW(2)


def test_a_disk_that_fails_is_an_error_that_names_the_shard(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    tiny_store.slice_HW(0)
    monkeypatch.setattr("os.preadv", fail)
    with pytest.raises(StoreError, match=r"00000\.npy: Input/output error; check the"):
        tiny_store.slice_HW(0)


def test_a_read_that_comes_in_pieces_is_put_together(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected_HW, whole = tiny_store.slice_HW(5), os.preadv

    def piece(descriptor: int, buffers: list[memoryview], start: int) -> int:
        return whole(descriptor, [buffers[0][:100_003]], start)

    monkeypatch.setattr("os.preadv", piece)
    np.testing.assert_array_equal(tiny_store.slice_HW(5), expected_HW)


def test_labels_are_in_class_order_and_nan_where_there_are_none(
    tiny_store: Store,
) -> None:
    labels_NK = tiny_store.labels_NK()
    assert labels_NK.shape == (29, 6)
    assert labels_NK.dtype == np.float32
    unlabelled_N = (tiny_store.table["patient"] == "P4").to_numpy()
    assert np.isnan(labels_NK[unlabelled_N]).all()
    labels_NK = labels_NK[~unlabelled_N]
    np.testing.assert_array_equal(labels_NK[:, 0], labels_NK[:, 1:].max(axis=1))
    for name in CLASSES:
        assert tiny_store.table[name].dtype == pd.Int8Dtype()


def test_the_limit_of_open_files_follows_the_number_of_shards(
    tiny_store_path: Path,
) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    try:
        with Store(tiny_store_path) as store:
            num_maps = len(store.header.shards) * len(store.levels)
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            assert soft == num_maps + 1024
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# What is on the disk


def test_numpy_maps_a_shard_and_slices_begin_on_a_page(tiny_store: Store) -> None:
    for shard in tiny_store.header.shards:
        for level in tiny_store.levels:
            file = tiny_store.path / f"level-{level}" / shard.name
            mapped = np.load(file, mmap_mode="r")
            assert mapped.shape == shard.shape(level)
            assert mapped.dtype == np.dtype("<u2")
            assert mapped.offset == 4096


def test_shards_are_named_by_unit_and_shape(tiny_store: Store) -> None:
    names = [shard.name for shard in tiny_store.header.shards]
    assert names == ["00000-63x65.npy", "00000.npy", "00001-63x65.npy", "00001.npy"]


def test_the_checksum_of_a_shard_is_that_of_its_rows_checksums(
    tiny_store: Store,
) -> None:
    for shard in tiny_store.header.shards:
        for level in tiny_store.levels:
            file = tiny_store.path / f"level-{level}" / shard.name
            sums = b"".join(
                google_crc32c.value(row).to_bytes(4, "little") for row in np.load(file)
            )
            assert google_crc32c.value(sums) == shard.crc32c[level]
            assert file.stat().st_size == shard.num_bytes(level)


def test_the_checksum_of_a_row_is_that_of_the_slice(tiny_store: Store) -> None:
    for index in (0, 13, 28):
        row = tiny_store.table.iloc[index]
        for level in tiny_store.levels:
            content = tiny_store.slice_HW(index, level).tobytes()
            assert google_crc32c.value(content) == row[checksum_column(level)]


def test_a_failed_unit_leaves_no_file(tmp_path: Path) -> None:
    slice_HW = np.ones((9, 7), np.uint16)

    def write_and_fail() -> None:
        with UnitWriter(tmp_path, 0, (512, 256)) as writer:
            writer.add(slice_HW)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_and_fail()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def open_shards(folder: Path) -> list[str]:
    """Names of the files below a folder that this process has open."""
    links = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the listing itself
            links.append(str(link.readlink()))
    return [link for link in links if link.startswith(str(folder))]


def test_only_the_files_of_the_last_shape_are_open(tmp_path: Path) -> None:
    with UnitWriter(tmp_path, 0, (512, 256)) as writer:
        for rows in (9, 10, 11, 9, 9):
            writer.add(np.full((rows, 7), rows, np.uint16))
            assert len(open_shards(tmp_path)) == 2
            assert all(f"{rows}x7" in link for link in open_shards(tmp_path))
    assert open_shards(tmp_path) == []
    assert [shard.count for shard in writer.shards] == [1, 1, 3]


@pytest.mark.parametrize("may_finish", [True, False])
def test_a_unit_whose_files_cannot_be_closed_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, may_finish: bool
) -> None:
    """A network disk may report a failed write only when the file is closed."""
    shut = os.close

    def close(descriptor: int) -> None:
        shut(descriptor)
        raise OSError(errno.EIO, "no answer")

    def write() -> None:
        with UnitWriter(tmp_path, 0, (512, 256)) as writer:
            writer.add(np.ones((9, 7), np.uint16))
            monkeypatch.setattr("ichfast.store.shard_file.os.close", close)
            if not may_finish:
                raise RuntimeError("stop")

    with pytest.raises(OSError, match="no answer"):
        write()
    monkeypatch.undo()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert open_shards(tmp_path) == []


def test_the_header_says_no_time_and_no_path(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_store(tmp_path / name / "store")
    for file in (tmp_path / "one").rglob("*.*"):
        if file.is_file():
            twin = tmp_path / "two" / file.relative_to(tmp_path / "one")
            assert file.read_bytes() == twin.read_bytes()
    assert str(tmp_path) not in (tmp_path / "one/store/store.json").read_text()


# What is wrong with it


def test_a_sound_store_verifies(tiny_store_path: Path) -> None:
    assert verify_store(tiny_store_path) == []


@pytest.mark.parametrize("level", [512, 256])
def test_a_flipped_bit_is_found_and_its_slice_named(copied: Path, level: int) -> None:
    with Store(copied) as store:
        row = store.table.iloc[20]
        name = store.header.shards[row["shard"]].name
        offset = 4096 + row["row_in_shard"] * store.slice_HW(20, level).nbytes + 1001
    flip(copied / f"level-{level}" / name, offset)
    (problem,) = verify_store(copied)
    assert f"level-{level}/{name}: slice {row['slice_id']} " in problem


def test_a_row_without_a_slice_is_verified_too(copied: Path) -> None:
    def forget_last_row(header: dict[str, Any]) -> None:
        header["shards"][1]["crc32c"]["512"] ^= 1

    edit_header(copied, forget_last_row)
    (of_shard,) = verify_store(copied)
    assert "level-512/00000.npy: a row without a slice" in of_shard


def test_a_changed_npy_header_is_refused_when_opened(copied: Path) -> None:
    flip(copied / "level-512" / "00000.npy", 4000)
    (problem,) = verify_store(copied)
    assert "00000.npy is damaged: its header" in problem


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))


def test_a_folder_that_is_no_store_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"not a slice store.*ichfast prepare SOURCE"):
        Store(tmp_path)


def test_an_unfinished_store_says_how_to_finish_it(copied: Path) -> None:
    (copied / "store.json").unlink()
    (copied / "journal").mkdir()
    with pytest.raises(
        StoreError, match="unfinished; run the command that began it again"
    ):
        Store(copied)


def test_a_shard_cut_short_is_found_on_opening(copied: Path) -> None:
    os.truncate(copied / "level-256" / "00001.npy", 70_000)
    with pytest.raises(StoreError, match=r"00001.npy has 70,000 bytes, .* promises"):
        Store(copied)


def test_a_missing_shard_is_found_on_opening(copied: Path) -> None:
    (copied / "level-512" / "00000.npy").unlink()
    with pytest.raises(StoreError, match=r"00000.npy has 0 bytes"):
        Store(copied)


def test_a_damaged_table_is_found_on_opening(copied: Path) -> None:
    flip(copied / "slices.parquet", 500)
    with pytest.raises(StoreError, match=r"slices.parquet does not match its checksum"):
        Store(copied)


def test_another_format_version_is_refused(copied: Path) -> None:
    edit_header(copied, lambda header: header.update(format_version=3))
    with pytest.raises(StoreError, match="format version 3, this ichfast reads 1"):
        Store(copied)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.pop("shards"),
        lambda header: header.update(shards=[]),
        lambda header: header.update(shards=header["shards"][::-1]),
        lambda header: header.update(shards={"name": 1}),
        lambda header: header.update(levels=[512, 128]),
        lambda header: header.update(levels=None),
        lambda header: header.update(hu_offset=0),
        lambda header: header.update(counts={"slices": 10**9}),
        lambda header: header.update(counts={"slices": True}),
        lambda header: header.update(keep_ids="yes"),
        lambda header: header.update(plan=[]),
        lambda header: header["shards"][0].update(name="../../00000-63x65.npy"),
        lambda header: header["shards"][0].update(rows=-63),
        lambda header: header["shards"][0].update(count=2**40),
        lambda header: header["shards"][0].update(bytes={}),
        lambda header: header["shards"][0]["crc32c"].pop("256"),
    ],
)
def test_a_header_that_makes_no_sense_is_damage(
    copied: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    edit_header(copied, change)
    with pytest.raises(StoreError, match=r"store.json is damaged .* prepare` again"):
        Store(copied)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "null", '{"format_version": "1"}', "[" * 100_000, "\xff"]
)
def test_a_header_that_is_no_header_is_damage(copied: Path, text: str) -> None:
    (copied / "store.json").write_text(text, encoding="latin-1")
    with pytest.raises(StoreError, match=r"store.json is damaged"):
        Store(copied)


def test_a_store_read_past_the_page_cache_is_the_same(tiny_store_path: Path) -> None:
    with (
        Store(tiny_store_path) as cached,
        Store(tiny_store_path, past_cache=True) as direct,
    ):
        for level in direct.levels:
            for index in range(len(direct)):
                np.testing.assert_array_equal(
                    direct.slice_HW(index, level), cached.slice_HW(index, level)
                )


def test_reads_pass_the_page_cache_where_memory_and_slice_are_whole_pages(
    tiny_store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct: list[bool] = []
    preadv = os.preadv

    def watched(descriptor: int, buffers: list[memoryview], start: int) -> int:
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        direct.append(bool(flags & os.O_DIRECT))
        return preadv(descriptor, buffers, start)

    memory = mmap.mmap(-1, 512 * 512 * 2 + mmap.PAGESIZE)
    on_a_page = np.frombuffer(memory, np.uint16)[: 512 * 512].reshape(512, 512)
    off_a_page = np.frombuffer(memory, np.uint16)[1 : 1 + 512 * 512].reshape(512, 512)
    with Store(tiny_store_path, past_cache=True) as store:
        sides_N = store.table["rows"].to_numpy()
        whole, odd = int(np.argmax(sides_N == 512)), int(np.argmin(sides_N))
        expected_HW = store.slice_HW(whole)
        store.slice_HW(odd)  # opens its shard
        monkeypatch.setattr(os, "preadv", watched)
        for out_HW in (on_a_page, off_a_page):
            store.read_into(whole, 512, out_HW)
            np.testing.assert_array_equal(out_HW, expected_HW)
        store.slice_HW(odd)
    if direct == [False] * 3:
        pytest.skip("the file system of the temporary folder has no O_DIRECT")
    assert direct == [True, False, False]


@pytest.mark.parametrize(
    ("memory_bytes", "past_cache"), [(10**6, True), (10**9, False)]
)
def test_a_level_larger_than_the_memory_is_read_past_the_page_cache(
    tiny_store_path: Path,
    memory_bytes: int,
    past_cache: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store_module, "total_memory", lambda: memory_bytes)
    asked: list[bool] = []

    def watched(*_: object, past_cache: bool) -> RawReader:
        asked.append(past_cache)
        raise StoreError("seen enough")

    monkeypatch.setattr(store_module, "RawReader", watched)
    with Store(tiny_store_path) as store, pytest.raises(StoreError, match="enough"):
        store.slice_HW(0)
    assert asked == [past_cache]
