"""A store that is sent to another process reads the same slices there."""

from __future__ import annotations

import multiprocessing
import pickle
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ichfast.errors import StoreError
from ichfast.store.store import Store


def read_all(store: Store) -> list[bytes]:
    return [
        store.slice_HW(index, level).tobytes()
        for index in range(len(store))
        for level in store.levels
    ]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_store_that_was_read_is_read_by_another_process(
    tiny_store: Store, method: str
) -> None:
    here = read_all(tiny_store)
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(read_all, tiny_store).result(60) == here


def test_a_pickled_store_opens_its_shards_itself(tiny_store_path: Path) -> None:
    with Store(tiny_store_path) as store:
        expected_HW = store.slice_HW(5)
        pickled = pickle.dumps(store)
    with (tiny_store_path / "store.json").open():  # takes the shard's old number
        np.testing.assert_array_equal(pickle.loads(pickled).slice_HW(5), expected_HW)


def test_a_pickled_store_may_open_as_many_files(tiny_store: Store) -> None:
    pickled = pickle.dumps(tiny_store)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    try:
        pickle.loads(pickled)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 1024
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_closed_store_stays_closed(tiny_store_path: Path) -> None:
    store = Store(tiny_store_path)
    store.close()
    with pytest.raises(StoreError, match="was closed; open it again"):
        pickle.loads(pickle.dumps(store)).slice_HW(0)
