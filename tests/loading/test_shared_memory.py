"""The ranks of a machine share one copy of the slices they keep, over gloo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ichfast.augment.config import EXP_30
from ichfast.errors import LoaderError, StoreError
from ichfast.loading import shared_memory
from ichfast.loading.config import DataConfig
from ichfast.loading.loader import make_loader
from ichfast.loading.shared_memory import share_memory
from ichfast.store.store import Store
from ichfast.system.ranks import Ranks
from tests.loading.contracts import same_images
from tests.runs.rank_processes import run_ranks


def fill(ranks: Ranks, num_bytes: int) -> shared_memory.SharedMemory:
    """Fill this rank's part with its number."""
    with share_memory(num_bytes, ranks) as shared:
        shared.memory[shared.own_part(num_bytes)] = ranks.rank
    return shared


def fill_together(ranks: Ranks) -> None:
    shared = fill(ranks, 1001)
    assert shared.memory.tolist() == [0] * 500 + [1] * 501
    ranks.gather(None)  # both ranks have read it
    shared.memory[ranks.rank] = 7
    ranks.gather(None)
    assert shared.memory[:2].tolist() == [7, 7]
    assert "memfd:ichfast" in Path("/proc/self/maps").read_text()
    del shared
    assert "memfd:ichfast" not in Path("/proc/self/maps").read_text()
    open_files = [file.resolve() for file in Path("/proc/self/fd").iterdir()]
    assert not any("memfd:ichfast" in str(file) for file in open_files)


def fill_apart(ranks: Ranks) -> None:
    shared_memory._machine = lambda: (f"machine {ranks.rank}", 0)
    assert fill(ranks, 5).memory.tolist() == [ranks.rank] * 5


def fill_in_vain(ranks: Ranks) -> None:
    with share_memory(5, ranks):
        if ranks.rank == 1:
            raise StoreError("its reason")


@pytest.mark.slow
def test_ranks_of_a_machine_fill_one_memory_together() -> None:
    assert run_ranks(2, fill_together) == ["", ""]


@pytest.mark.slow
def test_ranks_of_two_machines_have_one_memory_each() -> None:
    assert run_ranks(2, fill_apart) == ["", ""]


@pytest.mark.slow
def test_a_rank_that_fails_to_fill_its_part_ends_the_others() -> None:
    other, own = run_ranks(2, fill_in_vain)
    assert own == "StoreError: rank 1: its reason"
    assert other is not None
    assert other.startswith("TrainError: rank 0 lost another rank")


def test_a_single_rank_gets_ordinary_memory() -> None:
    shared = fill(Ranks(), 5)
    assert shared.memory.tolist() == [0] * 5
    assert (shared.number, shared.count) == (0, 1)


def test_ranks_without_a_process_group_are_refused() -> None:
    with (
        pytest.raises(LoaderError, match="call init_process_group before"),
        share_memory(5, Ranks(1, 2)),
    ):
        pass


class CountingStore(Store):
    """A store that counts what is read from it, and what is compared."""

    num_read = num_checked = 0

    def read_into(self, *place: Any, check: bool = True, **options: Any) -> None:
        """Read a slice, and count it."""
        self.num_read += 1
        self.num_checked += check
        super().read_into(*place, check=check, **options)

    def read_record_into(self, *place: Any) -> None:
        """Read a record, and count it."""
        self.num_read += 1
        self.num_checked += 1
        super().read_record_into(*place)


def load_together(ranks: Ranks, store_path: Path, num_slices: int) -> None:
    plain = DataConfig(size=32, batch_size=2, neighbours=1)
    for shuffle in (True, False):
        batches = []
        store = CountingStore(store_path)
        with store:
            for config in (plain, replace(plain, cache="host")):
                store.num_read = store.num_checked = 0
                with make_loader(
                    store,
                    np.arange(num_slices),
                    config,
                    augment=EXP_30,
                    shuffle=shuffle,
                    ranks=ranks,
                ) as loader:
                    batches.append([*loader.epoch(0), *loader.epoch(1)])
            # The last slice has a neighbour outside the split.
            assert sum(ranks.gather(store.num_read)) == num_slices + 1
            assert sum(ranks.gather(store.num_checked)) == num_slices + 1
        for without, kept in zip(*batches, strict=True):
            assert without.indices_B.tolist() == kept.indices_B.tolist()
            assert same_images(without, kept)


@pytest.mark.slow
@pytest.mark.parametrize(("packed", "num_slices"), [(False, 28), (True, 5)])
def test_ranks_read_each_slice_once_and_give_the_batches_of_no_cache(
    tiny_store_path: Path, packed_store_path: Path, num_slices: int, *, packed: bool
) -> None:
    path = packed_store_path if packed else tiny_store_path
    assert run_ranks(2, load_together, path, num_slices) == ["", ""]
