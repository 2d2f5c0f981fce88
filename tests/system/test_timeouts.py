"""A call without an answer is given up, one that makes progress is not."""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from ichfast.system import timeouts
from ichfast.system.timeouts import (
    call_with_timeout,
    limit_stalls,
    note_progress,
    open_file,
    read_file,
    stall_limit,
)

LIMIT_S = 0.2


@pytest.fixture(autouse=True)
def _short_limit() -> Iterator[None]:
    before = stall_limit()
    limit_stalls(LIMIT_S)
    yield
    limit_stalls(before)


def test_a_call_gives_its_result_or_its_error() -> None:
    assert call_with_timeout(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        call_with_timeout(divmod, 7, 0)


def test_calls_in_a_row_take_one_thread() -> None:
    before = call_with_timeout(threading.get_ident)
    assert before != threading.get_ident()
    assert call_with_timeout(threading.get_ident) == before


def test_a_blocked_call_is_given_up_and_the_next_one_is_made() -> None:
    blocked = threading.Event()
    with pytest.raises(TimeoutError, match="no answer for 0 s"):
        call_with_timeout(blocked.wait)
    assert call_with_timeout(divmod, 7, 2) == (3, 1)
    blocked.set()


def take_steps(num_steps: int) -> int:
    for _ in range(num_steps):
        time.sleep(LIMIT_S / 5)
        note_progress()
    return num_steps


@pytest.mark.slow
def test_a_call_that_makes_progress_may_take_longer_than_the_limit() -> None:
    assert call_with_timeout(take_steps, 15) == 15


def test_the_thread_keeps_no_result() -> None:
    result = call_with_timeout(threading.Event)
    kept = weakref.ref(result)
    del result
    for _ in range(500):
        if kept() is None:
            return
        time.sleep(0.01)
    pytest.fail("the thread keeps it until its next call")


def test_a_file_reads_as_it_is(tmp_path: Path) -> None:
    content = random.Random(0).randbytes(100_000)
    (tmp_path / "f").write_bytes(content)
    assert read_file(tmp_path / "f", 100_000) == content
    with open_file(tmp_path / "f") as file:
        assert file.seek(0, os.SEEK_END) == len(content)
        for _ in range(50):
            at = file.seek(random.Random(1).randrange(len(content)))
            assert file.seek(at - file.tell(), os.SEEK_CUR) == at
            assert file.read(30_000) == content[at : at + 30_000]


def test_a_large_file_is_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeouts, "CALL_BYTES", 7)
    (tmp_path / "f").write_bytes(bytes(range(100)))
    assert read_file(tmp_path / "f", 100) == bytes(range(100))
    with open_file(tmp_path / "f") as file:
        assert file.read() == bytes(range(100))


def test_a_file_above_its_limit_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(100))
    with pytest.raises(OSError, match="grown to 100 bytes"):
        read_file(tmp_path / "f", 99)


def test_after_a_stall_a_file_fails_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(bytes(100_000))
    blocked = threading.Event()
    calls = []

    def block(_descriptor: int, _size: int, offset: int) -> bytes:
        calls.append(offset)
        blocked.wait()
        return b""

    file = open_file(tmp_path / "f")
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", block)
        for offset in (0, 50_000):
            file.seek(offset)
            with pytest.raises(TimeoutError):
                file.read(1)
    file.close()
    assert calls == [0]
    blocked.set()
