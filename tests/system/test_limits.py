"""A call in another process gives its items, its error, or a `LimitError`."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ichfast.system.limits import (
    BATCH_ITEMS,
    LimitedProcess,
    LimitError,
    extend_timer,
)

MIB = 2**20


@pytest.fixture
def process() -> Iterator[LimitedProcess]:
    with LimitedProcess(extra_bytes=64 * MIB, timeout_s=0.5) as process:
        yield process


def count(stop: int) -> Iterator[tuple[int, int]]:
    for number in range(stop):
        yield number, os.getpid()


def fail_after(num_items: int, error: Exception) -> Iterator[int]:
    yield from range(num_items)
    raise error


def allocate(num_bytes: int) -> Iterator[int]:
    yield len(bytearray(num_bytes))


def spin(extra_s: float, num_rounds: int) -> Iterator[int]:
    extend_timer(extra_s)
    yield sum(1 for _ in itertools.repeat(None, num_rounds))


def die() -> Iterator[int]:
    os.kill(os.getpid(), signal.SIGKILL)
    yield 1


def talk() -> Iterator[int]:
    os.write(1, b"a library prints")
    yield 1


def test_items_come_in_order_from_one_process_for_all_calls(
    process: LimitedProcess,
) -> None:
    stop = 2 * BATCH_ITEMS + 1
    for num_items in (0, BATCH_ITEMS, stop):
        found = [number for number, _ in process.iterate(count, num_items)]
        assert found == list(range(num_items))
    [(_, first)] = process.iterate(count, 1)
    [(_, second)] = process.iterate(count, 1)
    assert first == second != os.getpid()


def test_an_error_is_raised_after_the_items_before_it(process: LimitedProcess) -> None:
    for error in (OSError(5, "no disk"), EOFError("cut"), ValueError("wrong")):
        items = process.iterate(fail_after, 3, error)
        assert [next(items) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(type(error), match=str(error.args[-1])):
            next(items)


@pytest.mark.slow
def test_memory_beyond_the_limit_is_an_error_and_the_next_call_works(
    process: LimitedProcess,
) -> None:
    assert list(process.iterate(allocate, 32 * MIB)) == [32 * MIB]
    with pytest.raises(LimitError, match="more than 64 MiB of memory"):
        list(process.iterate(allocate, 65 * MIB))
    assert list(process.iterate(allocate, MIB)) == [MIB]


@pytest.mark.slow
def test_processor_time_beyond_the_limit_is_an_error_and_the_next_call_works(
    process: LimitedProcess,
) -> None:
    with pytest.raises(LimitError, match="processor time"):
        list(process.iterate(spin, 0, 10**9))
    assert list(process.iterate(spin, 0, 10)) == [10]


def test_a_call_can_extend_its_time() -> None:
    with LimitedProcess(extra_bytes=64 * MIB, timeout_s=0.01) as process:
        assert list(process.iterate(spin, 600, 5 * 10**6)) == [5 * 10**6]


def test_the_timer_of_this_process_is_left_alone() -> None:
    extend_timer(100)
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_a_crash_is_an_error(process: LimitedProcess) -> None:
    with pytest.raises(LimitError, match="ended with status -9"):
        list(process.iterate(die))


def test_what_a_call_prints_is_no_item(
    process: LimitedProcess, capfd: pytest.CaptureFixture[str]
) -> None:
    assert list(process.iterate(talk)) == [1]
    assert capfd.readouterr().err == "a library prints"


def test_a_call_that_is_abandoned_does_not_spoil_the_next(
    process: LimitedProcess,
) -> None:
    items = process.iterate(count, 10 * BATCH_ITEMS)
    assert next(items)[0] == 0
    items.close()  # type: ignore[attr-defined]
    assert [number for number, _ in process.iterate(count, 2)] == [0, 1]


def tick() -> Iterator[int]:
    Path("pid").write_text(str(os.getpid()))
    while True:
        time.sleep(0.2)  # a batch, and so a broken pipe, would take 200 s
        yield 1


@pytest.mark.slow
def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = """
from ichfast.system.limits import LimitedProcess
from tests.system.test_limits import tick
next(LimitedProcess(extra_bytes=2**26, timeout_s=100).iterate(tick))
"""
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )
    pid_path = tmp_path / "pid"
    try:
        wait_until(lambda: pid_path.is_file() and bool(pid_path.read_text()))
    finally:
        parent.kill()
        parent.wait()
    process_path = Path("/proc", pid_path.read_text(), "cmdline")
    wait_until(lambda: not process_path.exists() or not process_path.read_bytes())


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 120
    while not is_true():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_it_works_from_threads_and_ends_when_it_is_closed() -> None:
    pids: list[int] = []

    def call() -> None:
        with LimitedProcess(extra_bytes=64 * MIB, timeout_s=5) as process:
            pids.extend(pid for _, pid in process.iterate(count, 1))

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(set(pids)) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
