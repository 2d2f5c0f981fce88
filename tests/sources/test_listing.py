"""Entries are kept in one sorted table."""

from __future__ import annotations

import pickle
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ichfast.sources.listing import Entry, Listing
from ichfast.sources.remote import Remote
from ichfast.sources.walk import Found

FOLDER = Path("heads")


def make_listing(*keys: str) -> Listing:
    return Listing.of([[Found(FOLDER, key, "", key, len(key)) for key in keys]])


def keys_of(entries: Listing) -> list[str]:
    return [entry.key for entry in entries]


def test_entries_come_back_as_they_were_found_in_order() -> None:
    archive, url = Path("a.zip"), Remote("s3://b/k?token=word", "b/k")
    listing = Listing.of(
        [
            [Found(archive, "", "y", "a.zip/m", 2, 9), Found(FOLDER, "1", "", "1", 3)],
            [],
            [Found(url, "x/1", "", "x/1", 4), Found(archive, "", "x", "a.zip/m", 2, 5)],
        ]
    )
    assert list(listing) == [
        Entry(0, FOLDER / "1", "", "1", 3, number=0),
        Entry(0, archive, "y", "a.zip/m", 2, 9, number=1),
        Entry(2, archive, "x", "a.zip/m", 2, 5, number=0),
        Entry(2, Remote(url.url, "b/k/x/1"), "", "x/1", 4, number=1),
    ]
    assert listing.num_bytes == 2 + 3 + 4 + 2


def test_keys_are_sorted_by_code_point() -> None:
    keys = ["é", "z", "\U0001f9e0", "Z", "a/b", "a", "a.b", "ﬀ"]
    assert keys_of(make_listing(*keys)) == sorted(keys)


def test_entries_are_those_of_a_plain_sort() -> None:
    draw = random.Random(3)
    letters = "aB/.-~\u00e9\ufb00\uffff\U0001f9e0"
    found: list[list[Found]] = [[], [], []]
    for _ in range(3000):
        home = Path(draw.choice(("f", "g.zip")))
        key = "".join(draw.choices(letters, k=draw.randrange(1, 5)))
        file = "" if home.suffix else f"{key}{draw.randrange(99)}"
        offset = draw.randrange(2**40) if home.suffix else -1
        found[draw.choice((0, 2))].append(
            Found(home, file, "" if file else key, key, draw.randrange(2**40), offset)
        )
    expected: list[Entry] = []
    for source, files in enumerate(found):
        in_order = sorted(files, key=lambda row: (row.key, row.offset, row.file))
        expected += [
            Entry(source, row.home / row.file, row.member, *row[3:], number=number)
            for number, row in enumerate(in_order)
        ]
    listing = Listing.of(found)
    assert list(listing) == expected
    assert [entry.key for entry in listing[2000:1000:-7]] == [
        entry.key for entry in expected[2000:1000:-7]
    ]


def test_names_that_are_not_utf8_survive() -> None:
    file = "\udcff.dcm"
    listing = Listing.of([[Found(FOLDER, file, file, "shown", 1)]])
    [entry] = pickle.loads(pickle.dumps(listing))
    assert (entry.container, entry.member) == (FOLDER / file, file)


def test_indices_and_slices_work_as_in_a_list() -> None:
    listing = make_listing(*"abcdefgh")
    as_list = list(listing)
    for part in (slice(2, 5), slice(5, 2), slice(None, None, -2), slice(-3, 99)):
        assert list(listing[part]) == as_list[part]
    for index in (0, 7, -1, -8, np.int64(3)):
        assert listing[index] == as_list[index]
    for index in (8, -9):
        with pytest.raises(IndexError):
            listing[index]
    assert keys_of(listing.take([3, 0])) == ["d", "a"]
    assert keys_of(listing.select(np.arange(8) % 3 == 0)) == ["a", "d", "g"]


def test_a_part_keeps_its_numbers_and_pickles_without_the_rest() -> None:
    listing = Listing.of(
        [Found(Path(f"f{k}"), "1", "", f"f{k:05}/1", k)] for k in range(5000)
    )
    whole = Listing.of(
        [[Found(Path(f"f{k}"), "1", "", f"f{k:05}/1", k) for k in range(5000)]]
    )
    assert [entry.number for entry in whole[4000:4003]] == [4000, 4001, 4002]
    assert {entry.number for entry in listing} == {0}
    packed = pickle.dumps(whole[4000:4010])
    assert list(pickle.loads(packed)) == list(whole[4000:4010])
    assert len(packed) < 5_000


def test_a_place_is_an_absolute_path_or_a_url_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = [
        Found(Path("a.zip"), "", "m", "a.zip/m", 1, 0),
        Found(Remote("s3://b/k?token=word", "b/k"), "x", "", "b", 1),
        Found(FOLDER, "1", "", "c", 1),
        Found(Path("/"), "1", "", "d", 1),
    ]
    listing = Listing.of([found])
    assert list(listing.places()) == [
        f"{tmp_path}/a.zip",
        "s3://b/k\0b/k/x",
        f"{tmp_path}/heads/1",
        "/1",
    ]
    assert listing.absolute()[2].container == tmp_path / "heads" / "1"


def test_a_file_costs_few_bytes() -> None:
    def walk() -> Iterator[Found]:
        for k in range(20_000):
            yield Found(FOLDER, f"ID_{k:09}.dcm", "", f"ID_{k:09}.dcm", 500_000)

    tracemalloc.start()
    try:
        listing = Listing.of([walk()])
        objects, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(listing) == 20_000
    assert objects < 20 * len(listing)  # the table is Arrow's memory
    assert len(pickle.dumps(listing)) < 90 * len(listing)
