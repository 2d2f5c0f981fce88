"""Any damage of a store's files is found and named in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pandas as pd
import pytest

from ichfast.errors import StoreError
from ichfast.prepare.prepare import prepare_store
from ichfast.store.header import StoreHeader, write_header
from ichfast.store.raw_shards import npy_header
from ichfast.store.shards import NPY_HEADER_BYTES, Shard
from ichfast.store.store import Store
from ichfast.store.verify import verify_store
from ichfast.system.checksums import FIELD, with_checksum
from tests.conftest import contents, random_hu, write_dicom
from tests.store.conftest import FILES, SHARDS

READ_ON_OPENING = ("store.json", "slices.parquet", *SHARDS)


pytestmark = pytest.mark.usefixtures("units_of_four")

run = partial(prepare_store, labels=None, workers=1, keep_ids=True)


def slices_of(store: Path, name: str) -> dict[int, str]:
    """The ids of the slices in a shard, by row."""
    with Store(store) as opened:
        table, shards = opened.table, opened.header.shards
    numbers = [shard.name == Path(name).name for shard in shards]
    rows = table[np.array(numbers)[table["shard"]]]
    return dict(zip(rows["row_in_shard"], rows["slice_id"], strict=True))


# A flipped bit


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found_wherever_it_is(store: Path, name: str) -> None:
    file = store / name
    content = file.read_bytes()
    rng = np.random.default_rng(FILES.index(name))
    places = {0, len(content) - 1, *rng.integers(0, len(content), 6).tolist()}
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(flipped)
        problems = verify_store(store)
        assert problems, f"byte {place}"
        assert str(file) in problems[0] or "format version" in problems[0]
        assert not any("\n" in problem for problem in problems)
    file.write_bytes(content)
    assert verify_store(store) == []


@pytest.mark.parametrize("name", SHARDS)
def test_a_flipped_bit_of_a_slice_names_the_slice(store: Path, name: str) -> None:
    ids = slices_of(store, name)
    with Store(store) as opened:
        shard = next(s for s in opened.header.shards if s.name == Path(name).name)
    count, rows, columns = shard.shape(int(name[6:9]))
    content = (store / name).read_bytes()
    for row in range(count):
        first = NPY_HEADER_BYTES + row * rows * columns * 2
        for place in (first, first + rows * columns * 2 - 1):
            flipped = bytearray(content)
            flipped[place] ^= 128
            (store / name).write_bytes(flipped)
            (problem,) = verify_store(store)
            which = f"slice {ids[row]} (row {row})" if row in ids else "without a slice"
            assert f"{name}: " in problem
            assert which in problem


def test_one_row_belongs_to_no_slice(sound: Path) -> None:
    assert len(slices_of(sound, SHARDS[2])) == 1
    assert np.load(sound / SHARDS[2]).shape[0] == 2


@pytest.mark.parametrize("place", [0, 60, 200, NPY_HEADER_BYTES - 1])
def test_a_flipped_bit_of_a_header_hides_no_slice(store: Path, place: int) -> None:
    content = bytearray((store / SHARDS[1]).read_bytes())
    content[place] ^= 1
    content[-1] ^= 1
    (store / SHARDS[1]).write_bytes(content)
    of_header, of_slice = verify_store(store)
    assert "its header is not that of uint16" in of_header
    assert "slice ID_" in of_slice
    with Store(store) as opened, pytest.raises(StoreError, match="its header is not"):
        opened.slice_HW(0)


def test_without_a_table_no_slice_is_named_and_every_shard_is_read(store: Path) -> None:
    for name in ("slices.parquet", *SHARDS):
        content = bytearray((store / name).read_bytes())
        content[-1] ^= 1
        (store / name).write_bytes(content)
    problems = verify_store(store)
    assert len(problems) == 1 + len(SHARDS)
    assert all("a row does not match" in problem for problem in problems[1:])


# Something else in its place


def cut_one(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def cut_half(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def add_one(file: Path) -> None:
    with file.open("ab") as opened:
        opened.write(b"\n")


def add_a_hole(file: Path) -> None:
    os.truncate(file, file.stat().st_size + 2**28)


def remove(file: Path) -> None:
    file.unlink()


def make_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def make_loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file)


def make_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


DAMAGES = (
    *(cut_one, cut_half, empty, add_one, add_a_hole),
    *(remove, make_folder, make_loop, make_pipe),
)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_anything_in_the_place_of_a_file_is_found(
    store: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(store / name)
    problems = verify_store(store)
    assert problems
    assert not any("\n" in problem for problem in problems)
    if name in READ_ON_OPENING:
        with pytest.raises(StoreError) as caught:
            Store(store)
        assert "\n" not in str(caught.value)
    if name not in SHARDS:
        check_append_is_refused(store, tmp_path / "new")


def check_append_is_refused(store: Path, source: Path) -> None:
    source.mkdir()
    write_dicom(source / "a", "ID_9", hu_HW=random_hu(9))
    before = contents(store)
    with pytest.raises(StoreError) as caught:
        run([source], store, append=True)
    assert "\n" not in str(caught.value)
    assert contents(store) == before


# Hostile content


def numbers_in(document: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all integers in a JSON document."""
    if isinstance(document, dict):
        for name, value in document.items():
            yield from numbers_in(value, (*at, name))
    elif isinstance(document, list):
        for index, value in enumerate(document):
            yield from numbers_in(value, (*at, index))
    elif type(document) is int:
        yield at


@pytest.mark.parametrize("value", [2**63, 10**30, -1, 1e308, None, "1"])
def test_a_number_of_the_header_out_of_range_is_damage(
    store: Path, value: object
) -> None:
    content = (store / "store.json").read_text()
    places = list(numbers_in(json.loads(content)))
    assert len(places) > 30
    for place in places:
        document = part = json.loads(content)
        for step in place[:-1]:
            part = part[step]
        part[place[-1]] = value
        if place == (FIELD,):  # of the header itself
            text = json.dumps(document, indent=1) + "\n"
        else:
            del document[FIELD]
            text = with_checksum(document)
        (store / "store.json").write_text(text)
        assert verify_store(store), place
        with pytest.raises(StoreError) as caught:
            Store(store)
        assert "\n" not in str(caught.value), place


@pytest.mark.parametrize(
    "shape", [(2**62, 24, 32), (3, 24, 2**40), (-3, 24, 32), (3, 32, 24)]
)
def test_a_shard_that_claims_another_shape_is_not_mapped(
    store: Path, shape: tuple[int, int, int]
) -> None:
    for name in SHARDS:
        with (store / name).open("r+b") as file:
            file.write(npy_header(shape))
    assert len(verify_store(store)) == len(SHARDS)
    with Store(store) as opened:
        for index in range(len(opened)):
            with pytest.raises(StoreError, match="its header is not that of"):
                opened.slice_HW(index)


def seal(store: Path, **crc32c: int) -> None:
    """Write the header again, with other checksums."""
    document = json.loads((store / "store.json").read_text())
    document.pop("crc32c")
    shards = [
        Shard.from_json(shard, document["levels"], packed=False)
        for shard in document["shards"]
    ]
    write_header(store, StoreHeader(**{**document, "shards": shards, **crc32c}))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(500) + b"PAR1"])
def test_a_table_that_is_none_is_damage_even_with_its_checksum(
    store: Path, tmp_path: Path, content: bytes
) -> None:
    crc32c = google_crc32c.value(content)
    intact = (store / "slices.parquet").read_bytes()
    (store / "slices.parquet").write_bytes(content)
    seal(store, table_crc32c=crc32c)
    with pytest.raises(StoreError, match=r"slices.parquet is not a parquet table"):
        Store(store)
    (store / "slices.parquet").write_bytes(intact)
    (store / "journal" / "entries.parquet").write_bytes(content)
    seal(store, table_crc32c=google_crc32c.value(intact), entries_crc32c=crc32c)
    check_append_is_refused(store, tmp_path / "new")


@pytest.mark.parametrize(
    ("column", "value"),
    [("shard", 3), ("shard", -1), ("row_in_shard", 3), ("row_in_shard", 2**31 - 1)],
)
def test_a_table_that_points_elsewhere_is_damage(
    store: Path, column: str, value: int
) -> None:
    table = pd.read_parquet(store / "slices.parquet", dtype_backend="pyarrow")
    table.loc[2, column] = value
    table.to_parquet(store / "slices.parquet")
    content = (store / "slices.parquet").read_bytes()
    seal(store, table_crc32c=google_crc32c.value(content))
    with pytest.raises(StoreError, match=r"slices.parquet (points|has other)"):
        Store(store)
