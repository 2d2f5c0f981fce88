"""Memory in pages of 2 MiB, where the kernel has such pages to give."""

from __future__ import annotations

import mmap
from contextlib import suppress

import numpy as np
import numpy.typing as npt

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
