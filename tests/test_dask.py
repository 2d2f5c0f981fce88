"""A cluster makes the bytes of one machine, and goes on when a worker is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from ichfast import cluster
from ichfast.convert import Job
from ichfast.dicom import Slice, read_slices
from ichfast.errors import StoreError
from ichfast.journal import Journal
from ichfast.plan import Unit
from ichfast.sources import list_entries
from ichfast.workers import convert_units
from tests.conftest import contents

pytest.importorskip("distributed", reason="needs the extra dask")

LEVELS = (512, 256)
UNIT_ENTRIES = 6
START_S = 30.0
"""How long scheduler and workers may take to start."""


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a part of the cluster; killed with the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "distributed.cli." + arguments[0], *arguments[1:]],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def appears(path: Path) -> str:
    """Wait for a file, and give its text."""
    deadline_s = time.monotonic() + START_S
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline_s, f"{path.name} does not appear"
        time.sleep(0.02)
    return path.read_text()


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a scheduler in a process of its own, without workers."""
    file = tmp_path_factory.mktemp("dask") / "scheduler.json"
    arguments = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard")
    with process("dask_scheduler", *arguments, "--scheduler-file", str(file)):
        yield json.loads(appears(file))["address"]


@contextmanager
def workers(scheduler: str, folder: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two workers, each a process with one thread and a working folder."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                process(
                    *("dask_worker", scheduler, "--no-nanny", "--nthreads", "1"),
                    *("--no-dashboard", "--host", "127.0.0.1"),
                    *("--local-directory", str(folder / f"worker-{number}")),
                )
            )
            for number in range(2)
        ]


def units_of(source: Path) -> list[Unit]:
    entries = list_entries([source])
    return [
        Unit(number, first, part, [entry.key for entry in part])
        for number, first in enumerate(range(0, len(entries), UNIT_ENTRIES))
        if (part := entries[first : first + UNIT_ENTRIES])
    ]


def job_for(store: Path, reads: Path | None = None) -> Job:
    journal = Journal(store, LEVELS)
    journal.path.mkdir(parents=True)
    decode = read_slices if reads is None else partial(watched_read, reads)
    return Job(journal, b"key", decode, 60.0)


def watched_read(folder: Path, content: bytes) -> list[Slice]:
    """Leave a trace of the process that reads, and wait while the test says so."""
    slices = read_slices(content)
    trace = folder / f"{slices[0].slice_id}.{os.getpid()}"
    trace.write_text(str(os.getpid()))
    deadline_s = time.monotonic() + START_S
    while (folder / "wait").exists() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return slices


def ancestors(pid: int) -> set[int]:
    found = set()
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.add(pid)
    return found


def kill_one_at_work(
    running: list[subprocess.Popen[bytes]], reads: Path
) -> subprocess.Popen[bytes]:
    """Kill a worker while it decodes, then let everything go on."""
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s:
        for trace in reads.glob("ID_*"):
            above = ancestors(int(trace.name.rpartition(".")[2]))
            for worker in running:
                if worker.pid in above:
                    worker.send_signal(signal.SIGKILL)
                    worker.wait(10)
                    (reads / "wait").unlink()
                    return worker
        time.sleep(0.02)
    raise TimeoutError("no worker began")


def test_a_worker_killed_half_way_leaves_the_bytes_of_one_machine(
    scheduler: str, source: Path, tmp_path: Path
) -> None:
    units = units_of(source)
    convert_units(job_for(tmp_path / "local"), units, workers=1)
    reads = tmp_path / "reads"
    reads.mkdir()
    (reads / "wait").touch()
    job = job_for(tmp_path / "shared", reads)
    with workers(scheduler, tmp_path) as running:
        killer = threading.Thread(target=kill_one_at_work, args=(running, reads))
        killer.start()
        convert_units(job, units, workers=1, scheduler=scheduler)
        killer.join(START_S)
        assert [worker.poll() is None for worker in running].count(False) == 1
    assert contents(tmp_path / "shared") == contents(tmp_path / "local")


def test_no_scheduler_is_an_error_of_one_line(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "CONNECT_S", 0.5)
    job = job_for(tmp_path / "store")
    with pytest.raises(StoreError, match=r"^no Dask scheduler answers at .*:9 within"):
        convert_units(job, units_of(source), 1, scheduler="tcp://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(StoreError, match=r"pip install 'ichfast\[dask\]'$"):
        convert_units(job, units_of(source), 1, scheduler="tcp://127.0.0.1:9")


def test_a_cluster_without_workers_ends_the_run(
    scheduler: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "NO_WORKER_S", 0.3)
    job = job_for(tmp_path / "store")
    with pytest.raises(StoreError, match="had no worker for 0 s; start some"):
        convert_units(job, units_of(source), 1, scheduler=scheduler)
