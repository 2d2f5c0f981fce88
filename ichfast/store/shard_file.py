"""A shard's file as bytes: read at any place by many threads, or grown by one.

Reads are system calls into the caller's memory, not a memory map: a file that is cut
short or a disk that fails is an error here, where a map would end the process (SIGBUS).
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

import numpy.typing as npt

from ichfast.errors import StoreError
from ichfast.system.files import begin_flush

DIRECT_BYTES = 4096
"""Reads past the page cache start at, and have lengths of, multiples of this."""

FLUSH_BYTES = 32 * 2**20
"""Bytes written before the disk is told to start writing, so that the flush at the end
of a unit is short."""


def damage_error(file: Path, store: Path, what: str) -> StoreError:
    """The error of a damaged file.

    Args:
        file: of a shard.
        store: the store's folder.
        what: is damaged, such as ``its header is not that of uint16 (4, 9, 9)``.
    """
    return StoreError(
        f"{file} is damaged: {what}; find all damage with `ichfast verify {store}`, "
        f"mend it with `ichfast verify {store} --repair SOURCE`, or copy it back"
    )


class ReadFile:
    """A file open for reading. Safe to share between threads.

    It is closed with the last reference to this object.

    Args:
        path: of the file.
        past_cache: read from the disk into the caller's memory without filling the
            page cache (O_DIRECT), where place, memory and file system allow it.

    Raises:
        StoreError: the file cannot be opened.
    """

    def __init__(self, path: Path, *, past_cache: bool) -> None:
        self.path = path
        """Path of the file."""
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(
                f"cannot open {path}: {error.strerror}; if it is gone, copy it back; "
                "if too many files are open, raise the limit (`ulimit -n`)"
            ) from error
        weakref.finalize(self, os.close, self._descriptor)
        self._direct = self._open_direct() if past_cache else None

    def _open_direct(self) -> int | None:
        """A second descriptor that reads past the page cache, if that is supported."""
        try:
            direct = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError:
            return None
        weakref.finalize(self, os.close, direct)
        return direct

    @property
    def is_direct(self) -> bool:
        """Whether whole pages are read past the page cache."""
        return self._direct is not None

    @property
    def size(self) -> int:
        """Size of the file now, bytes."""
        return os.fstat(self._descriptor).st_size

    def read(self, start: int, out: npt.NDArray[Any]) -> None:
        """Read until `out` is full, without holding the interpreter's lock.

        Args:
            start: place of the first byte in the file.
            out: C order; overwritten.

        Raises:
            StoreError: the file has become shorter, or cannot be read.
        """
        view = out.data.cast("B")
        descriptor = self._descriptor
        if self._direct is not None:
            # O_DIRECT needs whole pages, in the file and in memory.
            places = start | len(view) | out.ctypes.data
            if places % DIRECT_BYTES == 0:
                descriptor = self._direct
        num_read = 0
        while num_read < len(view):
            try:
                found = os.preadv(descriptor, [view[num_read:]], start + num_read)
            except OSError as error:
                raise StoreError(
                    f"cannot read {self.path}: {error.strerror}; check the disk, then "
                    "the store with `ichfast verify`"
                ) from error
            if not found:
                raise StoreError(
                    f"{self.path} has {self.size:,} bytes, expected "
                    f"{start + len(view):,} or more: it was cut short since it was "
                    "opened; mend it with `ichfast verify STORE --repair SOURCE`"
                )
            num_read += found
            descriptor = self._descriptor  # what is left is not a whole page


class GrowingFile:
    """A file that is written from front to back. Closed files open again by themselves.

    Args:
        path: of a file that exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._num_unflushed = 0
        self._descriptor: int | None = None

    def append(self, content: memoryview) -> None:
        """Add bytes at the end."""
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        self._num_unflushed += len(content)
        while content:
            content = content[os.write(self._descriptor, content) :]
        if self._num_unflushed >= FLUSH_BYTES:
            begin_flush(self._descriptor)
            self._num_unflushed = 0

    def close(self) -> None:
        """Close the file; the next `append` opens it again."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)
