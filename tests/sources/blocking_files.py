"""Files on which the kernel blocks the calls of other processes.

`blocking_folder` is a file system in user space that does not answer: a process that
has asked it cannot even be killed. It needs root. `leased_file` needs nothing: opening
the file waits until its lease ends, but can be killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.killed_process import killed_process

LEASE = """
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
descriptor = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def leased_file(path: Path) -> Iterator[None]:
    """Let every opening of a file wait while the block runs, up to 45 s.

    Source:
        fcntl(2), F_SETLEASE: a breaker waits for the holder, or for
        /proc/sys/fs/lease-break-time.
    """
    with killed_process(LEASE, str(path)):
        yield


SERVED_S = 120
"""The server ends after this time, so that no failing test waits for ever, seconds."""


@contextmanager
def blocking_folder(path: Path, files: Mapping[str, bytes]) -> Iterator[None]:
    """Mount a folder of files while the block runs.

    Args:
        path: an empty folder.
        files: contents by name. A name with ``blocked-open``, ``blocked-read``,
            ``blocked-stat`` or ``blocked-list`` (an empty folder) is not answered when
            it is opened, read, looked at or listed.
    """
    descriptor = _mount(path)
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SERVED_S)
        try:
            _Server(descriptor, files).serve()
        finally:
            os._exit(0)
    os.close(descriptor)
    try:
        yield
    finally:
        # The kernel fails all calls when nobody serves them any more.
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        subprocess.run(["umount", "--lazy", str(path)], check=True, timeout=10)


def _mount(path: Path) -> int:
    try:
        descriptor = os.open("/dev/fuse", os.O_RDWR)
    except OSError:
        pytest.skip("this user may not open /dev/fuse")
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={descriptor},rootmode=40000,user_id={os.getuid()},group_id=0"
    if libc.mount(b"test", bytes(path), b"fuse", 0, options.encode()):
        os.close(descriptor)
        pytest.skip(f"cannot mount: {os.strerror(ctypes.get_errno())}")
    return descriptor


_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _INIT = 1, 2, 3, 14, 15, 26
_OPENDIR, _READDIR, _RELEASE, _FLUSH, _BATCH_FORGET = 27, 28, 18, 25, 42
_RELEASEDIR = 29
_ROOT = 1


class _Server:
    """Answers requests of the kernel for one folder of files.

    Source:
        include/uapi/linux/fuse.h of Linux, version 7.31 of the protocol.
    """

    def __init__(self, descriptor: int, files: Mapping[str, bytes]) -> None:
        self._descriptor = descriptor
        self._names = ["", "", *files]
        self._contents = [b"", b"", *files.values()]

    def serve(self) -> None:
        while request := os.read(self._descriptor, 2**20):
            _, opcode, unique, node = struct.unpack_from("<IIQQ", request)
            if opcode in (_FORGET, _BATCH_FORGET):
                continue
            answer = self._answer(opcode, node, request[40:])
            if answer is not None:
                error, body = answer
                head = struct.pack("<IiQ", 16 + len(body), -error, unique)
                os.write(self._descriptor, head + body)

    def _answer(self, opcode: int, node: int, body: bytes) -> tuple[int, bytes] | None:
        """Error number and body of an answer; None leaves the request waiting."""
        found = {
            _INIT: self._initial,
            _LOOKUP: self._look_up,
            _GETATTR: self._attributes,
            _OPEN: self._open,
            _OPENDIR: self._open,
            _READ: self._read,
            _READDIR: self._list,
        }.get(opcode)
        if found is not None:
            return found(node, body)
        return (0, b"") if opcode in (_RELEASE, _RELEASEDIR, _FLUSH) else (38, b"")

    def _initial(self, _node: int, _body: bytes) -> tuple[int, bytes]:
        return 0, struct.pack("<IIIIHHIII28x", 7, 31, 2**17, 0, 8, 8, 2**17, 1, 0)

    def _look_up(self, _node: int, body: bytes) -> tuple[int, bytes] | None:
        name = body.rstrip(b"\0").decode()
        if name not in self._names[2:]:
            return 2, b""
        if "blocked-stat" in name:
            return None
        node = self._names.index(name)
        return 0, struct.pack("<QQQQII", node, 0, 60, 60, 0, 0) + self._status(node)

    def _attributes(self, node: int, _body: bytes) -> tuple[int, bytes]:
        return 0, struct.pack("<QII", 60, 0, 0) + self._status(node)

    def _open(self, node: int, _body: bytes) -> tuple[int, bytes] | None:
        return None if "blocked-open" in self._names[node] else (0, bytes(16))

    def _read(self, node: int, body: bytes) -> tuple[int, bytes] | None:
        if "blocked-read" in self._names[node]:
            return None
        _, offset, size = struct.unpack_from("<QQI", body)
        return 0, self._contents[node][offset : offset + size]

    def _list(self, node: int, body: bytes) -> tuple[int, bytes] | None:
        if "blocked-list" in self._names[node]:
            return None
        _, offset, _ = struct.unpack_from("<QQI", body)
        return 0, b"" if offset or node != _ROOT else self._entries()

    def _status(self, node: int) -> bytes:
        is_folder = node == _ROOT or "blocked-list" in self._names[node]
        mode = 0o040755 if is_folder else 0o100644
        sizes = node, len(self._contents[node]), 1, *(0,) * 6
        return struct.pack("<6Q10I", *sizes, mode, 1, 0, 0, 0, 4096, 0)

    def _entries(self) -> bytes:
        found = b""
        for node, name in enumerate(self._names[2:], 2):
            encoded = name.encode()
            entry = struct.pack("<QQII", node, node, len(encoded), 0) + encoded
            found += entry + bytes(-len(entry) % 8)
        return found
