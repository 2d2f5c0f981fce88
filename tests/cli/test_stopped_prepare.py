"""However `ichfast prepare` is stopped, it says so in one line and leaves nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import contents
from tests.system.killed_process import killed_process

pytestmark = pytest.mark.slow

MAIN = """
import signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
from ichfast.cli.main import main
print("ready", flush=True)
main()
"""


@contextmanager
def preparing(
    source: Path, store: Path, tmpdir: Path
) -> Iterator[subprocess.Popen[str]]:
    """`ichfast prepare` in a session of its own, which has imported its command line.

    Python itself and imports of the first moments know no better than a traceback.
    """
    with killed_process(
        MAIN,
        *("prepare", str(source), "--store", str(store)),
        *("--keep-ids", "--workers=2"),
        env={**os.environ, "TMPDIR": str(tmpdir), "ICHFAST_TEST_STORE": str(store)},
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        yield process


def processes_of(store: Path) -> list[Path]:
    """Processes with this store in their environment."""
    mark = f"ICHFAST_TEST_STORE={store}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(process)
        except OSError:  # gone, or not ours
            continue
    return found


def wait_until(happened: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + 60.0
    while not happened():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def tmpdir(tmp_path: Path) -> Path:
    """A folder for temporary files, whose path is too long for a socket."""
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    return folder


def run_undisturbed(source: Path, store: Path, tmpdir: Path) -> float:
    """Run to the end; the seconds that it took, on a machine that may be busy."""
    with preparing(source, store, tmpdir) as process:
        began_s = time.monotonic()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        return time.monotonic() - began_s


# The handler of SIGTERM and SIGHUP is that of SIGINT, which is tested most.
@pytest.mark.parametrize(
    ("number", "moments"),
    [(signal.SIGINT, 14), (signal.SIGTERM, 6), (signal.SIGHUP, 6)],
)
def test_a_signal_at_any_moment_is_one_line(
    source: Path, tmp_path: Path, tmpdir: Path, number: signal.Signals, moments: int
) -> None:
    run_s = run_undisturbed(source, tmp_path / "calm", tmpdir)
    said = set()
    for moment in range(moments):
        store = tmp_path / f"store-{moment}"
        with preparing(source, store, tmpdir) as process:
            time.sleep(run_s * moment / moments)
            if process.poll() is None:
                os.killpg(process.pid, number)  # as a terminal does it
            _, errors = process.communicate(timeout=60)
        lines = [
            line
            for line in errors.splitlines()
            if line and not line.startswith(("prepare: ", "finished: "))
        ]
        if process.returncode == -number:  # before the command began
            assert not lines
        elif process.returncode:
            [line] = lines
            assert process.returncode == 1
            assert re.fullmatch(
                "Aborted!|Error: stopped with (no file|[0-9]+ of 23 files) done; the "
                "same command continues",
                line,
            )
            said.add(line)
        assert processes_of(store) == []
        assert not list(tmpdir.iterdir())
        assert not list(store.rglob(".*.tmp"))
    assert any("stopped with" in line for line in said)


@pytest.mark.parametrize("whole_group", [False, True])
def test_kill_9_at_any_moment_leaves_no_process_and_no_name(
    source: Path, tmp_path: Path, tmpdir: Path, whole_group: bool
) -> None:
    run_s = run_undisturbed(source, tmp_path / "calm", tmpdir)
    expected = contents(tmp_path / "calm")
    store = tmp_path / "store"
    for moment in range(8):
        with preparing(source, store, tmpdir) as process:
            time.sleep(run_s * moment / 12)
            for each in processes_of(store):
                # Semaphores and shared memory with a name, which a kill would leave.
                assert "/dev/shm/" not in text_of(each / "maps")
            if whole_group:
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
        wait_until(lambda: not processes_of(store))
        assert not list(tmpdir.iterdir())
    run_undisturbed(source, store, tmpdir)
    assert contents(store) == expected


def text_of(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # gone
        return ""
