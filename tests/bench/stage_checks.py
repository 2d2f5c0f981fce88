"""A stage run once at toy size, and what the records of every stage have."""

from __future__ import annotations

from dataclasses import replace

from bench.harness.measure import Meter, Record
from bench.harness.session import run_stage
from bench.harness.table import format_table, summarize
from bench.harness.workload import Workload


def run_toy_stage(stage: str, workload: Workload) -> list[Record]:
    """Measure a stage in two turns and check what holds for the records of all.

    Args:
        stage: one of `bench.stages.STAGES`.
        workload: of toy size.
    """
    records = run_stage(stage, [workload], Meter(device="cpu", repeats=2, warmup=0))
    assert {record.stage for record in records} == {stage}
    roles = {record.role for record in records if record.estimate}
    assert {"ichfast", "limit"} <= roles
    for record in records:
        assert (record.estimate is None) == bool(record.reason)
        is_alone = record.role == "ichfast" or record.unit == "%"
        assert is_alone or record.estimate is None or record.ratio
    table = format_table(records)
    assert all(record.name in table for record in records)
    assert summarize(records)["stages"].keys() == {stage}
    return records


def one_batch(workload: Workload) -> Workload:
    """A workload with no more slices to load than a batch has."""
    return replace(workload, num_loaded=workload.batch_size)
