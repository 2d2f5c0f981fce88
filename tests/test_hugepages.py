"""Memory in huge pages: aligned, empty, and gone when nobody looks at it any more."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from ichfast import hugepages
from ichfast.hugepages import HUGE_BYTES, empty_bytes

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.parametrize("num_bytes", [1, HUGE_BYTES, 3 * HUGE_BYTES + 4096])
def test_memory_begins_on_a_huge_page_and_is_empty(num_bytes: int) -> None:
    memory = empty_bytes(num_bytes)
    assert memory.shape == (num_bytes,)
    assert memory.ctypes.data % HUGE_BYTES == 0
    assert not memory.any()
    memory[:] = 7
    assert (memory == 7).all()


def test_memory_begins_there_also_where_the_kernel_maps_it_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel may align to huge pages itself; larger ones it does not know."""
    huge_bytes = 128 * HUGE_BYTES
    monkeypatch.setattr(hugepages, "HUGE_BYTES", huge_bytes)
    memory = empty_bytes(huge_bytes)
    assert memory.shape == (huge_bytes,)
    assert memory.ctypes.data % huge_bytes == 0


def test_the_kernel_is_asked_for_huge_pages() -> None:
    if not ENABLED.exists() or "[never]" in ENABLED.read_text():
        pytest.skip("this kernel has no huge pages to give")
    memory = empty_bytes(4 * HUGE_BYTES)
    assert "hg" in flags_of(memory.ctypes.data)


def flags_of(address: int) -> list[str]:
    """What the kernel notes of the memory at an address, proc_pid_smaps(5)."""
    here = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first:
            start, end = (int(part, 16) for part in first.split("-"))
            here = start <= address < end
        elif here and first == "VmFlags:":
            return line.split()[1:]
    raise AssertionError("the address is not mapped")


def test_a_kernel_without_huge_pages_gives_plain_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 10**6)
    assert len(empty_bytes(5000)) == 5000


def test_memory_is_gone_with_its_last_view() -> None:
    before = num_mapped_bytes()
    views = [empty_bytes(64 * HUGE_BYTES)[5:9].view(np.uint16) for _ in range(4)]
    assert num_mapped_bytes() - before > 200 * HUGE_BYTES
    views.clear()
    assert num_mapped_bytes() - before < 64 * HUGE_BYTES


def num_mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
