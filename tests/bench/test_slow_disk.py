"""A disk held to a rate: the same for large and small reads, and for any threads."""

from __future__ import annotations

import os
from pathlib import Path
from time import monotonic

import pytest

from bench.harness.slow_disk import BURST_S, TokenBucket, slow_disk


class Clock:
    """A clock that shows how long was slept, and is late by a share of each sleep."""

    def __init__(self, *, late: float = 0.0) -> None:
        self.now_s = 100.0
        self._late = late

    def read(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now_s += seconds * (1 + self._late)


def read_all(num_bytes: int, piece: int, *, late: float = 0.0) -> float:
    """Read some bytes in pieces, and return the seconds that it took."""
    clock = Clock(late=late)
    bucket = TokenBucket(1e6, clock=clock.read, sleep=clock.sleep)
    for _ in range(num_bytes // piece):
        bucket.wait(bucket.take(piece))
    return clock.now_s - 100.0


@pytest.mark.parametrize("piece", [100, 1_000, 250_000])
def test_small_and_large_reads_get_the_same_rate(piece: int) -> None:
    assert read_all(1_000_000, piece) == pytest.approx(1.0)


def test_a_thread_that_wakes_up_late_loses_nothing() -> None:
    assert read_all(1_000_000, 1_000, late=0.5) == pytest.approx(1.0, rel=1e-3)


def test_bytes_asked_for_by_several_threads_pass_one_after_the_other() -> None:
    clock = Clock()
    bucket = TokenBucket(1e6, clock=clock.read, sleep=clock.sleep)
    passed_s = [bucket.take(num_bytes) for num_bytes in (1_000, 500, 4_000)]
    assert passed_s == pytest.approx([100.001, 100.0015, 100.0055])


def test_idle_time_is_lost_but_for_a_burst() -> None:
    clock = Clock()
    bucket = TokenBucket(1e6, clock=clock.read, sleep=clock.sleep)
    clock.now_s += 60.0
    assert bucket.take(2_000) == pytest.approx(160.0 - BURST_S + 0.002)


def test_a_turn_gets_nothing_that_was_done_before_it() -> None:
    clock = Clock()
    bucket = TokenBucket(1e6, clock=clock.read, sleep=clock.sleep)
    clock.now_s += 60.0
    bucket.begin()
    assert bucket.take(2_000) == pytest.approx(160.002)


def test_what_is_read_is_what_the_file_has_and_reads_are_fast_again_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(
        TokenBucket, "wait", lambda _, until_s: waited.append(until_s - monotonic())
    )
    (tmp_path / "file").write_bytes(bytes(range(200)))
    usual = os.preadv
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    first, second = bytearray(50), bytearray(60)
    try:
        with slow_disk(100.0):
            assert os.preadv(descriptor, [first, second], 20) == 110
        with pytest.raises(OSError, match="Bad file"), slow_disk(100.0):
            os.preadv(-1, [first], 0)
    finally:
        os.close(descriptor)
    assert bytes(first + second) == bytes(range(20, 130))
    assert waited == [pytest.approx(1.1, abs=0.1)]
    assert os.preadv is usual
