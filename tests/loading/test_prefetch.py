"""Threads that read do what they are given, and nothing waits for one that hangs."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from ichfast.readers import Readers


@pytest.fixture
def readers() -> Iterator[Readers]:
    two = Readers(2)
    yield two
    two.close()


class Shelf:
    """Something that a job holds."""


def raise_for(shelf: Shelf) -> None:
    raise KeyError(shelf.__class__.__name__)


def is_gone(shelf: weakref.ref[Shelf]) -> bool:
    return shelf() is None


def until(holds: Callable[[], bool]) -> bool:
    """Whether something holds within 10 s."""
    end_s = time.monotonic() + 10
    while not holds() and time.monotonic() < end_s:
        time.sleep(0.001)
    return holds()


def test_jobs_are_done_side_by_side_and_errors_reach_whoever_waits(
    readers: Readers,
) -> None:
    meeting = threading.Barrier(2)
    for future in [readers.submit(partial(meeting.wait, 10)) for _ in range(2)]:
        future.result(10)
    with pytest.raises(KeyError, match="Shelf"):
        readers.submit(partial(raise_for, Shelf())).result(10)
    assert readers.submit(list).result(10) is None


def test_a_job_that_is_cancelled_before_its_turn_is_not_done(readers: Readers) -> None:
    done: list[int] = []
    answers = threading.Event()
    busy = [readers.submit(partial(answers.wait, 10)) for _ in range(2)]
    cancelled, other = (readers.submit(partial(done.append, k)) for k in range(2))
    assert cancelled.cancel()
    answers.set()
    for future in (*busy, other):
        future.result(10)
    assert done == [1]


def test_nothing_holds_what_a_job_held_once_it_is_done(readers: Readers) -> None:
    for job in (id, raise_for):
        shelf = Shelf()
        gone = weakref.ref(shelf)
        future = readers.submit(partial(job, shelf))
        future.exception(10)
        del shelf, future
        assert until(partial(is_gone, gone))


@pytest.mark.parametrize("closed", [True, False])
def test_threads_end_when_they_are_closed_or_their_owner_is_gone(
    *, closed: bool
) -> None:
    before = set(threading.enumerate())
    several = Readers(3)
    threads = set(threading.enumerate()) - before
    assert len(threads) == 3
    if closed:
        several.close()
        several.close()
    else:
        del several
    assert until(lambda: not any(thread.is_alive() for thread in threads))


def test_a_process_ends_though_a_job_does_not() -> None:
    code = (
        "import threading; from ichfast.readers import Readers; "
        "begun = threading.Event(); readers = Readers(1); "
        "readers.submit(lambda: (begun.set(), threading.Event().wait())); begun.wait()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)
