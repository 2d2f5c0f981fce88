"""The stages train and end_to_end at toy size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.harness.measure import Contender
from bench.harness.workload import Workload
from bench.stages.train import watch_memory
from tests.bench.stage_checks import run_toy_stage

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_training_is_compared_with_its_limits_and_timms_step(toy: Workload) -> None:
    records = run_toy_stage("train", toy)
    assert "timm-step" in {record.name for record in records}


def test_the_memory_of_a_turn_is_read_after_it_and_forgotten_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[str] = []

    def noting(text: str) -> int:
        log.append(text)
        return 3

    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: noting("forget"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5 * 2**20)
    peaks_mib: list[float] = []
    contender = watch_memory(
        Contender(
            name="ours",
            role="ichfast",
            run=lambda: noting("run"),
            before=lambda: noting("before"),
        ),
        peaks_mib,
    )
    for _ in range(2):
        contender.before()
        assert contender.run() == 3
    assert log == ["before", "forget", "run"] * 2
    assert peaks_mib == [5.0, 5.0]


@pytest.mark.slow
def test_a_whole_run_is_compared_with_its_arithmetic(toy: Workload) -> None:
    records = run_toy_stage("end_to_end", toy)
    assert [record.name for record in records] == ["ichfast train", "arithmetic alone"]
