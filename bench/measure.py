"""The only timing code: repeats, medians, intervals, ratios and their record.

Promises:

1. Things that are compared take turns (A B A B), so that a machine that slows down
   slows all of them. What a turn needs beforehand is not timed.
2. Warm-up turns are not counted. The device is idle before a clock is read.
3. A figure is the median of its turns, with the interval that holds the true median
   with the stated coverage, whatever the turns' distribution.
4. A ratio is the median of the ratios turn by turn, with an interval of its own.
5. A figure whose interval is wider than `NOISY_SPREAD` of it says that it is noisy.
6. A record holds all that is needed to repeat or doubt it, and no name or path.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ichfast.environment import describe_environment
from ichfast.errors import IchfastError

WANTED_COVERAGE = 0.95
"""Least chance that an interval holds the true median; 6 turns or more reach it."""

NOISY_SPREAD = 0.25
"""Width of an interval, as a share of its median, from which on it says little."""

ROLES = ("ichfast", "limit", "peer")
"""What is measured: our code, what no code can beat, and what others would use."""


class BenchError(IchfastError):
    """A measurement that cannot be made, or results that cannot be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """One of the things that are compared."""

    name: str
    role: str
    """One of `ROLES`."""

    run: Callable[[], int]
    """Does the work of one turn; returns the units that it did."""

    before: Callable[[], object] = lambda: None
    """Called before each turn, not timed."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """What is particular to it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A median and the interval around it."""

    median: float
    low: float
    high: float
    coverage: float
    """Chance that the interval holds the true median."""

    @property
    def is_noisy(self) -> bool:
        """Whether the interval is too wide to say much."""
        return self.high - self.low > NOISY_SPREAD * self.median


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One line of a results file."""

    date: str
    """UTC, to the minute, ISO 8601."""

    commit: str
    """Of the checkout; ``+changes`` behind it where files differ from it."""

    stage: str
    case: str
    """What is compared within the stage, such as ``level 512``."""

    name: str
    role: str
    unit: str
    """Of the rates: units a second."""

    device: str
    cache: str
    """``hot``, ``cold``, or ``none`` where no file is read."""

    settings: dict[str, Any]
    rates: tuple[float, ...] = ()
    """Of each turn, in order; empty if not measured."""

    rate: Estimate | None = None
    ratio: Estimate | None = None
    """Rate of ichfast over the rate of this; None for ichfast itself."""

    is_noisy: bool = False
    reason: str = ""
    """Why it is not measured."""

    load_before: float = 0.0
    """Load average of the machine's last minute when the stage began."""

    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str]:
        """What is measured: stage, case and name."""
        return self.stage, self.case, self.name


@dataclass(frozen=True, kw_only=True, slots=True)
class Meter:
    """Compares contenders and makes records of them."""

    device: str
    """``cpu`` or ``cuda``."""

    repeats: int
    """Turns that count; 6 or more make an interval of 95 %."""

    warmup: int = 1
    """Turns that do not."""

    clock: Callable[[], float] = time.perf_counter
    """Gives seconds."""

    on_turn: Callable[[str], None] = lambda _: None
    """Told before each turn what runs."""

    def compare(
        self,
        contenders: Sequence[Contender],
        *,
        stage: str,
        case: str,
        unit: str,
        cache: str,
        settings: Mapping[str, Any],
    ) -> list[Record]:
        """Let contenders take turns and record their rates.

        Args:
            contenders: ichfast first; the others are compared with it.
            stage: what they are part of.
            case: what they have in common within it.
            unit: what `Contender.run` counts, in the plural.
            cache: ``hot``, ``cold`` or ``none``.
            settings: what they have in common.
        """
        load_before = os.getloadavg()[0]
        rates = self._take_turns(contenders, f"{stage}, {case}")
        ours = rates[0]
        return [
            Record(
                date=_now(),
                commit=_commit(),
                stage=stage,
                case=case,
                name=contender.name,
                role=contender.role,
                unit=f"{unit}/s",
                device=self.device,
                cache=cache,
                settings={**settings, **contender.settings, "warmup": self.warmup},
                rates=tuple(own),
                rate=(rate := estimate(own)),
                ratio=ratio_of(ours, own) if contender.role != "ichfast" else None,
                is_noisy=rate.is_noisy,
                load_before=load_before,
                environment=describe_environment(),
            )
            for contender, own in zip(contenders, rates, strict=True)
        ]

    def left_out(
        self, *, stage: str, case: str, name: str, role: str, reason: str
    ) -> Record:
        """The record of what could not be measured."""
        return Record(
            date=_now(),
            commit=_commit(),
            stage=stage,
            case=case,
            name=name,
            role=role,
            unit="",
            device=self.device,
            cache="none",
            settings={},
            reason=reason,
            environment=describe_environment(),
        )

    def _take_turns(
        self, contenders: Sequence[Contender], label: str
    ) -> list[list[float]]:
        rates: list[list[float]] = [[] for _ in contenders]
        for turn in range(self.warmup + self.repeats):
            for contender, own in zip(contenders, rates, strict=True):
                self.on_turn(f"{label}: {contender.name}")
                contender.before()
                self._wait_for_device()
                started_s = self.clock()
                units = contender.run()
                self._wait_for_device()
                seconds = max(self.clock() - started_s, 1e-9)
                if turn >= self.warmup:
                    own.append(units / seconds)
        return rates

    def _wait_for_device(self) -> None:
        if self.device != "cpu":
            import torch

            torch.cuda.synchronize()


def estimate(values: Sequence[float]) -> Estimate:
    """The median of some values and an interval that needs no assumption.

    The interval reaches from the k-th smallest to the k-th largest value, with the
    largest k that `WANTED_COVERAGE` allows, or 1.

    Source:
        Order statistics: the number of values below the true median is binomial
        with p = 1/2 (Conover, Practical Nonparametric Statistics, 3.2).
    """
    ordered = sorted(values)
    count = len(ordered)
    if count == 0:
        raise ValueError("the median of no values")
    k = 1
    while 2 * (k + 1) <= count and _coverage(count, k + 1) >= WANTED_COVERAGE:
        k += 1
    middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    return Estimate(
        median=middle,
        low=ordered[k - 1],
        high=ordered[count - k],
        coverage=_coverage(count, k),
    )


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Ratios turn by turn: how many times as fast the first is as the second."""
    return estimate([a / b for a, b in zip(ours, theirs, strict=True)])


def _coverage(count: int, k: int) -> float:
    outside = sum(math.comb(count, below) for below in range(k))
    return max(0.0, 1.0 - 2.0 * outside / 2**count)


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Append records to a results file, one JSON object a line."""
    lines = "".join(json.dumps(asdict(record)) + "\n" for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(lines)


def read_records(path: Path) -> list[Record]:
    """Read a results file.

    Raises:
        BenchError: no such file, or a line that is no record.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(
            f"no results in {path}; make some with `python bench/throughput.py`"
        ) from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_from_json(json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            raise BenchError(
                f"{path}, line {number} is no record of this version; "
                "remove the line, or measure again"
            ) from error
    if not records:
        raise BenchError(f"{path} holds no record; measure again")
    return records


def _from_json(found: dict[str, Any]) -> Record:
    record = Record(**found)
    return replace(
        record,
        rates=tuple(record.rates),
        rate=Estimate(**found["rate"]) if found["rate"] else None,
        ratio=Estimate(**found["ratio"]) if found["ratio"] else None,
    )


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%MZ")


def _commit() -> str:
    """The checkout's commit, and whether the code that ran is that of the commit."""
    root = Path(__file__).resolve().parents[1]
    commit = _git(root, "rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown"
    changed = _git(root, "status", "--porcelain", "--", "ichfast", "bench/*.py")
    return f"{commit}+changes" if changed else commit


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
