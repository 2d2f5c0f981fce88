"""The wait for data is measured, and a long one is reported once."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from ichfast.training import meters
from ichfast.training.meters import (
    WARM_UP,
    WINDOW,
    EpochTimer,
    LoaderWatch,
    LossTrace,
    WaitMeter,
)

CPU = torch.device("cpu")


class Clock:
    """Stands in for the module `time`: it moves only when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        fake = SimpleNamespace(perf_counter=lambda: self.now_s)
        monkeypatch.setattr(meters, "time", fake)


def watch(wait_share: float, num_batches: int, first_wait_s: float = 0.0) -> None:
    """Note batches of one second each, of which a share is spent waiting."""
    watched = LoaderWatch()
    for done in range(1, num_batches + 1):
        elapsed_s = done + first_wait_s
        watched.note(elapsed_s=elapsed_s, waited_s=wait_share * done + first_wait_s)


def test_a_loader_that_is_the_limit_is_reported_once_with_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch(0.43, 10 * (WARM_UP + WINDOW))
    (record,) = caplog.records
    assert "the loader is the limit: 43 % of the time" in record.getMessage()
    assert "--set data.level=256" in record.getMessage()


@pytest.mark.parametrize(
    ("wait_share", "num_batches", "first_wait_s"),
    [(0.1, 500, 0.0), (0.9, WARM_UP + WINDOW - 1, 0.0), (0.1, 500, 1000.0)],
    ids=["short waits", "too few batches to tell", "a slow start"],
)
def test_no_warning_comes_from(
    caplog: pytest.LogCaptureFixture,
    wait_share: float,
    num_batches: int,
    first_wait_s: float,
) -> None:
    with caplog.at_level(logging.INFO):
        watch(wait_share, num_batches, first_wait_s)
    assert caplog.records == []


def test_the_time_of_earlier_epochs_counts(caplog: pytest.LogCaptureFixture) -> None:
    watched = LoaderWatch()
    for _ in range((WARM_UP + WINDOW) // 2):
        for done in (1, 2):
            watched.note(elapsed_s=done, waited_s=0.5 * done)
        watched.end_epoch(elapsed_s=2.0, waited_s=1.0)
    assert "50 % of the time of 60 batches" in caplog.text


def test_only_what_is_wrapped_counts_as_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, meter = Clock(monkeypatch), WaitMeter(CPU)
    assert meter.seconds() == 0
    for _ in range(2):
        with meter.waiting():
            clock.now_s += 0.25
        clock.now_s += 2.0
    assert meter.seconds() == 0.5


def test_an_epoch_is_timed_for_all_ranks_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    timer = EpochTimer(CPU, LoaderWatch())
    for _ in range(2):
        with timer.waiting():
            clock.now_s += 1.0
        clock.now_s += 3.0
        timer.add(num_slices=8)
    assert timer.wait_share() == 0.25
    assert timer.finish(world_size=3) == {
        "slices_per_s": 6.0, "seconds": 8.0, "wait_share": 0.25
    }  # fmt: skip


def test_losses_are_read_once_their_copy_has_arrived(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []

    class FakeEvent:
        """Stands in for an event of a GPU."""

        def __init__(self, *, blocking: bool) -> None:
            assert blocking  # else a host that waits keeps a core busy

        def record(self) -> None:
            calls.append("record")

        def synchronize(self) -> None:
            calls.append(f"synchronize, {len(trace.values)} read")

    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    trace = LossTrace(torch.device("cuda"))
    for loss in (0.5, 0.25):
        trace.add(torch.tensor(loss), torch.arange(2))
        assert trace.read_late() is None
    assert trace.values == [0.5]
    assert trace.read_all() is None
    assert trace.values == [0.5, 0.25]
    assert calls == [
        "record", "synchronize, 0 read", "record", "synchronize, 1 read"
    ]  # fmt: skip
