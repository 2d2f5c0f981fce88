"""What a machine has: driver, GPUs, packages, memory, a store; and its self-test.

A broken driver can hang a process or end it. So all that loads CUDA runs in a child
process, `ichfast.doctor.probe`. It sends what it finds stage by stage, and each stage
has `STAGE_TIMEOUT_S` to do so.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ichfast.system.environment import (
    describe_host,
    driver_version,
    outdated_packages,
)
from ichfast.system.memory import available_memory, total_memory

STAGES = ("decoders", "torch", "DALI", "CuPy", "store", "self-test")
"""What the child process examines, in this order."""

STOPPED = "stopped"
"""Stands for a stage when the child process hangs or ends before its time."""

STAGE_TIMEOUT_S = 60.0
"""Time limit of a stage, seconds. Loading torch from a slow disk takes longest."""

END_S = 5.0
"""Time for the child process to end, seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """A GPU that torch sees."""

    name: str
    capability: str
    """Compute capability, such as ``9.0``."""
    memory_bytes: int
    spare_bytes: int
    """Memory that ``--cache device`` may fill now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreSummary:
    """Counts of a store."""

    slices: int
    labelled: int
    """Slices with a label, or if none has one, series or studies with a label."""
    level_bytes: Mapping[str, int]
    """Bytes of all slices, by level, packed where the store is packed."""
    is_packed: bool
    spare_bytes: int
    """Host memory that ``--cache host`` may fill now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What a machine has. Fields of a stage that failed keep their defaults."""

    host: Mapping[str, Any]
    """From `describe_host`."""
    outdated: tuple[str, ...]
    """From `outdated_packages`."""
    driver: str | None
    """Version of NVIDIA's kernel driver; None if there is none, and in WSL."""
    hides_gpus: bool
    """Whether CUDA_VISIBLE_DEVICES is empty: the GPUs are left to others on purpose."""
    cpp_compiler: str | None
    """Name of the C++ compiler."""
    disk_bytes: int
    """Free space in the current folder."""
    memory_bytes: int
    """Memory that this process could use if it were alone."""
    available_bytes: int
    """Memory that this process can use now."""
    store_path: str
    """As typed."""

    missing_decoders: tuple[str, ...] = ()
    """Transfer syntaxes that no decoder reads."""
    packed_by: str = "unknown"
    """From `ichfast.packed.codec.packed_by`."""
    torch_cuda: str | None = None
    """CUDA version that torch is built for; None for a build without CUDA."""
    torch_archs: tuple[str, ...] = ()
    """Architectures that torch has kernels for, such as ``sm_90``."""
    gpus: tuple[Gpu, ...] = ()
    gpu_warning: str | None = None
    """What torch says about a driver that it cannot use."""
    apex: str = "none"
    """``nvidia``, ``broken``, ``other`` (another project of that name) or ``none``."""
    nvrtc: str | None = None
    """Version of the compiler that CuPy uses."""
    store: StoreSummary | None = None
    run: str | None = None
    """The newest folder in ``runs`` with a trained model."""
    tested_on: str | None = None
    """Device of the self-test: ``cuda`` or ``cpu``."""
    test_seconds: float = 0.0

    errors: Mapping[str, str] = field(default_factory=dict)
    """What went wrong in a stage, by its name or `STOPPED`."""

    def versions(self, prefix: str) -> dict[str, str]:
        """Versions of the installed packages whose names begin with a prefix."""
        found: Mapping[str, str] = self.host["versions"]
        return {k: v for k, v in found.items() if k.startswith(prefix)}


def examine_machine(store: Path) -> Machine:
    """Examine this machine, and run the self-test on the device that ``auto`` takes.

    Args:
        store: a store's folder, which need not exist.
    """
    command = [sys.executable, "-m", "ichfast.doctor.probe", str(store)]
    found: dict[str, Any] = {}
    errors: dict[str, str] = {}
    with closing(run_stages(command, STAGE_TIMEOUT_S)) as stages:
        for stage, facts, error in stages:
            found |= facts
            errors |= {stage: error} if error else {}
    for name in ("missing_decoders", "torch_archs"):
        found[name] = tuple(found.get(name, ()))
    found["gpus"] = tuple(Gpu(**each) for each in found.get("gpus", ()))
    if found.get("store"):
        found["store"] = StoreSummary(**found["store"])
    compiler = os.environ.get("CXX", "g++")
    return Machine(
        host=describe_host(),
        outdated=tuple(outdated_packages()),
        driver=driver_version(),
        hides_gpus=os.environ.get("CUDA_VISIBLE_DEVICES") == "",
        cpp_compiler=Path(compiler).name if shutil.which(compiler) else None,
        disk_bytes=shutil.disk_usage(Path()).free,
        memory_bytes=total_memory(),
        available_bytes=available_memory(),
        store_path=str(store),
        errors=errors,
        **found,
    )


def run_stages(
    command: Sequence[str], timeout_s: float
) -> Generator[tuple[str, dict[str, Any], str]]:
    """Run a child process, and yield what it says about each stage.

    Args:
        command: writes a line of JSON per stage of `STAGES`: its facts and its error.
        timeout_s: limit of each stage, seconds.

    Yields:
        A stage, its facts, and its error, empty if there is none. If the process hangs
        or ends, `STOPPED` is the last stage.
    """
    lines: queue.Queue[str] = queue.Queue()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    threading.Thread(target=_read_lines, args=(process, lines), daemon=True).start()
    try:
        for stage in STAGES:
            try:
                line = lines.get(timeout=timeout_s)
            except queue.Empty:
                yield STOPPED, {}, f"{stage} gives no answer within {timeout_s:g} s"
                return
            if not line:
                status = process.wait(END_S)
                yield STOPPED, {}, f"{stage} ends the process with status {status}"
                return
            yield stage, *json.loads(line)
    finally:
        process.kill()
        with suppress(subprocess.TimeoutExpired):  # it may hang in the driver
            process.wait(END_S)


def _read_lines(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line)
    lines.put("")
