"""Memory that a GPU reads is not written before it has been read: shown without a GPU.

Events of CUDA are replaced by fakes that record what is done with them, and when.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ichfast.errors import LoaderError
from ichfast.loading import prefetch
from ichfast.loading.cache import HostSlices
from ichfast.loading.loader import GraphRunner
from ichfast.loading.prefetch import ReadAhead, SliceRequest
from ichfast.loading.store_level import StoreLevel
from ichfast.store.store import Store
from ichfast.system.memory import empty_bytes
from ichfast.system.ranks import Ranks
from tests.loading.waiting import becomes_true

LIMIT_S = 60.0


class FakeEvent:
    """An event of a GPU that is done when `done` is set."""

    log: list[str]
    done: threading.Event

    def __init__(self, *, blocking: bool = False) -> None:
        assert blocking, "a thread that waits would spin"

    def record(self) -> None:
        self.log.append("mark")

    def synchronize(self) -> None:
        self.log.append("wait")
        assert self.done.wait(LIMIT_S)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeEvent]]:
    """Replace CUDA's events and page-locked memory."""
    monkeypatch.setattr(FakeEvent, "log", [], raising=False)
    monkeypatch.setattr(FakeEvent, "done", threading.Event(), raising=False)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(prefetch, "_pinned_bytes", empty_bytes)
    yield FakeEvent
    FakeEvent.done.set()


def read_from_disk(store: Store) -> ReadAhead:
    return ReadAhead(StoreLevel(store, 256, "first"), pinned=True)


def keep_on_host(store: Store) -> ReadAhead:
    kept_R = np.arange(len(store))
    return HostSlices(
        StoreLevel(store, 256, "first"),
        kept_R,
        packed=False,
        pinned=True,
        ranks=Ranks(),
    )


@pytest.mark.parametrize("make", [read_from_disk, keep_on_host])
def test_a_buffer_is_written_again_only_after_the_gpu_has_read_it(
    tiny_store: Store,
    events: type[FakeEvent],
    make: Callable[[Store], ReadAhead],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = make(tiny_store)
    fill = ReadAhead._fill

    def note(source: ReadAhead, *job: Any) -> None:
        fill(source, *job)
        events.log.append("write")

    monkeypatch.setattr(ReadAhead, "_fill", note)
    with closing(source):
        source.request([SliceRequest.unhalved(np.arange(8))])
        (first_BHW,) = source.take()
        num_jobs = len(events.log)
        assert set(events.log) == {"write"}
        source.release()
        source.request([SliceRequest.unhalved(np.arange(8, 16))])
        assert becomes_true(lambda: events.log.count("wait") == num_jobs)
        assert events.log[num_jobs:] == ["mark"] + ["wait"] * num_jobs
        np.testing.assert_array_equal(first_BHW[7], tiny_store.slice_HW(7, 256))
        events.done.set()
        (second_BHW,) = source.take()
        assert np.shares_memory(np.asarray(first_BHW), np.asarray(second_BHW))
        assert events.log[-num_jobs:] == ["write"] * num_jobs
        np.testing.assert_array_equal(second_BHW[7], tiny_store.slice_HW(15, 256))


@pytest.mark.parametrize("make", [read_from_disk, keep_on_host])
def test_closing_waits_for_the_gpu_before_the_memory_is_freed(
    tiny_store: Store, events: type[FakeEvent], make: Callable[[Store], ReadAhead]
) -> None:
    source = make(tiny_store)
    source.request([SliceRequest.unhalved(np.arange(4))])
    source.take()
    closing_thread = threading.Thread(target=source.close)
    closing_thread.start()
    assert becomes_true(lambda: "wait" in events.log)
    assert closing_thread.is_alive()
    events.done.set()
    closing_thread.join(LIMIT_S)
    assert not closing_thread.is_alive()
    assert events.log == ["mark", "wait"]


class FakeFeeds:
    """The feeds of a loader as `GraphRunner` uses them."""

    columns = slices = None

    def __init__(self, log: list[Any]) -> None:
        self.log = log
        self.source = self
        self.schedule = SimpleNamespace(running=True)

    def release(self) -> None:
        self.log.append("release")

    def discard(self) -> None:
        raise LoaderError("3 packed slices were damaged")

    def close(self) -> None:
        self.log.append("close")


class FakePipeline:
    """A pipeline of DALI that records the streams it is given."""

    def __init__(self, log: list[Any]) -> None:
        self.log = log

    def build(self) -> None:
        self.log.append("build")

    def reset(self) -> None:
        self.log.append("reset")

    def run(self, stream: object) -> tuple[()]:
        self.log.append(stream)
        return ()

    def _shutdown(self) -> None:
        self.log.append("shutdown")


def test_batches_come_out_on_torchs_stream_and_then_release_their_slices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[Any] = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "torch's stream")
    feeds: Any = FakeFeeds(log)
    runner = GraphRunner(lambda *_: FakePipeline(log), feeds, on_gpu=True)
    runner.run()
    runner.close()
    assert log == ["build", "torch's stream", "release", "shutdown", "close"]


def test_damage_that_is_found_at_the_end_of_an_epoch_closes_the_loader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def end(*_: object) -> None:
        raise StopIteration

    log: list[Any] = []
    monkeypatch.setattr(FakePipeline, "run", end)
    feeds: Any = FakeFeeds(log)
    runner = GraphRunner(lambda *_: FakePipeline(log), feeds, on_gpu=False)
    with pytest.raises(LoaderError, match="3 packed slices were damaged"):
        runner.run()
    assert runner.closed
    assert not feeds.schedule.running
    assert log == ["build", "reset", "shutdown", "close"]
