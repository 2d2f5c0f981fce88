"""Records that no machine measured, and a clock that shows given times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from bench.harness.estimates import estimate
from bench.harness.measure import Contender, Meter, Record


def fake_clock(durations: Sequence[float]) -> Callable[[], float]:
    """A clock that lets each turn take the next of some durations, seconds."""

    def readings() -> Iterator[float]:
        now = 0.0
        for duration in durations:
            yield now
            now += duration
            yield now

    iterator = readings()
    return lambda: next(iterator)


def compare_two(
    durations: Sequence[float], *, repeats: int, warmup: int
) -> list[Record]:
    """Compare 12 slices of ours with 6 of theirs, whose turns take `durations`."""
    meter = Meter(
        device="cpu", repeats=repeats, warmup=warmup, clock=fake_clock(durations)
    )
    return meter.compare(
        [
            Contender(name="ours", role="ichfast", run=lambda: 12),
            Contender(name="theirs", role="peer", run=lambda: 6),
        ],
        stage="read",
        case="hot",
        unit="slices",
        cache="hot",
        settings={"size": 32},
    )


def record_of(
    stage: str, case: str, name: str, rates: Sequence[float], **changes: Any
) -> Record:
    """A record of ours with made-up rates; `changes` are other fields of it."""
    record = Record(
        date="2026-01-01T00:00Z",
        commit="abc",
        stage=stage,
        case=case,
        name=name,
        role="ichfast",
        unit="slices/s",
        device="cpu",
        cache="hot",
        settings={},
        values=tuple(rates),
        estimate=estimate(rates),
        environment={"processor": "P", "cores": 2, "gpus": []},
    )
    return replace(record, **changes)
