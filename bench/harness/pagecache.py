"""Drop files from the kernel's page cache, or read them into it in large pieces."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bench.limits.disk import read_bytes


def fill_cache(files: Sequence[Path]) -> None:
    """Drop whole files from the page cache and read them again in sequence.

    They are then in the cache in large pieces. Files that were read at random are there
    in pages of 4 KiB, which take longer to read again: a slice more than twice as long,
    `ichfast prepare` a tenth longer, ``cp`` no longer (bench/LOG.md, 2026-11).
    """
    drop_cache(files)
    read_bytes(files, sum(file.stat().st_size for file in files))


def drop_cache(files: Sequence[Path]) -> str:
    """Drop files from the page cache; returns why that failed, or an empty text."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            if _is_cached(descriptor, file.stat().st_size):
                return "the kernel does not let go of the store's pages (in memory?)"
        except OSError as error:
            return f"cannot tell whether the cache is cold ({error.strerror})"
        finally:
            os.close(descriptor)
    return ""


def _is_cached(descriptor: int, num_bytes: int) -> bool:
    """Whether the file's middle can be read without waiting for a disk."""
    try:
        os.preadv(descriptor, [bytearray(1)], num_bytes // 2, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    return True
