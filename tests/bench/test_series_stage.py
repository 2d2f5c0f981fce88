"""The stage series at toy size."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.harness.workload import Workload
from tests.bench.stage_checks import run_toy_stage


@pytest.mark.slow
def test_the_stage_measures_features_the_head_and_the_commands(toy: Workload) -> None:
    workload = replace(toy, archs=("timm:test_efficientnet",))
    cases = {record.case: record for record in run_toy_stage("series", workload)}
    assert list(cases) == [
        "features, timm:test_efficientnet at 32",
        "series head, training",
        "series head, predicting",
        "predict, 400 slices",
        "train-series, 700 slices, one epoch",
    ]
    assert cases["predict, 400 slices"].settings["slices"] == 399
    memory = cases["train-series, 700 slices, one epoch"]
    assert (memory.unit, memory.settings["aim"]) == ("MiB", 5722.0)
