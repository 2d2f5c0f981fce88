"""Workers work until they are told to end, end with their caller, and leave nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ichfast.system import fork_server
from ichfast.system.fork_server import Channel, ForkServer, end_workers, ready_workers

pytestmark = pytest.mark.slow


def answer(caller: Channel, shared: memoryview) -> None:
    """Send what each message evaluates to."""
    while True:
        try:
            message = caller.receive()
        except EOFError:
            return
        shared[0] += 1
        caller.send(eval(message))


def ignore_all(caller: Channel, _shared: memoryview) -> None:
    """Do not end, and react to no signal that can be ignored."""
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    caller.send("ready")
    while True:
        time.sleep(60)


@pytest.fixture
def server() -> Iterator[ForkServer]:
    with ForkServer(answer) as server:
        yield server


def ask(server: ForkServer, message: str) -> object:
    worker = server.start()
    worker.send(message)
    assert ready_workers([worker], 60.0) == [worker]
    found = worker.receive()
    assert worker.shared[0] == 1
    end_workers([worker])
    return found


def test_workers_are_forked_from_one_server_and_share_memory(
    server: ForkServer,
) -> None:
    parents = {ask(server, "os.getppid()") for _ in range(3)}
    assert len(parents) == 1
    assert os.getpid() not in parents


def test_a_worker_that_dies_is_noticed_and_the_server_starts_another(
    server: ForkServer,
) -> None:
    worker = server.start()
    worker.send("os.kill(os.getpid(), signal.SIGKILL)")
    assert ready_workers([worker], 60.0) == [worker]
    with pytest.raises(EOFError):
        worker.receive()
    end_workers([worker])
    assert ask(server, "6 * 7") == 42


def test_a_server_that_dies_is_started_again(server: ForkServer) -> None:
    parent = ask(server, "os.getppid()")
    assert isinstance(parent, int)
    os.kill(parent, signal.SIGKILL)
    while Path(f"/proc/{parent}/cmdline").exists() and is_alive(parent):
        time.sleep(0.01)
    assert ask(server, "6 * 7") == 42


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_a_worker_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_server, "STOP_S", 0.2)
    with ForkServer(ignore_all) as server:
        worker = server.start()
        assert worker.receive() == "ready"
        os.kill(worker.pid, signal.SIGTERM)
        assert is_alive(worker.pid)
        end_workers([worker])
        assert not is_alive(worker.pid)


def test_a_worker_that_cannot_be_killed_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fork_server, "STOP_S", 0.2)
    monkeypatch.setattr(fork_server, "END_S", 0.2)
    kill = os.kill
    with ForkServer(ignore_all) as server:
        worker = server.start()
        assert worker.receive() == "ready"
        with monkeypatch.context() as patch:
            patch.setattr(os, "kill", lambda *_: None)
            end_workers([worker])
        # The end of its caller ends it, if the kernel lets it.
        pid = worker.pid
    for _ in range(500):
        if not is_alive(pid):
            return
        time.sleep(0.01)
    kill(pid, signal.SIGKILL)
    pytest.fail("it did not end with its caller")


CALLER = """
import sys, time
from ichfast.system.fork_server import ForkServer
from tests.system.test_fork_server import answer
server = ForkServer(answer)
workers = [server.start() for _ in range(3)]
for worker in workers:
    worker.send("os.getpid()")
print(*[worker.receive() for worker in workers], server._process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("whole_group", [False, True])
def test_a_killed_caller_leaves_no_process_and_no_name(
    tmp_path: Path, whole_group: bool
) -> None:
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", CALLER],
        env={**os.environ, "TMPDIR": str(folder)}
        | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as caller:
        assert caller.stdout is not None
        pids = [int(pid) for pid in caller.stdout.readline().split()]
        assert len(pids) == 4
        for pid in (caller.pid, *pids):
            assert "/dev/shm/" not in Path(f"/proc/{pid}/maps").read_text()
        if whole_group:
            os.killpg(caller.pid, signal.SIGKILL)
        else:
            caller.kill()
    for _ in range(500):
        if not any(map(is_alive, pids)):
            break
        time.sleep(0.01)
    assert not any(map(is_alive, pids))
    assert not list(folder.iterdir())
