"""A loader reuses its memory, and frees memory, files and threads when closed."""

from __future__ import annotations

import gc
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ichfast.loading.config import DataConfig
from ichfast.loading.graph import pipeline_options
from ichfast.loading.loader import make_loader
from ichfast.loading.prefetch import ReadAhead, batches_ahead
from ichfast.store.store import Store
from tests.loading.waiting import becomes_true

pytestmark = pytest.mark.alone  # counts threads, files and memory

DATA = DataConfig(size=48, batch_size=6, level=256, windows=("brain",))


def everything(store: Store) -> npt.NDArray[np.int64]:
    return np.arange(len(store))


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["none", "host"])
def test_fifty_epochs_take_no_more_memory_and_no_more_files(
    tiny_store: Store, cache: str
) -> None:
    config = replace(DATA, cache=cache)
    with make_loader(
        tiny_store, everything(tiny_store), config, shuffle=True
    ) as loader:

        def run_epochs() -> None:
            for _ in range(50):
                for number, _ in enumerate(loader):
                    if loader._num_epochs % 2 and number == 1:
                        break  # half of the epochs are left early

        run_epochs()
        files, resident_bytes = num_open_files(), count_resident_bytes()
        run_epochs()
        assert num_open_files() == files
        assert count_resident_bytes() - resident_bytes < 4 * 2**20


def test_memory_of_slices_is_reused_within_an_epoch(tiny_store: Store) -> None:
    config = replace(DATA, batch_size=1)
    with make_loader(tiny_store, everything(tiny_store), config) as loader:
        assert len(list(loader)) == 29
        source = loader._feeds.source
        assert isinstance(source, ReadAhead)
        num_buffers = len(source._free)
    num_prepared = pipeline_options(1, on_gpu=False)["prefetch_queue_depth"]
    assert num_buffers <= batches_ahead(1) + num_prepared + 2


def test_an_epoch_left_early_is_not_read_to_its_end(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    read_into = Store.read_into

    def note(store: Store, index: int, *rest: Any, **options: Any) -> None:
        read.append(index)
        read_into(store, index, *rest, **options)

    monkeypatch.setattr(Store, "read_into", note)
    config = replace(DATA, batch_size=1)
    with make_loader(tiny_store, everything(tiny_store), config) as loader:
        next(loader.epoch(0))
        assert len(list(loader.epoch(0, first_batch=28))) == 1
    assert max(read[:-1]) < 20
    assert read[-1] == 28


def test_loaders_made_one_after_another_leak_no_file_and_no_thread(
    tiny_store: Store,
) -> None:
    def run_loader() -> None:
        with make_loader(tiny_store, everything(tiny_store), DATA) as loader:
            next(iter(loader))

    with make_loader(tiny_store, everything(tiny_store), DATA) as loader:
        assert len(list(loader)) == len(loader)  # opens every shard for good
    run_loader()
    files, threads = num_open_files(), threading.active_count()
    for _ in range(3):
        run_loader()
    assert num_open_files() <= files
    assert becomes_true(lambda: threading.active_count() <= threads)


def test_a_closed_loader_has_no_threads_even_while_it_is_referenced(
    tiny_store: Store,
) -> None:
    with make_loader(tiny_store, everything(tiny_store), DATA):
        pass  # the first loader starts threads that stay
    before = num_threads()
    with make_loader(tiny_store, everything(tiny_store), DATA) as loader:
        next(iter(loader))
        assert num_threads() > before + 1
    assert becomes_true(lambda: num_threads() <= before)


@pytest.mark.slow
def test_a_loader_that_was_not_closed_ends_when_it_is_collected(
    tiny_store: Store,
) -> None:
    """A notebook's cell makes a loader each time it runs."""

    def run_cell() -> None:
        batches = iter(make_loader(tiny_store, everything(tiny_store), DATA))
        next(batches)

    run_cell()
    gc.collect()
    files, threads = num_open_files(), num_threads()
    for _ in range(3):
        run_cell()
    gc.collect()
    assert becomes_true(lambda: num_threads() <= threads)
    assert num_open_files() <= files


def num_threads() -> int:
    """Count the threads of this process, those of C++ libraries included."""
    return len(list(Path("/proc/self/task").iterdir()))


def num_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def count_resident_bytes() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
