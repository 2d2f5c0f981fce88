"""The stage scale at toy size: memory, opening, reading and ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.harness.measure import BenchError, Meter
from bench.harness.ranks import Ranks
from bench.harness.session import (
    run_stage,
)
from bench.harness.workload import Workload
from bench.scale import check_ranks
from bench.stages.loader import make_task
from tests.bench.made_up_records import fake_clock, record_of
from tests.bench.stage_checks import run_toy_stage

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_stage_runs_and_its_ranks_can_be_predicted_from_the_loader(
    toy: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.stages.scale.PREPARE_TURNS", 1)
    records = run_toy_stage("scale", toy)
    # The stage loader names its record so: `tests/bench/test_loader_stage.py`.
    loader = record_of(
        "loader",
        f"level 256 to {toy.size}",
        "ichfast",
        [100.0],
        environment=records[0].environment,
    )
    lines = check_ranks([*records, loader], level=256, size=toy.size)
    assert [line.split(" predicted ")[0] for line in lines] == [
        *("1 rank(s):", "2 rank(s):")
    ]


@pytest.mark.slow
def test_an_error_in_a_rank_is_raised_in_the_calling_process(
    toy: Workload, tmp_path: Path
) -> None:
    with toy.open_store() as store:
        task = make_task(store, 512, toy)
    with pytest.raises(BenchError, match=r"rank 0 failed: .* is not a slice store"):
        Ranks(replace(task, store_path=tmp_path), [[0]], [1])


class ReadyRanks:
    """Ranks that load 12 slices each, at once."""

    def __init__(self, *_: object) -> None:
        """Starts nothing."""

    def __enter__(self) -> ReadyRanks:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends nothing."""

    def run_epoch(self, world_size: int) -> int:
        return 12 * world_size


@pytest.mark.slow
def test_ranks_that_share_cores_are_named_so_and_add_up(
    toy: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("prepare", "opening", "slices"):
        monkeypatch.setattr(f"bench.stages.scale._measure_{part}", lambda *_: [])
    monkeypatch.setattr("bench.stages.scale.Ranks", ReadyRanks)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    meter = Meter(device="cpu", repeats=2, warmup=0, clock=fake_clock([1] * 8))
    records = run_stage("scale", [replace(toy, ranks=(1, 2, 4, 8))], meter)
    assert {record.name: record.values for record in records} == {
        "alone": (12.0, 12.0),
        "each of 2 ranks": (12.0, 12.0),
        "each of 4 ranks, 2 at a time": (12.0, 12.0),
        "each of 8 ranks, 2 at a time": (12.0, 12.0),
        "all of 2 ranks": (24.0, 24.0),
        "all of 4 ranks, 2 at a time": (48.0, 48.0),
        "all of 8 ranks, 2 at a time": (96.0, 96.0),
    }
