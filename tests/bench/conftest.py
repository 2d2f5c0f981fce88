"""What tests of the benchmark share: a workload of toy size, and a dry session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.harness.measure import Meter
from bench.harness.workload import Workload
from bench.peers import PEERS
from tests.bench.made_up_records import record_of


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    """48 synthetic slices of 64 pixels, made when first asked for."""
    return Workload(
        cache_dir=tmp_path_factory.mktemp("cache"),
        scratch_dir=tmp_path_factory.mktemp("scratch"),
        num_files=48,
        file_size=64,
        size=32,
        batch_size=4,
        train_batch_size=4,
        peers=tuple(name for name in PEERS if PEERS[name].stage != "prepare"),
        num_loaded=16,
        num_steps=1,
        memory_files=(11,),
        store_slices=(7, 1100),
        opened_slices=1500,
        num_computed=8,
        num_head_series=4,
        predicted_slices=(400,),
        head_slices=700,
    )


@dataclass(frozen=True, slots=True)
class NotedStage:
    """What a stage was asked to measure."""

    stage: str
    workloads: Sequence[Workload]
    """One for each size."""

    meter: Meter


@pytest.fixture
def noted_stages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[NotedStage]:
    """Stages record without measuring; gives what each was asked for."""
    noted: list[NotedStage] = []

    def run(stage: str, workloads: Sequence[Workload], meter: Meter) -> None:
        noted.append(NotedStage(stage, workloads, meter))
        meter.on_record(record_of(stage, "hot", f"my {stage}", [1.0, 2.0]))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("bench.harness.session.run_stage", run)
    return noted
