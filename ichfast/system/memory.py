"""Memory that this process may take, without swapping and without being killed.

That is the least of what the machine and each cgroup around the process allow: a
container's limit is that of a cgroup, and where cgroups are nested each has its own.
Pages of files count as left, for the kernel gives them up.

Memory in pages of 2 MiB, where the kernel has such pages to give.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

ROOT = Path("/")


def total_memory(root: Path = ROOT) -> int:
    """Bytes that could be had if nobody else took any.

    Args:
        root: the folder of ``proc``, and what mount points are relative to.

    Source:
        proc_meminfo(5); Documentation/admin-guide/cgroup-v2.rst and
        cgroup-v1/memory.rst of Linux.
    """
    return min(bound.total for bound in _bounds(root))


def available_memory(root: Path = ROOT) -> int:
    """Bytes that can be had now; for the arguments and sources see `total_memory`."""
    return min(bound.left for bound in _bounds(root))


@dataclass(frozen=True, slots=True)
class _Bound:
    """What the machine or a cgroup allows, bytes."""

    total: int
    left: int


def _bounds(root: Path) -> Iterator[_Bound]:
    kib = _rows((root / "proc/meminfo").read_text("ascii"))
    yield _Bound(1024 * kib["MemTotal:"], 1024 * kib["MemAvailable:"])
    for folder, version in _cgroups(root):
        yield from _bounds_of(folder, version)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Version:
    """How a version of cgroups names what it says about memory."""

    limits: tuple[str, ...]
    usage: str
    file_pages: tuple[str, ...]
    """Rows of ``memory.stat``, bytes."""


_VERSIONS = {
    "cgroup2": _Version(
        limits=("memory.max", "memory.high"),
        usage="memory.current",
        file_pages=("active_file", "inactive_file"),
    ),
    "cgroup": _Version(
        limits=("memory.limit_in_bytes",),
        usage="memory.usage_in_bytes",
        file_pages=("total_active_file", "total_inactive_file"),
    ),
}
"""By the type of the file system that shows them. A machine may have both."""


def _cgroups(root: Path) -> Iterator[tuple[Path, _Version]]:
    """The folders of the cgroups around this process."""
    path_of = _own_cgroups(root)
    for line in _text(root / "proc/self/mountinfo").splitlines():
        mount, _, system = line.partition(" - ")
        kind, _, options = system.split(" ")[:3]
        if kind in path_of and (kind == "cgroup2" or "memory" in options.split(",")):
            shown, mount_point = mount.split(" ")[3:5]
            folder = root / mount_point.lstrip("/")
            for step in ("", *_steps(path_of[kind], shown)):
                folder /= step
                yield folder, _VERSIONS[kind]


def _own_cgroups(root: Path) -> dict[str, PurePosixPath]:
    """The cgroup of this process that counts memory, of each version."""
    path_of = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            path_of["cgroup2"] = PurePosixPath(path)
        elif "memory" in controllers.split(","):
            path_of["cgroup"] = PurePosixPath(path)
    return path_of


def _steps(path: PurePosixPath, shown: str) -> tuple[str, ...]:
    """The way from what a mount point shows to a cgroup.

    A container may see its own cgroup alone, and still be told its place outside.
    """
    return path.relative_to(shown).parts if path.is_relative_to(shown) else ()


def _bounds_of(folder: Path, version: _Version) -> Iterator[_Bound]:
    """The limits of a cgroup, if it has any."""
    limits = [_number(folder / name) for name in version.limits]
    used = _number(folder / version.usage)
    if used is not None:
        rows = _rows(_text(folder / "memory.stat"))
        spare = sum(rows.get(name, 0) for name in version.file_pages)
        for limit in limits:
            if limit is not None:
                yield _Bound(limit, max(0, limit - max(0, used - spare)))


def _number(path: Path) -> int | None:
    """What a file of a cgroup says; None: ``max``, or no such file."""
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _rows(text: str) -> dict[str, int]:
    """Names and numbers, one a line."""
    rows = map(str.split, text.splitlines())
    return {name: int(number) for name, number, *_ in rows}


def _text(path: Path) -> str:
    """A file's text; empty if it cannot be read."""
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""


HUGE_BYTES = 2 * 2**20
"""Of such a page, on x86-64 and on ARM with pages of 4 KiB."""


def empty_bytes(num_bytes: int) -> npt.NDArray[np.uint8]:
    """Memory of this process's own, for as long as the array or a view of it lives.

    A disk that reads past the page cache straight into it has one page to find for
    2 MiB, not 512: twice the rate on a virtual disk (bench/LOG.md, 2026-11). Where
    the kernel has no huge pages, they are plain ones.

    Args:
        num_bytes: 1 or more.

    Returns:
        Shape (num_bytes,), uint8, zeros; begins on a huge page.

    Source:
        madvise(2), MADV_HUGEPAGE; Documentation/admin-guide/mm/transhuge.rst of Linux.
    """
    # The last page is whole, so that it can be huge too, and the first one is moved up
    # to where huge pages begin.
    num_pages = -(-num_bytes // HUGE_BYTES) + 1
    memory = mmap.mmap(
        -1, num_pages * HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    )
    with suppress(OSError):  # a kernel built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.uint8)
    start = -whole.ctypes.data % HUGE_BYTES
    return whole[start : start + num_bytes]
