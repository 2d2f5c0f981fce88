"""Writing files so that a crash never leaves half of one, and their checksums.

A file is written under a temporary name in the same folder, flushed to the
disk, and renamed over its final name. Readers see the old file or the new one.

1. What a function here has returned from survives a loss of power: the file is
   flushed before its name is given, and the folder after it. That takes a disk that
   flushes when it is told to.
2. On NFS the same holds, for the server's disk. Other machines may see the folder as
   it was for as long as their mounts remember it (``acdirmax``, 60 s).
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import google_crc32c

from ichfast.errors import IchfastError

CHUNK_BYTES = 2**20
"""Read at once to find a file's checksum."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; rename it to `path` when the block ends.

    When the block raises, the temporary file is removed and `path` is untouched.

    Args:
        path: the final name. Its folder must exist. Replaced if it exists.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush(path.parent)


@contextmanager
def output_path(
    path: Path, error_type: type[IchfastError], advice: str = ""
) -> Iterator[Path]:
    """Like `atomic_path`, for a file that the user named: its folder is made.

    Args:
        path: the final name. Replaced if it exists.
        error_type: raised when the folder or the file cannot be written.
        advice: end of that error's message, such as ``; name another file``.

    Raises:
        IchfastError: of `error_type`, for any OSError in the block.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            yield temporary
    except OSError as error:
        message = f"cannot write {path}: {error.strerror}{advice}"
        raise error_type(message) from error


def make_folder(path: Path) -> None:
    """Make a folder if there is none; its parent must exist."""
    if not path.is_dir():
        path.mkdir(exist_ok=True)
        _flush(path.parent)


def remove_file(path: Path) -> None:
    """Remove a file if there is one, before anything that is done afterwards."""
    if path.exists():
        path.unlink(missing_ok=True)
        _flush(path.parent)


def beside(folder: Path, suffix: str) -> Path:
    """A file next to a folder, with its name: for ``a/store``, ``a/store.key``.

    A folder that is called ``.`` or ``..`` has its true name taken.
    """
    named = folder if folder.name not in ("", "..") else folder.resolve()
    return named.parent / f"{named.name}{suffix}"


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, all of it or nothing."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_private_once(path: Path, content: bytes) -> None:
    """Write a file that its owner alone may read, all of it or nothing.

    A file that is there already stays as it is, whoever made it and when: of two
    processes that write at once, one wins.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:12]}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        _flush(temporary)
        with suppress(FileExistsError):
            path.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)
    _flush(path.parent)


def file_crc32c(path: Path) -> int:
    """The checksum of a file, CRC-32C; however large it is, in little memory.

    Raises:
        OSError: it is missing, no regular file, or cannot be read.
    """
    if not path.is_file():
        # Opening a pipe would wait for whoever writes to it.
        raise OSError(errno.ENOENT, "no such file, or not a regular one")
    crc32c = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            crc32c = google_crc32c.extend(crc32c, chunk)
    return int(crc32c)


def begin_flush(descriptor: int) -> None:
    """Have the disk begin to write what is new in a file, and wait for nothing.

    What was written stays in the page cache, for whoever reads it next. This is advice:
    a file system that does not take it is no error, and nothing is safe by it.

    Args:
        descriptor: open for writing.

    Source:
        sync_file_range(2), SYNC_FILE_RANGE_WRITE. Python's `os` does not have it.
    """
    _sync_file_range(descriptor, 0, 0, _SYNC_FILE_RANGE_WRITE)


_SYNC_FILE_RANGE_WRITE = 2
_sync_file_range = ctypes.CDLL(None).sync_file_range
_sync_file_range.argtypes = (
    *(ctypes.c_int, ctypes.c_int64),
    *(ctypes.c_int64, ctypes.c_uint),
)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
