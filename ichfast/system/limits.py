"""Calls in a process with limits of memory and of processor time.

A few bytes can make a library allocate or compute without end. A `LimitedProcess`
runs such calls outside this process: what exceeds a limit ends there, and is a
`LimitError` here.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import IO, Any, TypeVar

from ichfast.system.memory import limit_memory
from ichfast.system.timeouts import (
    call_with_timeout,
    detach_when_stalled,
    limit_stalls,
    stall_limit,
)

T = TypeVar("T")

BATCH_ITEMS = 1024
"""Items that are sent together. At the end by a limit, an unsent batch is lost."""

END_S = 2.0
"""Time for a killed process to end, seconds. It does not if the kernel does not answer
a call of it (`ichfast.system.timeouts`)."""

_TIMER, _TIMER_SIGNAL = signal.ITIMER_PROF, signal.SIGPROF
"""Counts processor time, so waiting is free. The kernel ends the process when the
timer expires, even inside a C library that never returns to Python."""

_START = (
    "import sys; sys.path[:] = sys.argv[4:]; "
    "from ichfast.system.limits import _serve; "
    "_serve(int(sys.argv[1]), *map(float, sys.argv[2:4]))"
)


class LimitError(RuntimeError):
    """A call took more memory or processor time than it may."""


class LimitedProcess:
    """A process for calls with limits; use it as a context manager.

    It starts with the first call, and again after a call that exceeded a limit. It is
    a plain child process: it does not run the caller's `__main__` again, and it may be
    started from any thread.

    Args:
        extra_bytes: memory that it may map, beyond what it has when it starts. 0 does
            not limit it.
        timeout_s: processor time of a call, seconds; a call may extend it with
            `extend_timer`. 0 does not limit it.
    """

    def __init__(self, *, extra_bytes: int = 0, timeout_s: float = 0.0) -> None:
        self._extra_bytes = extra_bytes
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LimitedProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, unless the kernel does not let it end."""
        if (process := self._process) is None:
            return
        self._process = None
        process.kill()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            threading.Thread(target=process.wait, daemon=True).start()

    def iterate(
        self, function: Callable[..., Iterable[T]], *arguments: object
    ) -> Iterator[T]:
        """Yield what `function(*arguments)` yields in the other process.

        Args:
            function: importable by its name, such as a generator function.
            arguments: they are pickled, and so are the items.

        Raises:
            LimitError: it exceeds a limit, or its process crashes.
            Exception: what the function raises.
        """
        process = self._started()
        requests, replies = process.stdin, process.stdout
        assert requests
        assert replies
        is_done = False
        try:
            pickle.dump((function, arguments), requests)
            requests.flush()
            while not is_done:
                items, error, is_done = pickle.load(replies)
                yield from items
                if error is not None:
                    # A process whose call is blocked may not end by itself.
                    is_done = not isinstance(error, MemoryError | TimeoutError)
                    raise error
        except MemoryError as error:
            mib = self._extra_bytes // 2**20
            raise LimitError(f"it takes more than {mib:,} MiB of memory") from error
        except (pickle.UnpicklingError, BrokenPipeError, EOFError) as error:
            if is_done:
                raise  # by the function
            raise self._death() from error
        finally:
            if not is_done:
                self.close()

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function with a time limit, see `call_with_timeout`.

        Args:
            function: importable by its name.
            arguments: they are pickled, and so is the result.

        Raises:
            TimeoutError: it makes no progress.
            LimitError: it exceeds another limit, or its process crashes.
            Exception: what the function raises.
        """
        [result] = self.iterate(_call, function, *arguments)
        return result

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            limits = map(str, (self._extra_bytes, self._timeout_s, stall_limit()))
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _START, *limits, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the parent, which closes it
            )
        return self._process

    def _death(self) -> LimitError:
        """Why the process is gone."""
        assert self._process is not None
        status = self._process.wait()
        if status == -_TIMER_SIGNAL:
            return LimitError("it takes too much processor time")
        return LimitError(f"the process that read it ended with status {status}")


def extend_timer(seconds: float) -> None:
    """Add processor time to the call at hand; no effect outside a `LimitedProcess`."""
    left_s, _ = signal.getitimer(_TIMER)
    if left_s:
        signal.setitimer(_TIMER, left_s + seconds)


def _call(function: Callable[..., T], *arguments: object) -> Iterator[T]:
    yield call_with_timeout(function, *arguments)


def _serve(extra_bytes: int, timeout_s: float, stall_s: float) -> None:
    """Answer calls until standard input ends."""
    limit_stalls(stall_s)
    detach_when_stalled()
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply
    if extra_bytes:
        limit_memory(extra_bytes)
    while requests.peek(1):
        for reply in _replies(requests, timeout_s):
            pickle.dump(reply, replies)
            replies.flush()


def _replies(
    requests: IO[bytes], timeout_s: float
) -> Iterator[tuple[list[Any], Exception | None, bool]]:
    """Run one call; give its items in batches, its error, and whether it is done."""
    batch: list[Any] = []
    try:
        function, arguments = pickle.load(requests)
        parent = os.getppid()
        signal.setitimer(_TIMER, timeout_s)
        for item in function(*arguments):
            if os.getppid() != parent:
                sys.exit()  # killed; without items to send, no pipe would break
            batch.append(item)
            if len(batch) == BATCH_ITEMS:
                yield batch, None, False
                batch = []
        yield batch, None, True
    except Exception as error:  # noqa: BLE001  it is raised in the parent
        yield batch, error, True
    finally:
        signal.setitimer(_TIMER, 0)
