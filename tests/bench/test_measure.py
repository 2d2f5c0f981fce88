"""The method: turns, intervals, ratios and records, with fake clocks."""

from __future__ import annotations

import json
import sys
import threading
import time
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from bench.harness.estimates import estimate, ratio_of
from bench.harness.measure import BenchError, Contender, Meter, Record
from bench.harness.pagecache import drop_cache
from bench.harness.peak import Peak, peak_of, watch_command
from bench.harness.table import format_table
from tests.bench.made_up_records import compare_two

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_rate_is_the_units_over_the_seconds_of_its_own_turns() -> None:
    ours, theirs = compare_two([1, 1, 2, 3, 4, 6], repeats=2, warmup=1)
    assert ours.values == (6.0, 3.0)
    assert theirs.values == (2.0, 1.0)
    assert ours.estimate is not None
    assert ours.estimate.median == 4.5


@pytest.mark.slow
def test_a_ratio_is_taken_turn_by_turn_so_a_slow_machine_cancels_out() -> None:
    # The machine halves its speed with each turn; ours stays three times as fast.
    durations = [seconds * 2**turn for turn in range(6) for seconds in (2, 3)]
    ours, theirs = compare_two([*durations], repeats=6, warmup=0)
    assert theirs.ratio is not None
    assert (theirs.ratio.low, theirs.ratio.high) == (3.0, 3.0)
    assert ours.ratio is None
    assert ours.is_noisy
    assert theirs.is_noisy


@pytest.mark.slow
def test_contenders_take_turns_and_what_comes_before_a_turn_is_not_timed() -> None:
    log: list[str] = []
    ticks = count()

    def contender(name: str) -> Contender:
        def before() -> None:
            next(ticks)
            log.append(f"before {name}")

        def run() -> int:
            log.append(name)
            return 1

        return Contender(name=name, role="ichfast", run=run, before=before)

    meter = Meter(device="cpu", repeats=2, warmup=0, clock=lambda: float(next(ticks)))
    records = meter.compare(
        [contender("A"), contender("B")],
        stage="read",
        case="hot",
        unit="slices",
        cache="hot",
        settings={},
    )
    assert log == ["before A", "A", "before B", "B"] * 2
    assert [record.values for record in records] == [(1.0, 1.0)] * 2


@pytest.mark.slow
def test_what_a_contender_leaves_running_is_over_before_the_next_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A busy machine may let the thread wait for longer than the usual limits.
    monkeypatch.setattr("bench.harness.measure.IDLE_POLL_S", 0.1)
    monkeypatch.setattr("bench.harness.measure.MAX_IDLE_WAIT_S", 60.0)
    still_working: list[bool] = []
    threads: list[threading.Thread] = []

    def read_ahead() -> None:
        end_s = time.thread_time() + 0.2
        while time.thread_time() < end_s:
            pass

    def run_and_read_ahead() -> int:
        threads.append(threading.Thread(target=read_ahead))
        threads[-1].start()
        return 1

    def run() -> int:
        still_working.append(threads[-1].is_alive())
        return 1

    Meter(device="cpu", repeats=2, warmup=0).compare(
        [
            Contender(name="reads ahead", role="peer", run=run_and_read_ahead),
            Contender(name="next", role="ichfast", run=run),
        ],
        stage="read",
        case="hot",
        unit="slices",
        cache="hot",
        settings={},
    )
    assert still_working == [False, False]


def compare_with_failing(role: str, *, fails_in_turn: int) -> list[Record]:
    """Compare three contenders, of which the second fails in a turn, warm-up first."""
    turns = count()

    def fail() -> int:
        if next(turns) == fails_in_turn:
            raise FileNotFoundError("/home/somebody/file")
        return 1

    kept: list[Record] = []
    meter = Meter(device="cpu", repeats=2, warmup=1, on_record=kept.append)
    records = meter.compare(
        [
            Contender(name="ours", role="ichfast", run=lambda: 1),
            Contender(name="fails", role=role, run=fail),
            Contender(name="theirs", role="peer", run=lambda: 1),
        ],
        stage="read",
        case="hot",
        unit="slices",
        cache="hot",
        settings={},
    )
    assert kept == records
    return records


@pytest.mark.slow
@pytest.mark.parametrize("role", ["peer", "limit"])
@pytest.mark.parametrize("turn", [0, 2])
def test_what_fails_is_left_out_and_the_others_are_recorded(
    role: str, turn: int, caplog: pytest.LogCaptureFixture
) -> None:
    ours, failed, theirs = compare_with_failing(role, fails_in_turn=turn)
    assert len(ours.values) == len(theirs.values) == 2
    assert theirs.ratio is not None
    assert (failed.name, failed.role, failed.estimate) == ("fails", role, None)
    # The message may hold a path, so it is in the log only.
    assert failed.reason == "it failed with FileNotFoundError"
    assert "/home/somebody/file" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(("cut_in_turn", "num_recorded"), [(0, 0), (1, 0), (3, 2)])
def test_a_case_that_is_cut_records_the_turns_that_all_took(
    cut_in_turn: int, num_recorded: int
) -> None:
    turns = count()

    def run() -> int:
        if next(turns) == cut_in_turn:
            raise KeyboardInterrupt
        return 1

    kept: list[Record] = []
    meter = Meter(device="cpu", repeats=6, warmup=1, on_record=kept.append)
    with pytest.raises(KeyboardInterrupt):
        meter.compare(
            [
                Contender(name="ours", role="ichfast", run=lambda: 1),
                Contender(name="theirs", role="peer", run=run),
            ],
            stage="read",
            case="hot",
            unit="slices",
            cache="hot",
            settings={},
        )
    assert [len(record.values) for record in kept] == [num_recorded] * len(kept)
    assert len(kept) == 2 * (num_recorded > 0)


def test_a_failure_of_ours_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        compare_with_failing("ichfast", fails_in_turn=0)


@pytest.mark.slow
def test_a_tree_without_git_takes_its_commit_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bench.harness.measure._git", lambda *_: "")
    commits = []
    for commit in (None, "1d07e9600000"):
        if commit is not None:
            monkeypatch.setenv("ICHFAST_COMMIT", commit)
        commits.append(compare_two([1, 2], repeats=1, warmup=0)[0].commit)
    assert commits == ["unknown", "1d07e9600000"]


def test_the_interval_of_six_turns_reaches_from_the_lowest_to_the_highest() -> None:
    found = estimate([5.0, 1.0, 4.0, 2.0, 3.0, 6.0])
    assert (found.median, found.low, found.high) == (3.5, 1.0, 6.0)
    assert found.coverage == pytest.approx(1 - 2 / 64)


def test_the_interval_of_eleven_turns_leaves_out_the_extremes() -> None:
    found = estimate([float(k) for k in range(11)])
    assert (found.median, found.low, found.high) == (5.0, 1.0, 9.0)
    assert found.coverage == pytest.approx(1 - 2 * 12 / 2**11)


def test_the_interval_covers_the_true_median_as_often_as_stated() -> None:
    drawn = np.random.default_rng(0).exponential(size=(2000, 6))
    found = [estimate(row) for row in drawn.tolist()]
    covered = np.mean([e.low <= np.log(2.0) <= e.high for e in found])
    assert covered == pytest.approx(found[0].coverage, abs=0.015)


def test_equal_turns_are_not_noisy_and_turns_that_differ_by_half_are() -> None:
    assert not estimate([10.0] * 6).is_noisy
    assert not estimate([10.0, 11.0, 12.0]).is_noisy
    assert estimate([10.0, 12.0, 15.0]).is_noisy


def test_a_ratio_needs_the_same_number_of_turns_on_both_sides() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratio_of([1.0, 2.0], [1.0])


def test_estimates_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        estimate([])


def test_a_noted_cost_has_a_unit_and_the_table_warns_of_few_turns() -> None:
    record = Meter(device="cpu", repeats=6).note(
        [300.0, 310.0, 305.0],
        stage="scale",
        case="memory",
        name="worker",
        unit="MiB",
        cache="hot",
        settings={"aim": 1024.0},
    )
    assert record.estimate is not None
    assert (record.estimate.median, record.unit) == (305.0, "MiB")
    assert not record.more_is_better
    table = format_table([record])
    assert "305 MiB" in table
    assert "3 turns, too few for 95 %, aim: under 1,024 MiB" in table


@pytest.mark.slow
def test_a_record_names_its_conditions_and_neither_machine_nor_path() -> None:
    record = compare_two([1, 2, 3, 4], repeats=2, warmup=0)[0]
    assert record.commit
    assert record.date.endswith("Z")
    assert {"processor", "cores", "versions"} <= record.environment.keys()
    line = json.dumps(record.environment) + json.dumps(record.settings)
    assert str(Path.home()) not in line
    assert str(ROOT) not in line


def test_files_that_stay_in_the_page_cache_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(bytes(2**20))
    monkeypatch.setattr("bench.harness.pagecache._is_cached", lambda *_: True)
    assert "does not let go" in drop_cache([tmp_path / "file"])
    monkeypatch.setattr("bench.harness.pagecache._is_cached", lambda *_: False)
    assert drop_cache([tmp_path / "file"]) == ""


def test_the_memory_of_a_command_is_that_of_its_largest_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    wait = f"while not os.path.exists({str(seen)!r}): time.sleep(0.01)"
    child = f"import os, time; held = bytearray(60 << 20)\n{wait}"
    parent = (  # workers of `prepare` have a session of their own, too
        "import subprocess, sys; subprocess.run("
        f"[sys.executable, '-c', {child!r}], start_new_session=True)"
    )

    def watch(code: str, enough_mib: float) -> Peak:
        """Let the command end only after its memory has been seen."""

        def peak_and_tell(pid: int) -> float:
            mib = peak_of(pid)
            if mib > enough_mib:
                seen.touch()
            return mib

        seen.unlink(missing_ok=True)
        monkeypatch.setattr("bench.harness.peak.peak_of", peak_and_tell)
        return watch_command([sys.executable, "-c", code], timeout_s=60)

    small = watch(f"import os, time\n{wait}", 0.0)
    large = watch(parent, 60.0)
    assert small.worker_mib == 0.0
    assert 0.0 < small.parent_mib < 60.0 < large.worker_mib
    assert large.parent_mib < 60.0


def test_a_command_that_fails_or_never_ends_is_an_error() -> None:
    fails = [sys.executable, "-c", "raise SystemExit('no disk')"]
    with pytest.raises(BenchError, match="failed: no disk"):
        watch_command(fails, timeout_s=60)
    hangs = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(BenchError, match=r"did not end in 0\.2 s"):
        watch_command(hangs, timeout_s=0.2)
