"""One benchmark: options to a workload, stages to records, records to files.

Promises:

1. A record is on the disk as soon as it is made; Ctrl-C and a failing stage keep the
   records before them, and Ctrl-C also the turns of the case that it cuts.
2. The scratch folder is removed at the end, also after an error.
3. Records and picture go to one folder; nothing else in the checkout changes.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.harness.measure import BenchError, Meter, Record
from bench.harness.records import read_records, write_records
from bench.harness.table import format_table, summarize
from bench.harness.workload import Workload, choose_scratch, default_cache_dir
from bench.peers import parse_peers
from bench.plot import write_figure
from ichfast.models.config import ARCHS, ModelConfig
from ichfast.prepare.prepare import UNIT_ENTRIES
from ichfast.recipes.resolve import fitting_batch_size
from ichfast.runs.device import choose_device
from ichfast.system.files import write_text_atomically

FULL_SIZES = (224, 512)
"""Sides of the model's input with ``--full``, pixels."""

REPEATS = {"cuda": (6, 11), "cpu": (6, 6)}
"""Turns in the short and the full form, by device: 6 give an interval of 95 %, 11 give
one without the extremes."""

STEPS = {"cuda": (12, 50), "cpu": (2, 2)}
"""Training steps in a turn, as `REPEATS`. On a CPU a step takes seconds."""

LOADED = {"cuda": (4_096, 16_384), "cpu": (512, 512)}
"""Slices that a loader loads in a turn, as `REPEATS`."""

SHORT_RANKS, FULL_RANKS = (1, 2), (1, 2, 4, 8)
"""Numbers of ranks that the stage scale compares."""

COMPUTED = {"cuda": (4_096, 16_384), "cpu": (64, 64)}
"""Slices of which a network computes features in a turn, as `REPEATS`."""

HEAD_SERIES = {"cuda": 4_096, "cpu": 64}
"""Series that the series head reads in a turn, by device."""

SHORT_PREDICTED, FULL_PREDICTED = (10_000,), (10_000, 100_000)
"""Sizes of stores that are predicted with a series head."""

SHORT_HEAD_SLICES, FULL_HEAD_SLICES = 100_000, 752_803
"""Slices whose features a head trains on once; the second as in the competition."""

LOADED_BATCH = {"cuda": 128, "cpu": 32}
"""Slices in a batch of a loader, by device."""

STAGE_S = {
    "prepare": 75.0,
    "read": 8.0,
    "loader": 60.0,
    "packed": 80.0,
    "train": 15.0,
    "end_to_end": 15.0,
    "series": 90.0,
    "scale": 60.0,
}
"""Approximate seconds of each stage in its short form on two cores, for the ETA."""

SHORT_MEMORY_FILES, FULL_MEMORY_FILES = (1_000, 10_000), (1_000, 100_000)
"""Numbers of tiny files for the memory of prepare."""

SIZED_STAGES = ("loader", "train", "end_to_end")
"""Stages that depend on the size of the model's input."""

MAX_SHORT_UNITS, MAX_FULL_UNITS = 2, 16
"""Upper limit of the units of work for prepare; more cores than that are not used."""

SCRATCH_SHARE = 4
"""Bytes that prepare, its limits and its peers write, divided by those of the files."""


def run_session(  # noqa: PLR0913 - the options of the command
    stages: Sequence[str],
    *,
    store: Path | None,
    archs: Sequence[str],
    size: int | None,
    batch_size: int | None,
    device: str,
    peers: str,
    full: bool,
    out: Path | None,
    json_path: Path | None,
) -> dict[str, Any]:
    """Measure stages and print the table. The options are those of the command.

    Args:
        stages: Those of `bench.stages.STAGES` to measure, in order.
        store: A store to measure on; None for synthetic slices.
        archs: Backbones; empty for the default.
        size: Side of the model's input, pixels; None for the default.
        batch_size: Slices in a batch; None for the default of the device.
        device: ``auto``, ``cuda`` or ``cpu``.
        peers: ``all``, ``none``, or names with commas between them.
        full: All backbones and sizes, more ranks, turns, steps and slices.
        out: Folder for records and picture; None for one in the cache folder.
        json_path: File for all records as one JSON document, or None.

    Returns:
        Medians and ratios by stage, what was left out, and where the records are.

    Raises:
        IchfastError: An option is not possible here, or a stage failed.
    """
    if json_path is not None and not json_path.absolute().parent.is_dir():
        raise BenchError(
            f"{json_path.parent} is not a folder; create it, or name another"
        )
    workload = make_workload(
        store=store,
        archs=archs or (tuple(ARCHS) if full else ("efficientnet-b0",)),
        size=size,
        batch_size=batch_size,
        device=choose_device(device).type,
        peers=parse_peers(peers),
        full=full,
    )
    if workload.device == "cpu":
        _log("device: cpu; nothing on a GPU is measured")
    workloads = [
        replace(
            workload,
            size=each,
            train_batch_size=batch_size or train_batch_size(each, workload.device),
        )
        for each in (FULL_SIZES if full and size is None else (workload.size,))
    ]
    results = _Results(out or workload.cache_dir / "results")
    meter = Meter(
        device=workload.device,
        repeats=REPEATS[workload.device][full],
        on_turn=_show_turn,
        on_record=results.append,
    )
    try:
        _run_stages(stages, workloads, meter)
    except KeyboardInterrupt:
        place = f" are in {results.path}" if results.path else ""
        _log(f"interrupted; {len(results.records)} records{place}")
        raise
    finally:
        shutil.rmtree(workload.scratch_dir, ignore_errors=True)
    assert results.path is not None
    return _report(results.records, results.path, json_path)


def _run_stages(
    stages: Sequence[str], workloads: Sequence[Workload], meter: Meter
) -> None:
    started_s = time.monotonic()
    for number, stage in enumerate(stages):
        elapsed_s = time.monotonic() - started_s
        left_s = guess_time_left(stages, number, workloads, elapsed_s)
        _log(
            f"[{number + 1} of {len(stages)}] {stage}, "
            f"about {math.ceil(left_s / 60)} min left"
        )
        run_stage(stage, workloads, meter)


class _Results:
    """A results file that grows record by record."""

    def __init__(self, folder: Path) -> None:
        self.records: list[Record] = []
        self.path: Path | None = None
        """None before the first record, which gives it its name."""
        self._folder = folder

    def append(self, record: Record) -> None:
        """Append a record to the file."""
        self.path = self.path or self._folder / _results_name(record)
        write_records(self.path, [record])
        self.records.append(record)


def guess_time_left(
    stages: Sequence[str],
    number: int,
    workloads: Sequence[Workload],
    elapsed_s: float,
) -> float:
    """Guess the seconds until the end from `STAGE_S` and the pace so far.

    Args:
        stages: All stages that run.
        number: Index of the stage that begins.
        workloads: One for each size.
        elapsed_s: Seconds since the first stage began.
    """
    costs = [_guess_cost(stage, workloads) for stage in stages]
    done = sum(costs[:number])
    pace = elapsed_s / done if done else 1.0
    return pace * sum(costs[number:])


def _guess_cost(stage: str, workloads: Sequence[Workload]) -> float:
    cost = STAGE_S[stage] * (len(workloads) if stage in SIZED_STAGES else 1)
    # The other networks take three times as long as the first; 512 takes three times
    # as long as 224.
    return cost * (3 * len(workloads[0].archs) - 2 if stage == "train" else 1)


def make_workload(
    *,
    store: Path | None,
    archs: Sequence[str],
    size: int | None,
    batch_size: int | None,
    device: str,
    peers: tuple[str, ...],
    full: bool,
) -> Workload:
    """Make the workload of the options, with defaults for what is None.

    Args:
        store: A store to measure on; None for synthetic slices.
        archs: Backbones.
        size: Side of the model's input, pixels; None for 224.
        batch_size: Slices in a batch; None for the default of the device.
        device: ``cuda`` or ``cpu``.
        peers: Names of `bench.peers.PEERS`.
        full: More files, ranks, steps, slices and units of work.

    Raises:
        IchfastError: An arch is unknown, the store is missing or too small, or there is
            too little disk space.
    """
    for arch in archs:
        ModelConfig(arch=arch)  # refuses unknown archs
    cores = len(os.sched_getaffinity(0))
    num_units = min(cores, MAX_FULL_UNITS if full else MAX_SHORT_UNITS)
    cache_dir = default_cache_dir()
    size = size or 224
    workload = Workload(
        cache_dir=cache_dir,
        scratch_dir=cache_dir,
        store=store,
        num_files=num_units * UNIT_ENTRIES,
        size=size,
        batch_size=batch_size or LOADED_BATCH[device],
        train_batch_size=batch_size or train_batch_size(size, device),
        archs=tuple(archs),
        device=device,
        peers=peers,
        processes=cores,
        num_loaded=LOADED[device][full],
        num_steps=STEPS[device][full],
        memory_files=FULL_MEMORY_FILES if full else SHORT_MEMORY_FILES,
        num_computed=COMPUTED[device][full],
        num_head_series=HEAD_SERIES[device],
        predicted_slices=FULL_PREDICTED if full else SHORT_PREDICTED,
        head_slices=FULL_HEAD_SLICES if full else SHORT_HEAD_SLICES,
        ranks=FULL_RANKS if full else SHORT_RANKS,
    )
    if store is not None:
        workload.open_store().close()
    num_bytes = workload.num_files * 2 * workload.file_size**2
    scratch_dir = choose_scratch(cache_dir, SCRATCH_SHARE * num_bytes)
    return replace(workload, scratch_dir=scratch_dir)


def train_batch_size(size: int, device: str) -> int:
    """Choose the batch size of the recipe `fast`; on a CPU half of it, for speed.

    Args:
        size: Side of the model's input, pixels.
        device: ``cuda`` or ``cpu``.
    """
    fitting = fitting_batch_size(128, made_for=224, size=size, device_type=device)
    return fitting if device != "cpu" else max(2, fitting // 2)


def run_stage(stage: str, workloads: Sequence[Workload], meter: Meter) -> list[Record]:
    """Measure one stage.

    Args:
        stage: One of `bench.stages.STAGES`.
        workloads: One for each size; only the first is used for a stage that does not
            depend on the size of the input.
        meter: Makes the records.
    """
    measure = import_module(f"bench.stages.{stage}").measure
    records: list[Record] = []
    for workload in workloads if stage in SIZED_STAGES else workloads[:1]:
        records += measure(workload, meter)
    return records


def _report(
    records: Sequence[Record], path: Path, json_path: Path | None
) -> dict[str, Any]:
    print(format_table(records))
    noisy = [record for record in records if record.is_noisy]
    if noisy:
        _log(
            f"Warning: {len(noisy)} of {len(records)} figures are noisy (marked in the "
            "table); load average was "
            f"{max(record.load_before for record in noisy):.1f}; close other programs "
            "and measure again"
        )
    figure = path.with_name("throughput.png")
    write_figure(read_records(path), figure)
    _log(f"written: {path}\nwritten: {figure}")
    summary = summarize(records) | {"records": str(path), "figure": str(figure)}
    if json_path is not None:
        document = summary | {"all": [asdict(record) for record in records]}
        try:
            write_text_atomically(json_path, json.dumps(document) + "\n")
        except OSError as error:
            raise BenchError(f"cannot write {json_path}: {error.strerror}") from error
    return summary


def _results_name(record: Record) -> str:
    """Name a results file ``<year-month>_<hardware>_<commit>.jsonl``."""
    environment = record.environment
    gpus = environment["gpus"] if record.device != "cpu" else []
    hardware = (
        gpus[0] if gpus else f"{environment['cores']}x {environment['processor']}"
    )
    slug = re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")
    commit = record.commit.replace("+", "-")
    return f"{record.date[:7]}_{slug}_{commit}.jsonl"


def _show_turn(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K  {text}", end="\r", file=sys.stderr, flush=True)


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
