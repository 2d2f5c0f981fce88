"""Locks of folders and files, which the kernel releases when their process ends.

1. A process that ends, also by kill -9, leaves no lock.
2. The file of a folder's lock tells who holds it: ``process 4711 on node3``.
3. On NFS the lock is on the server and holds between machines, unless the share is
   mounted with ``nolock`` or ``local_lock``. A machine that crashes holds it until the
   server notices.
4. A file system without locks, such as Lustre without ``flock``, is a warning: there
   nothing notices a second process.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

LOCK_FILE = ".lock"
"""Name of the file of a folder's lock."""

MARK = "locked by ichfast\n"
"""First line of a folder's lock."""


class LockHeldError(Exception):
    """Another process holds a lock.

    Args:
        holder: that process, such as ``process 4711 on node3``.
    """

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder while the block runs. The lock's file stays.

    Raises:
        LockHeldError: another process holds it.
        OSError: the lock's file cannot be written.
    """
    path = folder / LOCK_FILE
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        if not _lock(descriptor, path):
            raise LockHeldError(_holder(descriptor))
        _write(descriptor, f"{MARK}process {os.getpid()} on {socket.gethostname()}\n")
        try:
            yield
        finally:
            _write(descriptor, MARK)
    finally:
        os.close(descriptor)


@contextmanager
def locked_file(path: Path, mode: int = 0o666) -> Iterator[None]:
    """Make a file, and hold its lock while the block runs.

    Args:
        path: a name that no other process takes.
        mode: the file's permissions, less the umask.

    Raises:
        OSError: the file cannot be made.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _is_at(path, descriptor):
            break
        # `remove_abandoned` came between.
        os.close(descriptor)
    try:
        yield
    finally:
        os.close(descriptor)


def remove_abandoned(path: Path) -> None:
    """Remove a file of `locked_file` whose process has ended.

    Nothing is done where the file cannot be locked or removed.
    """
    with suppress(OSError), _held_if_free(path):
        path.unlink()


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """Make a folder in TMPDIR, and remove it when the block ends.

    Folders with the same prefix whose process has ended are removed first. Only the
    owner may read the folder.

    Args:
        prefix: of the folder's name.
    """
    root = Path(tempfile.gettempdir())
    for left in root.glob(f"{prefix}*"):
        _remove_abandoned_folder(left)
    with (
        tempfile.TemporaryDirectory(
            prefix=prefix, dir=root, ignore_cleanup_errors=True
        ) as folder,
        locked_folder(Path(folder)),
    ):
        yield Path(folder)


def _remove_abandoned_folder(folder: Path) -> None:
    lock = folder / LOCK_FILE
    with suppress(OSError):
        # Its process writes the mark when it holds the lock.
        if folder.is_symlink() or not lock.read_text("utf-8").startswith(MARK):
            return
        with _held_if_free(lock):
            log.info("removing %s, which a run that was killed has left", folder)
            shutil.rmtree(folder)


@contextmanager
def _held_if_free(path: Path) -> Iterator[None]:
    """Hold the lock of an existing file; an OSError if another process does."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> bool:
    """Lock a file; False if another process holds the lock, or has removed the file."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning(
            "%s cannot be locked (%s): nothing notices a second process there, so "
            "start only one",
            path,
            error.strerror,
        )
    return _is_at(path, descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file still has its name."""
    return path.exists() and path.samefile(f"/proc/self/fd/{descriptor}")


def _write(descriptor: int, text: str) -> None:
    os.pwrite(descriptor, text.encode(), 0)
    os.ftruncate(descriptor, len(text.encode()))


def _holder(descriptor: int) -> str:
    """Who holds a lock, by the second line of its file."""
    lines = os.pread(descriptor, 1000, 0).decode("utf-8", "replace").splitlines()
    return lines[1] if len(lines) > 1 else "another process"
