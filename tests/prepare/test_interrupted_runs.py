"""A run of prepare that was cut short continues to the bytes of an undisturbed one."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ichfast.errors import StoreError
from ichfast.prepare import prepare
from ichfast.prepare.prepare import prepare_store
from ichfast.store.store import Store
from tests.conftest import contents
from tests.prepare.conftest import remount


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "UNIT_ENTRIES", 8)


run = partial(prepare_store, labels=None, workers=1, keep_ids=True)


SCRIPT = """
import sys
from pathlib import Path
from ichfast.prepare import prepare
from ichfast.errors import IchfastError
from tests.prepare.slow_reading import slow_read

prepare.UNIT_ENTRIES = 8
prepare.read_file = slow_read
source, store = sys.argv[1:]
options = {"labels": None, "workers": 2, "keep_ids": True}
try:
    prepare.prepare_store([Path(source)], Path(store), **options)
except IchfastError as error:
    sys.exit(str(error))
"""


def start(
    source: Path,
    store: Path,
    *,
    file_limit: int | None = None,
) -> subprocess.Popen[str]:
    """Run the same prepare in another process, slowly."""

    def limit_file_size() -> None:
        if file_limit is not None:
            limits = file_limit, resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    script = store.with_name("script.py")
    script.write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, str(script), str(source), str(store)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        | {"ICHFAST_TEST_STORE": str(store)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit_file_size,
        start_new_session=True,
    )


def wait_until(happened: Callable[[], object], timeout_s: float = 120.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.005)


def processes_of(store: Path) -> list[str]:
    """Processes that `start` started for this store, and their workers."""
    mark = f"ICHFAST_TEST_STORE={store}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(process.name)
        except OSError:  # gone, or not ours
            continue
    return found


def num_pages(store: Path) -> int:
    return len(list((store / "journal").glob("*.page")))


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bytes_and_leaves_no_process(
    source: Path, tmp_path: Path
) -> None:
    run([source], tmp_path / "calm")
    store = tmp_path / "store"
    moments: list[Callable[[], object]] = [
        lambda: list(store.glob("level-256/.*.tmp")),
        lambda: num_pages(store) >= 1,
    ]
    rng = np.random.default_rng(5)
    for moment in moments:
        process = start(source, store)
        wait_until(moment)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.communicate(timeout=10)
        wait_until(lambda: not processes_of(store))
        assert not (store / "store.json").exists()
        with pytest.raises(StoreError, match="unfinished"):
            Store(store)
    run([source], store)
    assert contents(store) == contents(tmp_path / "calm")


@pytest.mark.parametrize("name", ["slices.parquet", "rejected.csv", "store.json"])
def test_a_run_cut_short_while_finishing_ends_in_the_same_bytes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run([source], tmp_path / "calm")
    store = tmp_path / "store"
    rename = Path.replace

    def replace_and_fail(self: Path, target: Path) -> Path:
        result = rename(self, target)
        if target == store / name:
            raise RuntimeError("power cut")
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace_and_fail)
        with pytest.raises(RuntimeError, match="power"):
            run([source], store)
    assert num_pages(store) == 3
    assert run([source], store).already_finished == (name == "store.json")
    assert contents(store) == contents(tmp_path / "calm")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_interrupted_run_says_how_far_it_came(
    source: Path, tmp_path: Path, number: signal.Signals
) -> None:
    store = tmp_path / "store"
    process = start(source, store)
    wait_until(lambda: num_pages(store))
    os.killpg(process.pid, number)  # as a terminal or a scheduler does it
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 1
    assert re.search("stopped with (8|16) of 23 files done; the same comm", errors)
    assert processes_of(store) == []
    assert run([source], store).slices == 23


@pytest.mark.slow
def test_a_full_disk_says_how_far_it_came_and_the_rest_follows(
    source: Path, tmp_path: Path
) -> None:
    # Seven slices of one shape fit at level 256, eight do not: two units of three.
    store = tmp_path / "store"
    process = start(source, store, file_limit=950_000)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "cannot write" in errors
    assert "files done; make room" in errors
    assert not list(store.glob("level-*/.*.tmp"))
    assert run([source], store).slices == 23


def test_a_disk_that_is_full_time_and_again_ends_in_the_same_bytes(
    source: Path, tmp_path: Path, small_disk: Path
) -> None:
    run([source], tmp_path / "calm")
    store, errors = small_disk / "store", []
    for kib in range(300, 20_000, 500):
        remount(small_disk, f"size={kib}k")
        try:
            run([source], store)
        except StoreError as error:
            errors.append(str(error))
        else:
            break
        assert not list(store.glob("**/.*.tmp"))
    for message in errors:
        assert re.search("No space left on device.* files done; make room", message)
    shares = {
        share for message in errors for share in re.findall(r"\d+ of 23", message)
    }
    assert len(shares) >= 2
    assert contents(store) == contents(tmp_path / "calm")
