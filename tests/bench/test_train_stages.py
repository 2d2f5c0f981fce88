"""The stages train and end_to_end at toy size."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.harness.workload import Workload
from tests.bench.stage_checks import run_toy_stage

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_training_is_compared_with_its_limits_and_timms_step(toy: Workload) -> None:
    records = run_toy_stage("train", toy)
    assert "timm-step" in {record.name for record in records}


@pytest.mark.slow
def test_a_whole_run_is_compared_with_its_arithmetic(toy: Workload) -> None:
    records = run_toy_stage("end_to_end", toy)
    assert [record.name for record in records] == ["ichfast train", "arithmetic alone"]
