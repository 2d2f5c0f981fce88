"""Memory of this process: how much there is, a limit on it, and huge pages."""

from __future__ import annotations

import mmap
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

ROOT = Path("/")

CGROUPS = "sys/fs/cgroup"
"""Mount point of cgroup version 2, relative to the root folder."""


def total_memory(root: Path = ROOT) -> int:
    """Memory that this process could use if it were alone, bytes.

    It is the smallest limit among the machine's memory and the cgroups (version 2)
    that contain this process, such as a container's.

    Source:
        proc_meminfo(5); Documentation/admin-guide/cgroup-v2.rst of Linux.
    """
    return min(total for total, _ in _limits(root))


def available_memory(root: Path = ROOT) -> int:
    """Memory that this process can use now without swapping or being killed, bytes.

    Cached pages of files count as available, because the kernel drops them on demand.
    """
    return min(available for _, available in _limits(root))


def limit_memory(extra_bytes: int) -> None:
    """Let this process map at most `extra_bytes` of memory more than it has mapped.

    An allocation beyond that fails: in Python with a MemoryError, in a C library
    often with the end of the process. Child processes inherit the limit.

    Source:
        setrlimit(2), RLIMIT_AS; proc_pid_statm(5).
    """
    statm = os.open("/proc/self/statm", os.O_RDONLY)  # pathlib takes far longer
    try:
        num_pages = int(os.read(statm, 64).split()[0])
    finally:
        os.close(statm)
    limit = num_pages * mmap.PAGESIZE + extra_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """Total and available bytes of the machine, and of each cgroup with a limit."""
    kib = _numbers(root / "proc/meminfo")
    yield 1024 * kib["MemTotal:"], 1024 * kib["MemAvailable:"]
    path = _text(root / "proc/self/cgroup").rpartition("0::")[2].strip()
    folder = root / CGROUPS
    for step in ("", *PurePosixPath(path).parts[1:]):
        folder /= step
        pages = _numbers(folder / "memory.stat")
        cached = pages.get("active_file", 0) + pages.get("inactive_file", 0)
        used = _text(folder / "memory.current").strip()
        for name in ("memory.max", "memory.high"):
            limit = _text(folder / name).strip()
            if limit.isdigit() and used.isdigit():
                yield int(limit), max(0, int(limit) - max(0, int(used) - cached))


def _numbers(path: Path) -> dict[str, int]:
    """A file of rows with a name and a number."""
    rows = map(str.split, _text(path).splitlines())
    return {name: int(number) for name, number, *_ in rows}


def _text(path: Path) -> str:
    """A file's text; empty if it cannot be read."""
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""


HUGE_BYTES = 2 * 2**20
"""Size of a huge page on x86-64, and on ARM with pages of 4 KiB."""


def empty_bytes(num_bytes: int) -> npt.NDArray[np.uint8]:
    """Map zeroed memory in huge pages; it is unmapped with the last view of it.

    Direct reads from a disk (O_DIRECT) into huge pages are twice as fast on a virtual
    disk, because the kernel looks up one page per 2 MiB instead of 512
    (bench/LOG.md, 2026-11). Without huge pages in the kernel, pages are plain.

    Args:
        num_bytes: 1 or more.

    Returns:
        Shape (num_bytes,), uint8, zeros; begins on a huge page.

    Source:
        madvise(2), MADV_HUGEPAGE; Documentation/admin-guide/mm/transhuge.rst of Linux.
    """
    # One page more than needed: the array starts at the first huge page boundary.
    num_pages = -(-num_bytes // HUGE_BYTES) + 1
    memory = mmap.mmap(
        -1, num_pages * HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    )
    with suppress(OSError):  # the kernel may lack huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.uint8)
    start = -whole.ctypes.data % HUGE_BYTES
    return whole[start : start + num_bytes]


class ThreadMemory(threading.local):
    """Memory that each thread uses again and again, as large as its largest use."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)
        self._array_HW = np.empty((0, 0), np.uint16)

    def bytes(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        """Return undefined bytes, valid until the thread asks for others.

        Returns:
            Shape (num_bytes,), uint8; begins on a page.
        """
        if num_bytes > len(self._bytes):
            self._bytes = empty_bytes(num_bytes)
        return self._bytes[:num_bytes]

    def array(self, rows: int, columns: int) -> npt.NDArray[np.uint16]:
        """Return an undefined array, valid until the thread asks for another.

        Args:
            rows: of the array, 1 or more.
            columns: of the array, 1 or more.

        Returns:
            Shape (rows, columns), uint16; begins on a page.
        """
        if self._array_HW.shape != (rows, columns):
            flat = self.bytes(2 * rows * columns).view(np.uint16)
            self._array_HW = flat.reshape(rows, columns)
        return self._array_HW
