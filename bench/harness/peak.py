"""Peak memory of a command: of its first process, and of the largest other process.

The peak memory of the command and of all processes below it is read every `POLL_S`
until the command ends. A peak in the last moment may be missed.

Source:
    proc_pid_status(5), VmHWM and VmRSS: resident set size, its peak and now;
    proc_pid_stat(5), ppid; malloc_trim(3).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.harness.measure import BenchError

POLL_S = 0.02
"""Time between two readings, seconds."""

KIB_IN_MIB = 1024
PROC_DIR = Path("/proc")


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """The highest resident set sizes of a command's processes."""

    parent_mib: float
    """Peak of the process that was started."""

    worker_mib: float
    """Peak of the largest process below it; 0 without any."""


def watch_command(command: Sequence[str], *, timeout_s: float) -> Peak:
    """Run a command to its end and watch the memory of its processes.

    Args:
        command: Program and arguments.
        timeout_s: Time after which the command is killed, seconds.

    Raises:
        BenchError: The command failed, or did not end in time and was killed.
    """
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    peak_mib: dict[int, float] = {}
    deadline_s = time.monotonic() + timeout_s
    try:
        while process.poll() is None and time.monotonic() < deadline_s:
            for pid in processes_below(process.pid):
                peak_mib[pid] = max(peak_mib.get(pid, 0.0), peak_of(pid))
            time.sleep(POLL_S)
        ended = process.poll() is not None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        _, errors = process.communicate()
    if not ended or process.returncode:
        last = (errors.decode(errors="replace").strip().splitlines() or ["no message"])[
            -1
        ]
        problem = f"failed: {last}" if ended else f"did not end in {timeout_s:g} s"
        raise BenchError(f"`{' '.join(command[1:4])} ...` {problem}")
    parent_mib = peak_mib.pop(process.pid, 0.0)
    return Peak(parent_mib=parent_mib, worker_mib=max(peak_mib.values(), default=0.0))


def peak_of(pid: int | str) -> float:
    """Read the peak resident set size of a process, MiB; 0 if it has ended.

    Args:
        pid: Process id, or ``self``.
    """
    return _status_mib(pid, "VmHWM")


def resident_mib() -> float:
    """Read the resident set size of this process, MiB, without freed memory."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _status_mib("self", "VmRSS")


def _status_mib(pid: int | str, name: str) -> float:
    try:
        lines = (PROC_DIR / str(pid) / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found[0]) / KIB_IN_MIB if found else 0.0


def processes_below(ancestor: int) -> list[int]:
    """List the ids of a process and of all that it started, and those started."""
    children: dict[int, list[int]] = {}
    for folder in PROC_DIR.glob("[0-9]*"):
        try:
            # The name of the program, in parentheses, may contain any character.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(int(fields[1]), []).append(int(folder.name))
    found = [ancestor]
    for pid in found:  # grows while it is walked
        found += children.get(pid, [])
    return found
