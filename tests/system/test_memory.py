"""Available memory follows the tightest limit; memory in huge pages is aligned."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ichfast.system import memory as system_memory
from ichfast.system.memory import (
    HUGE_BYTES,
    available_memory,
    empty_bytes,
    total_memory,
)

MIB = 2**20
PROC = {"proc/meminfo": "MemTotal: 9437184 kB\nMemAvailable: 8388608 kB\nHuge: 0\n"}
JOB = "sys/fs/cgroup/system.slice/job.scope"


def machine(root: Path, files: dict[str, str]) -> Path:
    """Write the files that a kernel would show, under `root`."""
    for name, text in (PROC | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def cgroup2(folder: str, limit: str, used: int, file_pages: int = 0) -> dict[str, str]:
    """The files of a cgroup; sizes in MiB, that of the limit in bytes."""
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.high": "max\n",
        f"{folder}/memory.current": f"{used * MIB}\n",
        f"{folder}/memory.stat": (
            f"anon 7\nfile 9\nactive_file {file_pages * MIB}\ninactive_file 0\n"
        ),
    }


def test_without_cgroups_it_is_what_the_machine_has(tmp_path: Path) -> None:
    root = machine(tmp_path, {})
    assert (total_memory(root), available_memory(root)) == (9216 * MIB, 8192 * MIB)
    assert MIB < available_memory() <= total_memory()  # where this runs


def test_a_cgroup_without_a_limit_changes_nothing(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/system.slice/job.scope\n",
        **cgroup2(JOB, "max\n", 100),
    }
    assert available_memory(machine(tmp_path, files)) == 8192 * MIB


def test_a_limit_above_what_the_machine_has_changes_nothing(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        **cgroup2("sys/fs/cgroup", f"{9000 * MIB}\n", 0),
    }
    assert available_memory(machine(tmp_path, files)) == 8192 * MIB


def test_the_tightest_of_nested_limits_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/system.slice/job.scope\n",
        **cgroup2(JOB, f"{900 * MIB}\n", 100),
        **cgroup2("sys/fs/cgroup/system.slice", f"{1000 * MIB}\n", 700),
    }
    root = machine(tmp_path, files)
    assert (total_memory(root), available_memory(root)) == (900 * MIB, 300 * MIB)


def test_pages_of_files_that_were_read_count_as_left(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        **cgroup2("sys/fs/cgroup", f"{1000 * MIB}\n", 950, file_pages=600),
    }
    assert available_memory(machine(tmp_path, files)) == 650 * MIB


def test_the_high_mark_above_which_a_process_is_slowed_down_is_a_limit(
    tmp_path: Path,
) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        **cgroup2("sys/fs/cgroup", f"{1000 * MIB}\n", 100),
        "sys/fs/cgroup/memory.high": f"{800 * MIB}\n",
    }
    assert available_memory(machine(tmp_path, files)) == 700 * MIB


def test_a_limit_that_is_overdrawn_leaves_nothing(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        **cgroup2("sys/fs/cgroup", f"{100 * MIB}\n", 101),
    }
    assert available_memory(machine(tmp_path, files)) == 0


def test_a_container_that_sees_only_its_own_cgroup_has_its_limit(
    tmp_path: Path,
) -> None:
    files = {
        "proc/self/cgroup": "0::/docker/4711\n",
        **cgroup2("sys/fs/cgroup", f"{100 * MIB}\n", 60),
    }
    assert available_memory(machine(tmp_path, files)) == 40 * MIB


def test_memory_beyond_the_limit_is_a_memory_error() -> None:
    code = """
from ichfast.system.memory import limit_memory
limit_memory(300 * 2**20)
kept = bytearray(200 * 2**20)
try:
    bytearray(200 * 2**20)
except MemoryError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("refused\n", "")


def test_a_limit_that_was_set_before_is_not_raised() -> None:
    code = """
import resource
from ichfast.system.memory import limit_memory
resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
limit_memory(2**40)
print(resource.getrlimit(resource.RLIMIT_AS) == (2**33, 2**33))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True\n", "")


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
    """The kernel may align to huge pages itself, but not to pages of 256 MiB."""
    huge_bytes = 128 * HUGE_BYTES
    monkeypatch.setattr(system_memory, "HUGE_BYTES", huge_bytes)
    memory = empty_bytes(huge_bytes)
    assert memory.shape == (huge_bytes,)
    assert memory.ctypes.data % huge_bytes == 0


def test_the_kernel_is_asked_for_huge_pages() -> None:
    if not ENABLED.exists() or "[never]" in ENABLED.read_text():
        pytest.skip("this kernel has no huge pages to give")
    memory = empty_bytes(4 * HUGE_BYTES)
    assert "hg" in flags_of(memory.ctypes.data)


def flags_of(address: int) -> list[str]:
    """The kernel's flags of the memory at an address, proc_pid_smaps(5)."""
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
