"""Writing files atomically, and their checksums.

A file is written under a temporary name in the same folder, flushed to the disk, and
renamed to its final name. Readers see the old file or the new one, never a part.

1. When a function here has returned, its work survives a loss of power, if the disk
   flushes on request: the file is flushed before the rename, the folder after it.
2. On NFS the same holds for the server's disk. Other machines may see the old folder
   for as long as their mounts cache it (``acdirmax``, 60 s).
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import google_crc32c

from ichfast.errors import IchfastError
from ichfast.system.locks import locked_file, remove_abandoned

CHUNK_BYTES = 2**20
"""Bytes read at a time to compute a file's checksum."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; rename it to `path` when the block ends.

    If the block raises, the temporary file is removed and `path` is unchanged.

    Args:
        path: the final name. Its folder must exist. Replaced if it exists.
    """
    with _renamed_to(path, _temporary(path)) as temporary:
        yield temporary


def final_name(name: str) -> str:
    """The name for which `atomic_path` made a temporary name; any other unchanged."""
    found = _TEMPORARY.fullmatch(name)
    return found[1] if found else name


_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{12}\.tmp")


def remove_leftovers(path: Path) -> None:
    """Remove temporary files for a path whose processes were killed.

    Those of `output_path` whose process lives stay. For a path of `atomic_path` the
    caller makes sure that no other process writes it.

    Args:
        path: the final name. Nothing is done where its folder cannot be read.
    """
    with suppress(OSError):
        for left in path.parent.iterdir():
            if left.name != path.name == final_name(left.name):
                remove_abandoned(left)


@contextmanager
def _renamed_to(path: Path, temporary: Path) -> Iterator[Path]:
    try:
        yield temporary
        flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid4().hex[:12]}.tmp")


ADVICE = "; make room, or name another file"
"""End of the message for a file that cannot be written."""


@contextmanager
def output_path(
    path: Path, error_type: type[IchfastError], advice: str = ADVICE
) -> Iterator[Path]:
    """Like `atomic_path`, for a file that the user named: its folder is made.

    What a killed process has left of the same path is removed.

    Args:
        path: the final name. Replaced if it exists.
        error_type: raised when the folder or the file cannot be written.
        advice: end of that error's message.

    Raises:
        IchfastError: of `error_type`, for any OSError in the block.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        temporary = _temporary(path)
        # The lock is held until the file has its final name.
        with locked_file(temporary), _renamed_to(path, temporary):
            yield temporary
    except OSError as error:
        message = f"cannot write {path}: {error.strerror}{advice}"
        raise error_type(message) from error


def make_folder(path: Path) -> None:
    """Make a folder unless it exists, and flush its parent, which must exist."""
    if not path.is_dir():
        path.mkdir(exist_ok=True)
        flush(path.parent)


def remove_file(path: Path) -> None:
    """Remove a file if it exists, and flush its folder."""
    if path.exists():
        path.unlink(missing_ok=True)
        flush(path.parent)


def beside(folder: Path, suffix: str) -> Path:
    """The path of a file next to a folder: for ``a/store``, ``a/store.key``.

    Args:
        folder: ``.`` and ``..`` are resolved to the folder's real name.
        suffix: appended to the folder's name, such as ``.key``.
    """
    named = folder if folder.name not in ("", "..") else folder.resolve()
    return named.parent / f"{named.name}{suffix}"


def write_text_atomically(path: Path, text: str) -> None:
    """Write text as UTF-8, completely or not at all.

    Args:
        path: as in `atomic_path`.
        text: the content.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_private_once(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, completely or not at all.

    An existing file is never changed. If two processes write at once, one wins.

    Args:
        path: as in `atomic_path`.
        content: the bytes.
    """
    temporary = _temporary(path)
    try:
        with locked_file(temporary, 0o600):
            temporary.write_bytes(content)
            flush(temporary)
            with suppress(FileExistsError):
                path.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)


def file_crc32c(path: Path) -> int:
    """The CRC-32C of a file, computed in `CHUNK_BYTES` of memory.

    Raises:
        OSError: the file is missing, not a regular one, or cannot be read.
    """
    if not path.is_file():
        # Opening a pipe would wait for a writer.
        raise OSError(errno.ENOENT, "no such file, or not a regular one")
    crc32c = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            crc32c = google_crc32c.extend(crc32c, chunk)
    return int(crc32c)


def begin_flush(descriptor: int) -> None:
    """Tell the disk to start writing the new pages of a file, without waiting.

    The pages stay in the page cache. This is a hint: file systems may ignore it, and it
    guarantees nothing.

    Args:
        descriptor: of a file that is open for writing.

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


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
