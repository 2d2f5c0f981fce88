"""The memory that is left is the machine's, or that of the tightest cgroup."""

from __future__ import annotations

from pathlib import Path

import pytest

from ichfast.memory import available_memory, total_memory

MIB = 2**20
PROC = {"proc/meminfo": "MemTotal: 9437184 kB\nMemAvailable: 8388608 kB\nHuge: 0\n"}
UNIFIED = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
JOB = "sys/fs/cgroup/system.slice/job.scope"


def machine(root: Path, files: dict[str, str]) -> Path:
    """Write the files that a kernel would show, under `root`."""
    for name, text in (PROC | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def cgroup2(folder: str, limit: str, used: int, file_pages: int = 0) -> dict[str, str]:
    """A cgroup of version 2; sizes in MiB."""
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.high": "max\n",
        f"{folder}/memory.current": f"{used * MIB}\n",
        f"{folder}/memory.stat": (
            f"anon 7\nfile 9\nactive_file {file_pages * MIB}\ninactive_file 0\n"
        ),
    }


def cgroup1(folder: str, limit: int, used: int, file_pages: int = 0) -> dict[str, str]:
    """A cgroup of version 1; sizes in MiB, that of the limit in bytes."""
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{used * MIB}\n",
        f"{folder}/memory.stat": (
            f"cache 1\nactive_file 1\ntotal_inactive_file {file_pages * MIB}\n"
        ),
    }


def test_without_cgroups_it_is_what_the_machine_has(tmp_path: Path) -> None:
    root = machine(tmp_path, {})
    assert (total_memory(root), available_memory(root)) == (9216 * MIB, 8192 * MIB)
    assert MIB < available_memory() <= total_memory()  # where this runs


def test_a_cgroup_without_a_limit_changes_nothing(tmp_path: Path) -> None:
    files = {
        "proc/self/mountinfo": UNIFIED,
        "proc/self/cgroup": "0::/system.slice/job.scope\n",
        **cgroup2(JOB, "max\n", 100),
    }
    assert available_memory(machine(tmp_path, files)) == 8192 * MIB


def test_a_limit_above_what_the_machine_has_changes_nothing(tmp_path: Path) -> None:
    files = {
        "proc/self/mountinfo": UNIFIED,
        "proc/self/cgroup": "0::/\n",
        **cgroup2("sys/fs/cgroup", f"{9000 * MIB}\n", 0),
    }
    assert available_memory(machine(tmp_path, files)) == 8192 * MIB


def test_the_tightest_of_nested_limits_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/mountinfo": UNIFIED,
        "proc/self/cgroup": "0::/system.slice/job.scope\n",
        **cgroup2(JOB, f"{900 * MIB}\n", 100),
        **cgroup2("sys/fs/cgroup/system.slice", f"{1000 * MIB}\n", 700),
    }
    root = machine(tmp_path, files)
    assert (total_memory(root), available_memory(root)) == (900 * MIB, 300 * MIB)


def test_pages_of_files_that_were_read_count_as_left(tmp_path: Path) -> None:
    files = {
        "proc/self/mountinfo": UNIFIED,
        "proc/self/cgroup": "0::/\n",
        **cgroup2("sys/fs/cgroup", f"{1000 * MIB}\n", 950, file_pages=600),
    }
    assert available_memory(machine(tmp_path, files)) == 650 * MIB


def test_a_process_is_slowed_down_above_the_high_mark(tmp_path: Path) -> None:
    files = {
        "proc/self/mountinfo": UNIFIED,
        "proc/self/cgroup": "0::/\n",
        **cgroup2("sys/fs/cgroup", f"{1000 * MIB}\n", 100),
        "sys/fs/cgroup/memory.high": f"{800 * MIB}\n",
    }
    assert available_memory(machine(tmp_path, files)) == 700 * MIB


def test_a_limit_that_is_overdrawn_leaves_nothing(tmp_path: Path) -> None:
    files = {
        "proc/self/mountinfo": UNIFIED,
        "proc/self/cgroup": "0::/\n",
        **cgroup2("sys/fs/cgroup", f"{100 * MIB}\n", 101),
    }
    assert available_memory(machine(tmp_path, files)) == 0


@pytest.mark.parametrize("shown", ["/docker/4711", "/"])
def test_limits_of_version_1_count_inside_a_container_and_outside(
    tmp_path: Path, shown: str
) -> None:
    inside = "" if shown != "/" else "docker/4711"
    files = {
        "proc/self/mountinfo": (
            "34 31 0:31 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
            f"35 31 0:32 {shown} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
            "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
        ),
        "proc/self/cgroup": (
            "5:cpu,cpuacct:/docker/4711\n4:memory:/docker/4711\n0::/\n"
        ),
        **cgroup1("sys/fs/cgroup/memory", 2**63 - 4096, 5000),
        **cgroup1(f"sys/fs/cgroup/memory/{inside}", 512 * MIB, 300, file_pages=88),
    }
    assert available_memory(machine(tmp_path, files)) == 300 * MIB


def test_a_place_that_is_not_shown_leaves_the_limit_of_what_is(tmp_path: Path) -> None:
    files = {
        "proc/self/mountinfo": UNIFIED.replace(" / ", " /docker/4711 "),
        "proc/self/cgroup": "0::/\n",
        **cgroup2("sys/fs/cgroup", f"{100 * MIB}\n", 60),
    }
    assert available_memory(machine(tmp_path, files)) == 40 * MIB
