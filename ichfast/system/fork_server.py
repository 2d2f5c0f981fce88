"""Worker processes that are forked from a server which has imported their code.

Unlike the fork server of multiprocessing, this one

1. has no names in any file system: no socket in TMPDIR, no semaphore and no shared
   memory in /dev/shm. So a kill leaves nothing, and TMPDIR may be long;
2. does not run the caller's ``__main__`` again;
3. ends, with its workers, when the process that started it ends, also by kill -9;
4. has a session of its own, so that Ctrl-C reaches only the caller;
5. is not waited for without limit: the kernel may not let a worker end
   (`ichfast.system.timeouts`).
"""

from __future__ import annotations

import gc
import importlib
import mmap
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any

from ichfast.system.signals import STOPPING
from ichfast.system.timeouts import detach_when_stalled

STOP_S = 5.0
"""Time for workers to stop before they are killed, seconds."""

END_S = 2.0
"""Time for a killed worker to end, seconds."""

_MEMORY_BYTES = mmap.PAGESIZE

_PID = struct.Struct("<q")
"""The worker's process id, at the start of the memory that it shares with the caller.
It is 0 until the worker runs."""

_START = (
    "import sys; sys.path[:] = sys.argv[4:]; "
    "from ichfast.system.fork_server import serve; "
    "serve(int(sys.argv[1]), sys.argv[2], sys.argv[3])"
)

WorkerFunction = Callable[["Channel", memoryview], None]
"""What a worker runs, with a channel to the caller and 4,000 bytes shared with it."""


class Channel:
    """Objects to and from the process at the other end of a socket.

    Args:
        end: a connected socket. Closed with the channel.
    """

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        """The socket."""
        self._stream = end.makefile("rb")

    def send(self, message: object) -> None:
        """Send an object.

        Raises:
            OSError: the other process has ended.
        """
        self.end.sendall(pickle.dumps(message))

    def receive(self) -> Any:
        """Wait for an object.

        Raises:
            EOFError: the other process has ended, or sends no more.
        """
        try:
            return pickle.load(self._stream)
        except (OSError, pickle.UnpicklingError) as error:
            raise EOFError from error

    def send_no_more(self) -> None:
        """Let the other process receive an EOFError."""
        with suppress(OSError):
            self.end.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket."""
        self._stream.close()
        self.end.close()


class Worker(Channel):
    """A worker as its caller sees it: a channel to it.

    Args:
        end: the caller's socket. The worker closes its own when it ends.
        memory: shared with the worker, at first zeros.
    """

    def __init__(self, end: socket.socket, memory: mmap.mmap) -> None:
        super().__init__(end)
        self._memory = memoryview(memory)
        self.shared = self._memory[_PID.size :]
        """Bytes shared with the worker."""

    @property
    def pid(self) -> int:
        """Its process id; 0 until it runs."""
        # The server keeps the id of an ended worker until it starts another one.
        return int(_PID.unpack_from(self._memory)[0])


class ForkServer:
    """Starts workers that run a function; use it as a context manager.

    Args:
        function: a `WorkerFunction` of an importable module, which returns when its
            channel raises an EOFError. The worker then ends.
    """

    def __init__(self, function: WorkerFunction) -> None:
        self._function = function
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> Worker:
        """Start a worker, in the current folder. This does not wait for it."""
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._control, theirs = socket.socketpair()
            with theirs:
                self._process = self._launch(theirs)
        assert self._control is not None
        ours, theirs = socket.socketpair()
        memory = os.memfd_create("ichfast")
        folder = os.open(".", os.O_PATH)
        try:
            os.ftruncate(memory, _MEMORY_BYTES)
            worker = Worker(ours, mmap.mmap(memory, _MEMORY_BYTES))
            with theirs, suppress(BrokenPipeError):  # then the worker is dead at once
                parts = [theirs.fileno(), memory, folder]
                socket.send_fds(self._control, [b"+"], parts)
        finally:
            os.close(memory)
            os.close(folder)
        return worker

    def _launch(self, control: socket.socket) -> subprocess.Popen[bytes]:
        names = self._function.__module__, self._function.__qualname__
        command = [sys.executable, "-I", "-c", _START]
        return subprocess.Popen(
            [*command, str(control.fileno()), *names, *sys.path],
            pass_fds=[control.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def close(self) -> None:
        """End the server. Workers go on."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)
            self._process.kill()
            self._process.wait()
        self._control = self._process = None


def ready_workers(workers: Collection[Worker], timeout_s: float) -> list[Worker]:
    """Wait for workers to send something or end.

    Args:
        workers: the workers.
        timeout_s: upper limit of the wait, seconds.

    Returns:
        Those that have; none when the time is over.
    """
    ready = wait([worker.end for worker in workers], timeout_s)
    return [worker for worker in workers if worker.end in ready]


def end_workers(workers: Collection[Worker]) -> None:
    """Wait until workers stop and end, kill those that do not, and close all.

    Args:
        workers: they have been asked to stop.
    """
    for worker in workers:
        worker.send_no_more()
    left = set(workers)
    deadline_s = time.monotonic() + STOP_S
    while left and (left_s := deadline_s - time.monotonic()) > 0:
        for worker in ready_workers(left, left_s):
            try:
                worker.receive()  # a result that nobody wants
            except EOFError:
                left.remove(worker)
    for worker in left:
        if worker.pid:
            os.kill(worker.pid, signal.SIGKILL)
    _wait_for_exit([worker.pid for worker in workers if worker.pid])
    for worker in workers:
        worker.close()


def _wait_for_exit(pids: Collection[int]) -> None:
    """Wait for processes to end, for `END_S` at most."""
    deadline_s = time.monotonic() + END_S
    left: set[Any] = set()
    with suppress(OSError):  # none left, or a kernel without pidfd_open
        left |= {os.pidfd_open(pid) for pid in pids}
    descriptors = list(left)
    while left and (left_s := deadline_s - time.monotonic()) > 0:
        left -= set(wait(left, left_s))
    for descriptor in descriptors:
        os.close(descriptor)


def serve(descriptor: int, module: str, name: str) -> None:
    """Fork a worker for each message until the caller ends.

    Args:
        descriptor: of the socket whose messages have a worker's socket, memory and
            folder.
        module: name of the module of the function that workers run.
        name: of the function.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    function = getattr(importlib.import_module(module), name)
    # Without this the first collection in a worker writes to every object, and so
    # copies 5,000 pages.
    gc.freeze()
    control = socket.socket(fileno=descriptor)
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 3)
        if not message:
            return
        _reap()
        if os.fork() == 0:
            control.close()
            _work(function, *descriptors)
        for each in descriptors:
            os.close(each)


def _reap() -> None:
    """Forget workers that have ended, whose ids may then be used again."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _work(function: WorkerFunction, end: int, memory: int, folder: int) -> None:
    """Run a worker. Never returns."""
    status = 1
    channel = Channel(socket.socket(fileno=end))
    try:
        threading.Thread(target=_die_with_caller, args=(end,), daemon=True).start()
        detach_when_stalled()
        os.fchdir(folder)
        os.close(folder)
        shared = memoryview(mmap.mmap(memory, _MEMORY_BYTES))
        _PID.pack_into(shared, 0, os.getpid())
        function(channel, shared[_PID.size :])
        status = 0
    except BaseException:  # noqa: BLE001  the process ends
        traceback.print_exc()
    finally:
        with suppress(OSError):
            channel.end.shutdown(socket.SHUT_RDWR)
        # Without waiting for threads, which the kernel may not answer.
        os._exit(status)


def _die_with_caller(end: int) -> None:
    hung_up = select.poll()
    hung_up.register(end, 0)  # no event but the end of the caller
    hung_up.poll()
    os._exit(1)
