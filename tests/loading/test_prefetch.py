"""Slices read ahead equal the store's, and nothing waits for a thread that hangs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ichfast.augment.reference import halve
from ichfast.errors import LoaderError, StoreError
from ichfast.loading import prefetch
from ichfast.loading.prefetch import (
    DaemonThreadPool,
    ReadAhead,
    SliceRequest,
    batches_ahead,
    divide,
    num_readers,
)
from ichfast.loading.store_level import StoreLevel
from ichfast.store.store import Store
from tests.loading.waiting import becomes_true


@pytest.fixture
def readers() -> Iterator[DaemonThreadPool]:
    two = DaemonThreadPool(2)
    yield two
    two.close()


class Held:
    """An object that a job refers to."""


def raise_for(held: Held) -> None:
    raise KeyError(held.__class__.__name__)


def is_gone(held: weakref.ref[Held]) -> bool:
    return held() is None


def test_jobs_run_in_parallel_and_the_future_raises_their_error(
    readers: DaemonThreadPool,
) -> None:
    meeting = threading.Barrier(2)
    for future in [readers.submit(partial(meeting.wait, 10)) for _ in range(2)]:
        future.result(10)
    with pytest.raises(KeyError, match="Held"):
        readers.submit(partial(raise_for, Held())).result(10)
    assert readers.submit(list).result(10) is None


def test_a_job_that_is_cancelled_before_it_starts_does_not_run(
    readers: DaemonThreadPool,
) -> None:
    done: list[int] = []
    go_on = threading.Event()
    busy = [readers.submit(partial(go_on.wait, 10)) for _ in range(2)]
    cancelled, other = (readers.submit(partial(done.append, k)) for k in range(2))
    assert cancelled.cancel()
    go_on.set()
    for future in (*busy, other):
        future.result(10)
    assert done == [1]


def test_a_job_that_has_run_keeps_nothing_alive(
    readers: DaemonThreadPool,
) -> None:
    for job in (id, raise_for):
        held = Held()
        gone = weakref.ref(held)
        future = readers.submit(partial(job, held))
        future.exception(10)
        del held, future
        assert becomes_true(partial(is_gone, gone))


@pytest.mark.parametrize("closed", [True, False])
def test_threads_end_when_their_pool_is_closed_or_collected(*, closed: bool) -> None:
    before = set(threading.enumerate())
    several = DaemonThreadPool(3)
    threads = set(threading.enumerate()) - before
    assert len(threads) == 3
    if closed:
        several.close()
        several.close()
    else:
        del several
    assert becomes_true(lambda: not any(thread.is_alive() for thread in threads))


@pytest.mark.slow
def test_a_process_ends_even_if_a_job_does_not() -> None:
    code = (
        "import threading; from ichfast.loading.prefetch import DaemonThreadPool; "
        "begun = threading.Event(); readers = DaemonThreadPool(1); "
        "readers.submit(lambda: (begun.set(), threading.Event().wait())); begun.wait()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)


Stored = npt.NDArray[np.uint16]


@pytest.fixture
def ahead(tiny_store: Store) -> Iterator[ReadAhead]:
    source = ReadAhead(StoreLevel(tiny_store, 512, "first"), pinned=False)
    yield source
    source.close()


def batch(*positions: int) -> SliceRequest:
    return SliceRequest.unhalved(np.array(positions, dtype=np.int64))


def test_batches_come_in_the_order_requested_and_as_stored(
    tiny_store: Store, ahead: ReadAhead
) -> None:
    wanted = [[batch(3, 14, 3), batch(0)], [batch(28, 15)], [batch(12)]]
    for feeds in wanted:
        ahead.request(feeds)
    for feeds in wanted:
        taken = ahead.take()
        assert len(taken) == len(feeds)
        for slices, asked in zip(taken, feeds, strict=True):
            for stored_HW, position in zip(slices, asked.positions_B, strict=True):
                np.testing.assert_array_equal(
                    stored_HW, tiny_store.slice_HW(int(position))
                )


def test_slices_of_any_shape_are_halved_as_often_as_requested(
    tiny_store: Store, ahead: ReadAhead
) -> None:
    positions_B = np.array([0, 13, 14, 0, 28])
    halvings_B = np.array([1, 2, 0, 3, 1])
    ahead.request(
        [
            SliceRequest(positions_B, halvings_B),
            SliceRequest(positions_B, halvings_B[::-1]),
        ]
    )
    first, second = ahead.take()
    for slices, times_B in ((first, halvings_B), (second, halvings_B[::-1])):
        for found_HW, position, times in zip(slices, positions_B, times_B, strict=True):
            expected_HW = tiny_store.slice_HW(int(position))
            for _ in range(times):
                expected_HW = halve(expected_HW)
            np.testing.assert_array_equal(found_HW, expected_HW)


def test_a_batch_of_one_shape_is_one_array_for_each_feed_without_a_copy(
    ahead: ReadAhead,
) -> None:
    ahead.request([batch(0, 1, 2), batch(3, 4, 5)])
    first_BHW, second_BHW = ahead.take()
    assert isinstance(first_BHW, np.ndarray)
    assert isinstance(second_BHW, np.ndarray)
    assert first_BHW.shape == second_BHW.shape == (3, 512, 512)
    assert first_BHW.base is second_BHW.base
    ahead.request([batch(0, 13)])
    (mixed,) = ahead.take()
    assert isinstance(mixed, list)


def test_slices_in_an_array_and_in_a_list_are_the_same() -> None:
    flat = np.arange(3 * 4 * 5 + 2, dtype=np.uint16)
    one_BHW = divide(flat[:60], np.array([[4, 5]] * 3))
    several = divide(flat, np.array([[4, 5]] * 3 + [[1, 2]]))
    assert isinstance(one_BHW, np.ndarray)
    assert isinstance(several, list)
    for in_one_HW, in_list_HW in zip(one_BHW, several[:3], strict=True):
        np.testing.assert_array_equal(in_one_HW, in_list_HW)
        assert np.shares_memory(in_one_HW, in_list_HW)


def test_memory_is_reused_once_released_and_not_before(
    tiny_store: Store, ahead: ReadAhead
) -> None:
    ahead.request([batch(0, 1)])
    ahead.request([batch(2, 3)])
    (first,) = ahead.take()
    (second,) = ahead.take()
    assert not np.shares_memory(first[0], second[0])
    ahead.release()
    ahead.request([batch(4)])
    (third,) = ahead.take()
    assert np.shares_memory(first[0], third[0])
    np.testing.assert_array_equal(second[1], tiny_store.slice_HW(3))


def test_a_discarded_batch_is_not_returned_and_its_memory_is_reused(
    tiny_store: Store, ahead: ReadAhead
) -> None:
    for _ in range(3):
        for first in range(0, 20, 5):
            ahead.request([batch(*range(first, first + 5))])
        ahead.take()
        ahead.discard()
    assert len(ahead._free) == 4
    ahead.request([batch(21)])
    ((stored_HW,),) = ahead.take()
    np.testing.assert_array_equal(stored_HW, tiny_store.slice_HW(21))


def test_taking_a_batch_of_a_missing_shard_raises_an_error_that_names_it(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(tiny_store_path, tmp_path / "store"))
    with Store(copied) as store:
        source = ReadAhead(StoreLevel(store, 256, "first"), pinned=False)
        source.request([batch(0)])
        source.take()
        (copied / "level-256" / "00001.npy").unlink()
        source.request([batch(1)])
        source.request([batch(28)])
        source.take()
        with pytest.raises(StoreError, match=r"cannot open .*level-256/00001\.npy: No"):
            source.take()
        source.close()


def test_a_wait_for_a_disk_that_does_not_respond_ends_with_an_error(
    ahead: ReadAhead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "READ_TIMEOUT_S", 0.05)
    go_on = threading.Event()
    read = os.preadv

    def hang(*arguments: object) -> int:
        go_on.wait(60)
        return read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "preadv", hang)
    ahead.request([batch(0)])
    with pytest.raises(LoaderError, match="does not respond: check it"):
        ahead.take()
    go_on.set()


def test_memory_that_a_discarded_read_still_writes_to_is_not_reused(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    begun, go_on, written = (threading.Event() for _ in range(3))
    read_into = Store.read_into

    def hang(
        store: Store, index: int, level: int, out_HW: Stored, **options: Any
    ) -> None:
        if index == 0:
            begun.set()
            go_on.wait(60)
        read_into(store, index, level, out_HW, **options)
        if index == 0:
            written.set()

    monkeypatch.setattr(Store, "read_into", hang)
    ahead = ReadAhead(StoreLevel(tiny_store, 512, "first"), pinned=False)
    ahead.request([batch(0)])
    assert begun.wait(60)
    with monkeypatch.context() as hurried:
        hurried.setattr(prefetch, "READ_TIMEOUT_S", 0.05)
        ahead.discard()
    assert not written.is_set()
    ahead.request([batch(14)])
    ((stored_HW,),) = ahead.take()
    go_on.set()
    assert written.wait(60)
    np.testing.assert_array_equal(stored_HW, tiny_store.slice_HW(14))
    ahead.close()


def test_a_few_batches_are_read_ahead_but_at_least_one() -> None:
    assert [batches_ahead(size) for size in (1, 64, 100, 200, 1000)] == [4, 4, 2, 1, 1]


@pytest.mark.parametrize(
    ("num_cores", "hot", "cold"), [(1, 1, 2), (2, 2, 4), (64, 8, 8)]
)
def test_one_thread_per_core_reads_or_two_where_each_waits_for_the_disk(
    num_cores: int, hot: int, cold: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(num_cores)))
    assert num_readers(past_cache=False) == hot
    assert num_readers(past_cache=True) == cold
