"""A bad file costs only itself, a dead worker nothing, and progress counts files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ichfast.dicom.slices import Slice, read_slices
from ichfast.errors import RejectError, StoreError
from ichfast.prepare import pool, prepare, workers
from ichfast.prepare.convert import MAX_DECODE_BYTES
from ichfast.prepare.journal import Journal, Page
from ichfast.prepare.plan import Unit
from ichfast.prepare.prepare import prepare_store
from ichfast.store.store import Store
from ichfast.store.verify import verify_store
from tests.conftest import SHAPES, contents, write_dicom

CRASHING_HU = 3001
HANGING_HU = 3002
HOARDING_HU = 3003
"""First pixel of slices at which `fragile_read` dies, hangs or takes all memory; never
random."""


run = partial(prepare_store, labels=None, workers=1, keep_ids=True)


class Display:
    """Stands in for the bar of `progress`, and remembers what it showed."""

    def __init__(self) -> None:
        self.total = self.initial = self.n = 0
        self.unit_bytes = 0.0
        self.states: list[tuple[int, str]] = []
        self._postfix = ""

    def set_postfix_str(self, text: str, *, refresh: bool) -> None:
        assert not refresh, "the bar decides how often it is drawn"
        self._postfix = text

    def update(self, num: int) -> None:
        self.n += num
        self.states.append((self.n, self._postfix))


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> Display:
    shown = Display()

    @contextmanager
    def show(
        _label: str, total: int, _unit: str, *, unit_bytes: float
    ) -> Iterator[Display]:
        shown.total, shown.unit_bytes = total, unit_bytes
        yield shown

    monkeypatch.setattr(workers, "progress", show)
    return shown


def fragile_read(content: bytes, _name: str) -> Iterator[Slice]:
    """`read_slices`, but some slices end or stop the process, as bad decoders do."""
    slices = list(read_slices(content))
    corner_hu = int(slices[0].stored_HW[0, 0]) - 1024
    if corner_hu == CRASHING_HU:
        os.kill(os.getpid(), signal.SIGSEGV)
    if corner_hu == HANGING_HU:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        while True:
            time.sleep(60)
    if corner_hu == HOARDING_HU:
        bytearray(4 * MAX_DECODE_BYTES)
    yield from slices


@pytest.mark.slow
def test_a_crash_a_hang_and_a_hoard_cost_their_files_and_no_other(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, display: Display
) -> None:
    fragile = {"009": CRASHING_HU, "008": HANGING_HU, "017": CRASHING_HU}
    fragile["021"] = HOARDING_HU
    for name, hu in fragile.items():
        write_dicom(
            source / f"{name}.dcm", name, hu_HW=np.full(SHAPES[0], hu, np.int16)
        )
    monkeypatch.setattr(prepare, "UNIT_ENTRIES", 8)
    monkeypatch.setattr(prepare, "read_file", fragile_read)
    monkeypatch.setattr(prepare, "DECODE_TIMEOUT_S", 1.0)
    report = run([source], tmp_path / "store", workers=2, max_rejected="4")
    assert report.slices == 19
    assert report.rejected == {"decoder-crash": 2, "timeout": 1, "too-large": 1}
    table = pd.read_csv(tmp_path / "store" / "rejected.csv").set_index("path")
    assert table["reason"].to_dict() == {
        "009.dcm": "decoder-crash",
        "008.dcm": "timeout",
        "017.dcm": "decoder-crash",
        "021.dcm": "too-large",
    }
    assert display.states[-1] == (23, "4 rejected")
    assert verify_store(tmp_path / "store") == []


FRAMES_S = 2.0
"""Duration of four frames together. The timeout of a slice is below it, and far above
that of one frame, so that a busy machine changes nothing."""


def many_frames(fails: bool, content: bytes, _name: str) -> Iterator[Slice]:
    """One file of four slow frames; if it fails, at the last of them."""
    [one] = read_slices(content)
    if one.slice_id != "ID_5":
        yield one
        return
    for number in range(4):
        time.sleep(FRAMES_S / 4)
        if fails and number == 3:
            raise RejectError("decoder-error", "the last frame is damaged")
        yield replace(one, slice_id=f"{one.slice_id}.{number}")


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_each_frame_has_its_time_and_all_count_or_none(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setattr(prepare, "read_file", partial(many_frames, fails))
    monkeypatch.setattr(prepare, "DECODE_TIMEOUT_S", 0.8 * FRAMES_S)
    report = run([source], tmp_path / "store", max_rejected="1")
    assert report.slices == (22 if fails else 26)
    assert report.rejected == ({"decoder-error": 1} if fails else {})
    with Store(tmp_path / "store") as store:
        frames = store.table["slice_id"].astype(str).str.startswith("ID_5.")
        assert frames.sum() == (0 if fails else 4)
    assert verify_store(tmp_path / "store") == []


def kill_at_first_call(marker: Path, content: bytes, _name: str) -> Iterator[Slice]:
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    yield from read_slices(content)


@pytest.mark.slow
def test_a_worker_killed_from_outside_costs_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run([source], tmp_path / "calm")
    marker = tmp_path / "killed"
    killer = partial(kill_at_first_call, marker)
    monkeypatch.setattr(prepare, "read_file", killer)
    run([source], tmp_path / "store")
    assert marker.exists()
    assert contents(tmp_path / "store") == contents(tmp_path / "calm")


def die(content: bytes, _name: str) -> Iterator[Slice]:
    os.kill(os.getpid(), signal.SIGKILL)
    yield from read_slices(content)


def test_workers_that_die_of_everything_end_the_run(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "read_file", die)
    monkeypatch.setattr(pool, "MAX_DEATHS", 1)
    with pytest.raises(StoreError, match=r"unit 0 died 1 times.*fewer --workers"):
        run([source], tmp_path / "store")


def write_without_memory(_journal: Journal, _unit: Unit, _page: Page) -> None:
    bytearray(4 * MAX_DECODE_BYTES)


def test_a_worker_without_memory_ends_the_run_with_advice(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "read_file", read_and_break_the_journal)
    with pytest.raises(StoreError, match=r"unit 0 died 2 times.*memory ran out"):
        run([source], tmp_path / "store")


def read_and_break_the_journal(content: bytes, _name: str) -> Iterator[Slice]:
    """`read_slices`, in a worker whose pages are written without enough memory."""
    Journal.write = write_without_memory  # type: ignore[method-assign, assignment]
    yield from read_slices(content)


@pytest.mark.slow
def test_a_script_needs_no_guard_against_being_run_again(
    source: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from ichfast.prepare.prepare import prepare_store\n"
        f"print(prepare_store([{str(source)!r}], Path({str(tmp_path / 'store')!r}),\n"
        "      labels=None, workers=1, keep_ids=True).slices)\n"
    )
    ended = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (0, "23\n"), ended.stderr


def slow_read(content: bytes, _name: str) -> Iterator[Slice]:
    time.sleep(0.02)
    yield from read_slices(content)


@pytest.mark.slow
def test_files_are_counted_while_their_unit_is_being_converted(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, display: Display
) -> None:
    (source / "000.txt").write_text("no image")
    monkeypatch.setattr(prepare, "read_file", slow_read)
    monkeypatch.setattr(pool, "REFRESH_S", 0.05)
    run([source], tmp_path / "store")
    assert display.total == 24
    counts = [count for count, _ in display.states]
    assert counts == sorted(counts)
    assert len({count for count in counts if 0 < count < 24}) >= 3
    assert counts[-1] == 24
    assert {text for count, text in display.states if count > 2} == {"1 rejected"}


def test_an_interrupted_run_leaves_no_worker_at_work(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, display: Display
) -> None:
    def interrupt(num: int) -> None:
        if num:
            raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "read_file", slow_read)
    monkeypatch.setattr(pool, "REFRESH_S", 0.05)
    monkeypatch.setattr(display, "update", interrupt)
    with pytest.raises(StoreError, match="0 of 23 files done; the same command"):
        run([source], tmp_path / "store")
    assert not list((tmp_path / "store").glob("**/.*.tmp"))


def test_what_was_done_before_counts_from_the_start(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, display: Display
) -> None:
    monkeypatch.setattr(prepare, "UNIT_ENTRIES", 8)
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "read_file", die_at_the_last)
        patch.setattr(pool, "MAX_DEATHS", 1)
        with pytest.raises(StoreError, match="unit 2 died"):
            run([source], tmp_path / "store")
    run([source], tmp_path / "store")
    assert display.initial == 16
    assert display.states[-1] == (23, "0 rejected")


def die_at_the_last(content: bytes, _name: str) -> Iterator[Slice]:
    slices = list(read_slices(content))
    if slices[0].slice_id == "ID_22":
        os.kill(os.getpid(), signal.SIGKILL)
    yield from slices
