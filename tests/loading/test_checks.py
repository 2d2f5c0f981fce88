"""A loader compares slices with their checksums as often as `data.check` says."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ichfast.errors import LoaderError, StoreError
from ichfast.loading.cache import DeviceSlices
from ichfast.loading.config import DataConfig, measure_normalization
from ichfast.loading.loader import make_loader
from ichfast.loading.store_level import StoreLevel
from ichfast.store.shards import NPY_HEADER_BYTES
from ichfast.store.store import Store
from ichfast.system.ranks import Ranks
from tests.mutations import NUM_MUTATIONS, mutations

DATA = DataConfig(size=48, batch_size=4, level=256)
"""Slices are halved twice, which hides the lowest bit of most pixels."""

DAMAGED = 9
"""Store position of the slice that is damaged: in its series, with neighbours."""


@pytest.fixture
def copied(tiny_store_path: Path, tmp_path: Path) -> Iterator[Store]:
    """A store whose files a test may damage, open."""
    with Store(shutil.copytree(tiny_store_path, tmp_path / "store")) as store:
        yield store


def place_of(store: Store, position: int, level: int) -> tuple[Path, slice]:
    """The file of a slice, and its bytes in it."""
    row = store.table.iloc[position]
    shard = store.header.shards[row["shard"]]
    num_bytes = store.slice_HW(position, level, check=False).nbytes
    start = NPY_HEADER_BYTES + row["row_in_shard"] * num_bytes
    file = store.path / f"level-{level}" / shard.name
    return file, slice(start, start + num_bytes)


def damage(store: Store, position: int, level: int) -> None:
    """Flip the lowest bit of a slice's last pixel."""
    file, place = place_of(store, position, level)
    content = bytearray(file.read_bytes())
    content[place.stop - 2] ^= 1
    file.write_bytes(content)


def load(store: Store, config: DataConfig, num_epochs: int = 1, **options: Any) -> None:
    """Load all slices of a store."""
    with make_loader(store, np.arange(len(store)), config, **options) as loader:
        for epoch in range(num_epochs):
            for _ in loader.epoch(epoch):
                pass


@pytest.mark.parametrize("check", ["first", "always"])
@pytest.mark.parametrize("level", [512, 256])
@pytest.mark.parametrize("cache", ["none", "host", "device"])
def test_a_damaged_slice_ends_the_epoch_before_it_is_halved_or_kept(
    copied: Store, check: str, level: int, cache: str
) -> None:
    damage(copied, DAMAGED, level)
    config = replace(DATA, check=check, level=level, cache=cache)
    with pytest.raises(StoreError, match=rf"level-{level}/\S+ is damaged: row 9 "):
        load(copied, config)


def test_a_damaged_slice_ends_the_filling_of_a_device(copied: Store) -> None:
    damage(copied, DAMAGED, 256)
    level = StoreLevel(copied, 256, "first")
    with pytest.raises(StoreError, match="is damaged: row 9 "):
        DeviceSlices(
            level,
            np.arange(20),
            packed=False,
            device=torch.device("cpu"),
            ranks=Ranks(),
        )


def test_a_damaged_neighbour_outside_the_split_is_refused(copied: Store) -> None:
    damage(copied, DAMAGED, 256)
    config = replace(DATA, neighbours=1, batch_size=1)
    for slices_N in ([DAMAGED - 1], [DAMAGED + 1]):
        with (
            make_loader(copied, slices_N, config) as loader,
            pytest.raises(StoreError, match="is damaged: row 9 "),
        ):
            list(loader)
    with make_loader(copied, [DAMAGED + 2], config) as loader:
        assert len(list(loader)) == 1


@pytest.mark.parametrize(
    ("check", "refused"), [("first", False), ("always", True), ("never", False)]
)
def test_damage_after_the_first_epoch_is_seen_by_always_alone(
    copied: Store, check: str, *, refused: bool
) -> None:
    slices_N = np.arange(len(copied))
    with make_loader(copied, slices_N, replace(DATA, check=check)) as loader:
        assert len(list(loader)) == 8
        damage(copied, DAMAGED, 256)
        if refused:
            with pytest.raises(StoreError, match="is damaged: row 9 "):
                list(loader)
        else:
            assert len(list(loader)) == 8


def test_a_loader_that_never_checks_reads_what_is_there(copied: Store) -> None:
    damage(copied, DAMAGED, 256)
    load(copied, replace(DATA, check="never"))
    with pytest.raises(StoreError, match="is damaged: row 9 "):
        copied.slice_HW(DAMAGED, 256)


def test_slices_that_decide_the_normalization_are_compared_unless_never(
    copied: Store,
) -> None:
    damage(copied, DAMAGED, 256)
    config = replace(DATA, normalize="data")
    slices_N = np.arange(len(copied))
    with pytest.raises(StoreError, match="is damaged: row 9 "):
        measure_normalization(copied, slices_N, config)
    measure_normalization(copied, slices_N, replace(config, check="never"))


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions of the slices that are compared, in the order of reading."""
    positions: list[int] = []
    read_into = Store.read_into

    def note(store: Store, index: int, *rest: Any, check: bool, **options: Any) -> None:
        positions.extend([index] * check)
        read_into(store, index, *rest, check=check, **options)

    monkeypatch.setattr(Store, "read_into", note)
    return positions


@pytest.mark.parametrize("cache", ["none", "host"])
@pytest.mark.parametrize(
    ("check", "uncached"), [("first", 1), ("always", 3), ("never", 0)]
)
def test_a_slice_is_compared_as_often_as_read_or_once_or_never(
    tiny_store: Store, checked: list[int], check: str, cache: str, uncached: int
) -> None:
    config = replace(DATA, check=check, cache=cache, batch_size=29)
    load(tiny_store, config, num_epochs=3, shuffle=True)
    times = uncached if cache == "none" else min(uncached, 1)
    assert sorted(checked) == sorted(times * list(range(29)))


def test_another_size_compares_nothing_again(
    tiny_store: Store, checked: list[int]
) -> None:
    with make_loader(tiny_store, np.arange(29), replace(DATA, size=100)) as loader:
        list(loader)
        loader.set_size(32)
        list(loader)
    assert sorted(checked) == list(range(29))


def test_another_loader_compares_again(tiny_store: Store, checked: list[int]) -> None:
    for _ in range(2):
        load(tiny_store, DATA)
    assert len(checked) == 2 * 29


def test_a_damaged_slice_is_refused_each_time(copied: Store) -> None:
    damage(copied, DAMAGED, 256)
    level = StoreLevel(copied, 256, "first")
    out_HW = np.empty((256, 256), np.uint16)
    for _ in range(2):
        with pytest.raises(StoreError, match="is damaged: row 9 "):
            level.read_into(DAMAGED, 0, out_HW)


def test_when_to_check_is_first_always_or_never() -> None:
    with pytest.raises(
        LoaderError, match=r"^data\.check is first, always or never, got 'twice'$"
    ):
        replace(DATA, check="twice")


@pytest.mark.slow
@pytest.mark.parametrize("level", [512, 256])
def test_no_damaged_slice_comes_out_of_a_loader(copied: Store, level: int) -> None:
    config = replace(DATA, batch_size=1, level=level, size=32)
    file, place = place_of(copied, DAMAGED, level)
    before = file.read_bytes()[place]
    num_refused = 0
    for mutated in mutations(before, level):
        after = mutated[: len(before)].ljust(len(before), b"\0")
        with file.open("r+b") as opened:
            opened.seek(place.start)
            opened.write(after)
        with make_loader(copied, [DAMAGED], config) as loader:
            if after == before:  # the byte that was added is cut off again
                list(loader)
                continue
            with pytest.raises(StoreError, match="is damaged: row 9 "):
                list(loader)
        num_refused += 1
    assert num_refused > 0.9 * NUM_MUTATIONS
