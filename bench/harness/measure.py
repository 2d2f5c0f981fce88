"""The only timing code: contenders take turns, and each gets a record.

Promises:

1. Contenders take turns (A B A B), so that a machine that slows down slows all of them.
   The preparation of a turn is not timed.
2. Warm-up turns do not count. The device is idle before a clock is read, and this
   process is idle before a turn, so that reading ahead does not slow the next
   contender. A program may report its own time, so that its start does not count.
3. A figure is the median of its turns, with the interval that holds the true median
   with the stated coverage (`bench.harness.estimates`).
4. A ratio is the median of the ratios turn by turn, with its own interval.
5. A figure with a wide interval is marked as noisy.
6. A record holds all that is needed to repeat or doubt it, and no name or path.
7. A limit or a peer that fails is left out. What else is compared is still recorded.
"""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from bench.harness.estimates import Estimate, estimate, ratio_of
from ichfast.errors import IchfastError
from ichfast.system.environment import describe_environment

logger = logging.getLogger(__name__)

ROLES = ("ichfast", "limit", "peer")
"""What is measured: our code, what no code can beat, and what others would use."""

IDLE_POLL_S, IDLE_SHARE = 0.01, 0.1
"""A process is idle when it uses less than `IDLE_SHARE` of `IDLE_POLL_S` seconds."""

MAX_IDLE_WAIT_S = 1.0
"""Longest wait for this process to become idle; it may poll for ever."""


COMMIT_VARIABLE = "ICHFAST_COMMIT"
"""Environment variable that names the commit of a tree without git."""


class BenchError(IchfastError):
    """A measurement that cannot be made, or results that cannot be read."""


@dataclass(frozen=True, slots=True)
class Clocked:
    """Work and time of a turn, reported by a program that measures its own time."""

    units: int
    seconds: float
    """Greater than 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """One of the things that are compared."""

    name: str
    role: str
    """One of `ROLES`."""

    run: Callable[[], int | Clocked]
    """Does the work of one turn; returns the units done, or `Clocked` with its own
    time."""

    before: Callable[[], object] = lambda: None
    """Prepares a turn; not timed."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of this contender only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One line of a results file."""

    date: str
    """UTC, to the minute, ISO 8601."""

    commit: str
    """Commit of the checkout, with ``+changes`` where files differ from it;
    ``unknown`` if nothing names it."""

    stage: str
    case: str
    """What is compared within the stage, such as ``level 512``."""

    name: str
    role: str
    unit: str
    """Unit of the values: rates end in ``/s``, costs are ``s``, ``MiB`` or ``%``."""

    device: str
    cache: str
    """``hot``, ``cold``, or ``none`` where no file is read."""

    settings: dict[str, Any]
    values: tuple[float, ...] = ()
    """Value of each turn, in order; empty if not measured."""

    estimate: Estimate | None = None
    ratio: Estimate | None = None
    """Rate of ichfast divided by this rate; None for ichfast itself."""

    is_noisy: bool = False
    reason: str = ""
    """Why it is not measured; empty if it is."""

    load_before: float = 0.0
    """Load average of the machine's last minute when the stage began."""

    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str]:
        """Stage, case and name: records of the same thing have the same key."""
        return self.stage, self.case, self.name

    @property
    def more_is_better(self) -> bool:
        """Whether a larger value is better: true for rates, false for costs."""
        return self.unit.endswith("/s")


@dataclass(frozen=True, kw_only=True, slots=True)
class Meter:
    """Compares contenders and makes records of them."""

    device: str
    """``cpu`` or ``cuda``."""

    repeats: int
    """Turns that count; 6 or more give an interval of 95 %."""

    warmup: int = 1
    """Turns before them that do not count."""

    clock: Callable[[], float] = time.perf_counter
    """Returns seconds."""

    on_turn: Callable[[str], None] = lambda _: None
    """Called before each turn with a text that says what runs."""

    on_record: Callable[[Record], None] = lambda _: None
    """Called with each record as soon as it is made."""

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
            stage: One of `bench.stages.STAGES`.
            case: What is compared within the stage.
            unit: What `Contender.run` counts, in the plural.
            cache: ``hot``, ``cold`` or ``none``.
            settings: Settings of all contenders.

        After Ctrl-C, the turns that all took are recorded first.

        Returns:
            A record for each contender, in their order.
        """
        turns = [_Turns() for _ in contenders]
        record = partial(
            self._record_turns,
            contenders,
            turns,
            what={"stage": stage, "case": case},
            settings={**settings, "warmup": self.warmup},
            unit=f"{unit}/s",
            cache=cache,
            load_before=os.getloadavg()[0],
        )
        try:
            self._take_turns(contenders, turns, f"{stage}, {case}")
        except KeyboardInterrupt:
            record()
            raise
        finally:
            gc.unfreeze()
        return record()

    def _record_turns(
        self,
        contenders: Sequence[Contender],
        turns: Sequence[_Turns],
        *,
        what: Mapping[str, str],
        settings: Mapping[str, Any],
        **how: Any,
    ) -> list[Record]:
        """Record the turns that all contenders took; nothing if there are none.

        Args:
            contenders: ichfast first.
            turns: Those of each contender.
            what: Stage and case of the records.
            settings: Settings of all contenders.
            how: More fields of what was measured.
        """
        num_turns = min(len(own.rates) for own in turns if not own.failure)
        if not num_turns:
            return []
        ours = turns[0].rates[:num_turns]
        records = []
        for contender, own in zip(contenders, turns, strict=True):
            named = {**what, "name": contender.name, "role": contender.role}
            if own.failure:
                records.append(self.left_out(**named, reason=own.failure))
                continue
            rates = own.rates[:num_turns]
            is_ours = contender.role == "ichfast"
            records.append(
                self._record(
                    **named,
                    **how,
                    settings={**settings, **contender.settings},
                    values=tuple(rates),
                    ratio=None if is_ours else ratio_of(ours, rates),
                )
            )
        return records

    def note(  # noqa: PLR0913 - the fields of a record
        self,
        values: Sequence[float],
        *,
        stage: str,
        case: str,
        name: str,
        unit: str,
        cache: str,
        settings: Mapping[str, Any],
        role: str = "ichfast",
    ) -> Record:
        """Record a figure that is not timed here.

        Args:
            values: One value for each turn, in order.
            stage: One of `bench.stages.STAGES`.
            case: What is measured within the stage.
            name: What has this cost or rate.
            unit: ``s``, ``MiB`` or ``%`` if less is better, a rate if more is.
            cache: ``hot``, ``cold`` or ``none``.
            settings: Settings that the figure depends on.
            role: One of `ROLES`.
        """
        return self._record(
            stage=stage,
            case=case,
            name=name,
            role=role,
            unit=unit,
            cache=cache,
            settings=dict(settings),
            values=tuple(values),
            load_before=os.getloadavg()[0],
        )

    def left_out(
        self, *, stage: str, case: str, name: str, role: str, reason: str
    ) -> Record:
        """Record what could not be measured, and why.

        Args:
            stage: One of `bench.stages.STAGES`.
            case: What would be compared within the stage.
            name: What is left out.
            role: One of `ROLES`.
            reason: Why, for the table.
        """
        return self._record(
            stage=stage,
            case=case,
            name=name,
            role=role,
            unit="",
            cache="none",
            settings={},
            reason=reason,
        )

    def _record(self, *, values: tuple[float, ...] = (), **fields: Any) -> Record:
        found = estimate(values) if values else None
        record = Record(
            date=_now(),
            commit=_commit(),
            device=self.device,
            values=values,
            estimate=found,
            is_noisy=found is not None and found.is_noisy,
            environment=describe_environment(),
            **fields,
        )
        self.on_record(record)
        return record

    def _take_turns(
        self, contenders: Sequence[Contender], turns: Sequence[_Turns], label: str
    ) -> None:
        """Let contenders take turns.

        Args:
            contenders: Those that are compared.
            turns: Grow with the turns of each.
            label: Says what is compared.
        """
        for turn in range(self.warmup + self.repeats):
            if turn == self.warmup:
                # Otherwise a full collection walks over all imports of all contenders
                # during some turn: 0.4 s with all peers.
                gc.collect()
                gc.freeze()
            for contender, own in zip(contenders, turns, strict=True):
                if own.failure:
                    continue
                self.on_turn(f"{label}: {contender.name}")
                try:
                    rate = self._take_turn(contender)
                except Exception as error:
                    if contender.role == "ichfast":
                        raise
                    # The message may hold a path, and records hold none.
                    logger.exception("%s: %s failed", label, contender.name)
                    own.failure = f"it failed with {type(error).__name__}"
                    continue
                if turn >= self.warmup:
                    own.rates.append(rate)

    def _take_turn(self, contender: Contender) -> float:
        """Let a contender do the work of a turn; returns units per second."""
        contender.before()
        _wait_until_idle()
        self._wait_for_device()
        started_s = self.clock()
        done = contender.run()
        self._wait_for_device()
        seconds = max(self.clock() - started_s, 1e-9)
        if not isinstance(done, Clocked):
            done = Clocked(done, seconds)
        return done.units / done.seconds

    def _wait_for_device(self) -> None:
        if self.device != "cpu":
            import torch

            torch.cuda.synchronize()


@dataclass(slots=True)
class _Turns:
    """What a contender's turns gave."""

    rates: list[float] = field(default_factory=list)
    """Units per second of each turn that counts."""

    failure: str = ""
    """Why it takes no more turns; empty if it does."""


def _wait_until_idle() -> None:
    """Wait until no thread of this process does anything, or `MAX_IDLE_WAIT_S`."""
    for _ in range(int(MAX_IDLE_WAIT_S / IDLE_POLL_S)):
        used_s = time.process_time()
        time.sleep(IDLE_POLL_S)
        if time.process_time() - used_s < IDLE_SHARE * IDLE_POLL_S:
            return


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%MZ")


def _commit() -> str:
    """Name the checkout's commit, and whether the code differs from it.

    An exported tree has no commit of its own; there `COMMIT_VARIABLE` names it.
    """
    root = Path(__file__).resolve().parents[2]
    commit = _git(root, "rev-parse", "--short=12", "HEAD")
    if not commit:
        return os.environ.get(COMMIT_VARIABLE, "unknown")
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
