"""Calls to the disk or a file server, with a limit of the time without progress.

The kernel may never answer a call on a file, for example when the server of a network
file system is down. No signal ends every such call. So it is made in another thread,
which is left alone when it is blocked.

The process of a blocked thread ends only when the kernel answers. So such calls are
made in child processes, and nothing waits without limit for the end of those.
"""

from __future__ import annotations

import errno
import io
import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

STALL_S = 300.0
"""Upper limit of the time without progress, seconds. A file server that restarts takes
90 s to give files back to its clients, and a tape library two to four minutes to mount
and wind a tape."""

CALL_BYTES = 2**22
"""Bytes read at a time. Any progress starts the limit again, so a disk is too slow only
below 14 kB/s."""

_NUM_CHECKS = 4
"""Looks at the progress within the limit."""


def limit_stalls(stall_s: float) -> None:
    """Set the limit of this process, seconds. It starts with `STALL_S`."""
    global _stall_s
    _stall_s = stall_s


def stall_limit() -> float:
    """The limit of this process, seconds."""
    return _stall_s


def detach_when_stalled() -> None:
    """Let this process give up its output when a call is not answered.

    Otherwise its blocked thread keeps the terminal or pipe open, and a shell that reads
    from there would wait for this process.
    """
    global _detaches
    _detaches = True


def call_with_timeout(function: Callable[..., T], *arguments: object) -> T:
    """Call a function in another thread, and wait for its result.

    Args:
        function: it calls `note_progress` if it may take longer than the limit.
        arguments: its arguments.

    Raises:
        TimeoutError: there was no progress within the limit. The call may go on.
        BaseException: what the function raises.
    """
    thread = _idle.pop() if _idle else _Thread()
    result, error = thread.call(function, arguments)
    _idle.append(thread)
    if error is not None:
        raise error
    return result


def note_progress() -> None:
    """Start the limit of the call at hand again; no effect in other threads."""
    if isinstance(thread := threading.current_thread(), _Thread):
        thread.progress += 1


class _Thread(threading.Thread):
    """A thread that makes one call after another."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.progress = 0
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.start()

    def call(self, function: Callable[..., Any], arguments: tuple[object, ...]) -> Any:
        """The function's result and error, one of which is None."""
        self._calls.put((function, arguments))
        seen, num_checks = self.progress, 0
        while num_checks < _NUM_CHECKS:
            with suppress(queue.Empty):
                return self._results.get(timeout=_stall_s / _NUM_CHECKS)
            num_checks = num_checks + 1 if self.progress == seen else 0
            seen = self.progress
        self._calls.put(None)
        if _detaches:
            _detach()
        raise TimeoutError(errno.ETIMEDOUT, f"no answer for {_stall_s:.0f} s")

    def run(self) -> None:
        """Make calls until one was given up."""
        while (call := self._calls.get()) is not None:
            function, arguments = call
            result: tuple[Any, BaseException | None]
            try:
                result = function(*arguments), None
            except BaseException as error:  # noqa: BLE001  raised by the caller
                result = None, error
            self._results.put(result)
            # The caller may free their memory before the next call.
            del call, function, arguments, result


def _detach() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


_stall_s = STALL_S
_detaches = False
_idle: list[_Thread] = []
os.register_at_fork(after_in_child=_idle.clear)


class TimedFile(io.RawIOBase):
    """A local file, open for reading, whose calls are made by `call_with_timeout`.

    After a call without an answer all others fail at once, and the file stays open.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be opened or read; a `TimeoutError` if there is no answer.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._at = 0
        self._stall: TimeoutError | None = None
        self._descriptor = -1
        self._descriptor = self._call(os.open, path, os.O_RDONLY)

    def readable(self) -> bool:
        """Whether it can be read: always."""
        return True

    def seekable(self) -> bool:
        """Whether it has offsets: always."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to an offset, bytes.

        Args:
            offset: counted from `whence`.
            whence: `os.SEEK_SET`, `os.SEEK_CUR` or `os.SEEK_END`.
        """
        start = 0
        if whence == os.SEEK_CUR:
            start = self._at
        elif whence == os.SEEK_END:
            start = self._call(os.fstat, self._descriptor).st_size
        if start + offset < 0:
            raise ValueError(f"cannot seek to byte {start + offset}")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; return the number of bytes, 0 at the end."""
        # Not straight into the buffer: a blocked call may outlive it.
        num_bytes = min(len(buffer), CALL_BYTES)
        content = self._call(os.pread, self._descriptor, num_bytes, self._at)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            super().close()
            if self._descriptor >= 0 and self._stall is None:
                with suppress(TimeoutError):
                    self._call(os.close, self._descriptor)

    def _call(self, function: Callable[..., T], *arguments: object) -> T:
        if self._stall is not None:
            raise self._stall
        try:
            return call_with_timeout(function, *arguments)
        except TimeoutError as error:
            self._stall = error
            raise


def open_file(path: Path) -> io.BufferedReader:
    """Open a local file for reading; see `TimedFile`."""
    return io.BufferedReader(TimedFile(path))


def read_file(path: Path, max_bytes: int) -> bytes:
    """Read a whole local file.

    Args:
        path: the file.
        max_bytes: upper limit of its size.

    Raises:
        OSError: it is larger or cannot be read; a `TimeoutError` if there is no answer.
    """
    return call_with_timeout(_read, path, max_bytes)


def _read(path: Path, max_bytes: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        if num_bytes > max_bytes:
            raise OSError(errno.EFBIG, f"it has grown to {num_bytes:,} bytes")
        content = io.BytesIO(file.read(min(num_bytes + 1, CALL_BYTES)))
        content.seek(0, os.SEEK_END)
        while chunk := file.read(CALL_BYTES):
            note_progress()
            content.write(chunk)
        return content.getvalue()
