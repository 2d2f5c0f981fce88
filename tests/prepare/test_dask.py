"""A cluster writes the bytes of one machine, also when a worker is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from ichfast.dicom.slices import Slice, read_slices
from ichfast.errors import StoreError
from ichfast.prepare import dask, prepare
from ichfast.prepare.convert import MAX_DECODE_BYTES, Job, read_file
from ichfast.prepare.dask_worker import convert_in_subprocess, end_run
from ichfast.prepare.journal import Journal
from ichfast.prepare.plan import Unit, entry_name
from ichfast.prepare.prepare import prepare_store
from ichfast.prepare.workers import convert_units
from ichfast.sources.sources import list_entries
from tests.conftest import contents

pytest.importorskip("distributed", reason="needs the extra dask")

LEVELS = (512, 256)
UNIT_ENTRIES = 6
START_S = 120.0
"""How long scheduler and workers may take to start."""


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a part of the cluster, and kill it at the end of the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "distributed.cli." + arguments[0], *arguments[1:]],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def appears(path: Path) -> str:
    """Wait for a file, and return its text."""
    deadline_s = time.monotonic() + START_S
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline_s, f"{path.name} does not appear"
        time.sleep(0.02)
    return path.read_text()


@contextmanager
def a_scheduler(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of a scheduler without workers, and its process."""
    file = folder / "scheduler.json"
    arguments = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard")
    with process("dask_scheduler", *arguments, "--scheduler-file", str(file)) as run:
        yield json.loads(appears(file))["address"], run


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with a_scheduler(tmp_path_factory.mktemp("dask")) as (address, _):
        yield address


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
        Unit(number, first, part)
        for number, first in enumerate(range(0, len(entries), UNIT_ENTRIES))
        if (part := entries[first : first + UNIT_ENTRIES])
    ]


def job_for(store: Path) -> Job:
    journal = Journal(store, LEVELS)
    journal.path.mkdir(parents=True)
    name = partial(entry_name, keep_ids=False, first_unit=0)
    return Job(journal, b"key", read_file, 60.0, name)


def watched_read(folder: Path, content: bytes, _name: str) -> Iterator[Slice]:
    """Record the process that reads, and wait while the file ``wait`` exists."""
    slices = list(read_slices(content))
    trace = folder / f"{slices[0].slice_id}.{os.getpid()}"
    trace.write_text(str(os.getpid()))
    deadline_s = time.monotonic() + START_S
    while (folder / "wait").exists() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    yield from slices


def ancestors(pid: int) -> set[int]:
    found = set()
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.add(pid)
    return found


def kill_one_at_work(
    running: list[subprocess.Popen[bytes]], reads: Path
) -> subprocess.Popen[bytes]:
    """Kill a worker while it decodes, then let the others continue."""
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


def hoarding_read(content: bytes, _name: str) -> Iterator[Slice]:
    """`read_slices`, after taking more memory than a worker may have."""
    bytearray(4 * MAX_DECODE_BYTES)
    yield from read_slices(content)


@pytest.mark.slow
def test_a_unit_on_a_cluster_has_the_memory_limit_of_one_machine(
    source: Path, tmp_path: Path
) -> None:
    job = replace(job_for(tmp_path / "store"), decode=hoarding_read)
    unit = units_of(source)[0]
    assert convert_in_subprocess(job, unit, "a run") == UNIT_ENTRIES
    end_run("a run")
    rejects = job.journal.read(unit).rejects
    assert [reason for _, _, reason, _ in rejects] == ["too-large"] * UNIT_ENTRIES


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder in which reads are recorded, and wait while it has a file ``wait``."""
    folder = tmp_path / "reads"
    folder.mkdir()
    (folder / "wait").touch()
    monkeypatch.setattr(prepare, "UNIT_ENTRIES", UNIT_ENTRIES)
    monkeypatch.setattr(prepare, "read_file", partial(watched_read, folder))
    return folder


run = partial(prepare_store, labels=None, workers=1, keep_ids=True)


@contextmanager
def when_reading(reads: Path, act: Callable[[], object]) -> Iterator[None]:
    """Call a function in a thread as soon as a unit is being converted."""

    def wait_and_act() -> None:
        deadline_s = time.monotonic() + START_S
        while not list(reads.glob("ID_*")) and time.monotonic() < deadline_s:
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    try:
        yield
    finally:
        thread.join(2 * START_S)


def is_reading(reads: Path) -> bool:
    """Whether a process that has read a file is still running."""
    for trace in reads.glob("ID_*"):
        status = Path(f"/proc/{trace.name.rpartition('.')[2]}/stat")
        with suppress(OSError):
            if status.read_text().rpartition(")")[2].split()[0] != "Z":
                return True
    return False


@pytest.mark.slow
def test_a_worker_killed_half_way_leaves_the_bytes_of_one_machine(
    scheduler: str, source: Path, tmp_path: Path, reads: Path
) -> None:
    with workers(scheduler, tmp_path) as running:
        kill = partial(kill_one_at_work, running, reads)
        with when_reading(reads, kill):
            run([source], tmp_path / "shared", scheduler=scheduler, packed=True)
        assert [worker.poll() is None for worker in running].count(False) == 1
    run([source], tmp_path / "local", packed=True)
    assert contents(tmp_path / "shared") == contents(tmp_path / "local")


def press_ctrl_c(reads: Path) -> None:
    signal.raise_signal(signal.SIGINT)
    time.sleep(1)
    (reads / "wait").unlink()


@pytest.mark.slow
def test_ctrl_c_and_a_lost_scheduler_end_the_run_and_the_store_continues(
    source: Path, tmp_path: Path, reads: Path
) -> None:
    store = tmp_path / "shared"
    with a_scheduler(tmp_path) as (address, process), workers(address, tmp_path):
        with (
            when_reading(reads, partial(press_ctrl_c, reads)),
            pytest.raises(
                StoreError, match=r"^stopped with (0|6|12) of 23 files done; "
            ),
        ):
            run([source], store, scheduler=address)
        deadline_s = time.monotonic() + START_S
        while is_reading(reads):
            assert time.monotonic() < deadline_s, "units are still being converted"
            time.sleep(0.05)
        for trace in reads.glob("ID_*"):
            trace.unlink()
        (reads / "wait").touch()
        with (
            when_reading(reads, process.kill),
            pytest.raises(StoreError, match=r"^the Dask scheduler at .* is gone; "),
        ):
            run([source], store, scheduler=address)
    (reads / "wait").unlink()
    run([source], store)
    run([source], tmp_path / "local")
    assert contents(store) == contents(tmp_path / "local")


@pytest.mark.slow
def test_no_scheduler_is_an_error_of_one_line(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask, "CONNECT_S", 0.5)
    job = job_for(tmp_path / "store")
    with pytest.raises(StoreError, match=r"^no Dask scheduler answers at .*:9 within"):
        convert_units(job, units_of(source), 1, scheduler="tcp://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(StoreError, match=r"pip install 'ichfast\[dask\]'$"):
        convert_units(job, units_of(source), 1, scheduler="tcp://127.0.0.1:9")


@pytest.mark.slow
def test_a_cluster_without_workers_ends_the_run(
    scheduler: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask, "NO_WORKER_S", 0.3)
    job = job_for(tmp_path / "store")
    with pytest.raises(StoreError, match="had no worker for 0 s; start some"):
        convert_units(job, units_of(source), 1, scheduler=scheduler)
