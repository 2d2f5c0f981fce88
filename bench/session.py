"""One benchmark: options to a workload, stages to records, records to files.

1. Records are on the disk after each stage; a stage that fails costs itself.
2. The scratch folder is gone at the end, however it ends.
3. Without `record`, nothing in the checkout changes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.measure import BenchError, Meter, Record
from bench.peers import parse_peers
from bench.plot import write_figure
from bench.records import RESULTS_DIR, read_records, write_records
from bench.table import format_table, summarize
from bench.workload import Workload, choose_scratch, default_cache_dir
from ichfast.device import choose_device
from ichfast.files import write_text_atomically
from ichfast.models import ARCHS
from ichfast.prepare import UNIT_ENTRIES
from ichfast.recipe import ModelConfig
from ichfast.recipes import fitting_batch_size

FULL_SIZES = (224, 512)
"""With ``--full``."""

SHORT_REPEATS, FULL_REPEATS = 6, 11
"""6 turns make an interval of 95 %, 11 one that leaves out the extremes."""

SHORT_MEMORY_FILES, FULL_MEMORY_FILES = (1_000, 10_000), (1_000, 100_000)
"""Tiny files whose preparation is watched."""

SIZED_STAGES = ("loader", "train", "end_to_end")
"""Stages that the size of the model's input matters to."""

MOST_PROCESSES = {False: 2, True: 16}
"""So many units of work are made for prepare at most, in short and in full."""

SCRATCH_SHARE = 4
"""What prepare, its limits and its peers write, over the bytes of the files."""


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
    record: bool,
    json_path: Path | None,
) -> dict[str, Any]:
    """Measure what the options say, and print the table.

    Returns:
        Medians and ratios by stage, what was left out, and where the records are.

    Raises:
        IchfastError: an option that cannot be followed, or a stage that failed.
    """
    if json_path is not None and not json_path.absolute().parent.is_dir():
        raise BenchError(f"{json_path.parent} is no folder; make it, or name another")
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
        _say("device: cpu; nothing on a GPU is measured")
    sizes = FULL_SIZES if full and size is None else (workload.size,)
    meter = Meter(
        device=workload.device,
        repeats=FULL_REPEATS if full else SHORT_REPEATS,
        on_turn=_show_turn,
    )
    records: list[Record] = []
    path: Path | None = None
    try:
        for number, stage in enumerate(stages, start=1):
            _say(f"[{number} of {len(stages)}] {stage}")
            measured = run_stage(stage, workload, meter, sizes)
            path = path or _results_path(workload, measured[0], to_commit=record)
            write_records(path, measured)
            records += measured
    finally:
        shutil.rmtree(workload.scratch_dir, ignore_errors=True)
    assert path is not None
    return _report(records, path, json_path)


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
    """Settle what the options left open.

    Raises:
        IchfastError: an unknown arch, no store there, or too little disk space.
    """
    for arch in archs:
        ModelConfig(arch=arch)  # refuses unknown ones
    cores = len(os.sched_getaffinity(0))
    num_units = min(cores, MOST_PROCESSES[full])
    cache_dir = default_cache_dir()
    size = size or 224
    workload = Workload(
        cache_dir=cache_dir,
        scratch_dir=cache_dir,
        store=store,
        num_files=num_units * UNIT_ENTRIES,
        size=size,
        batch_size=batch_size or default_batch_size(size, device),
        archs=tuple(archs),
        device=device,
        peers=peers,
        processes=cores,
        num_loaded=512 if device == "cpu" else 16_384,
        num_steps=2 if device == "cpu" else 50,
        memory_files=FULL_MEMORY_FILES if full else SHORT_MEMORY_FILES,
    )
    if store is not None:
        workload.open_store().close()
    num_bytes = workload.num_files * 2 * workload.file_size**2
    scratch_dir = choose_scratch(cache_dir, SCRATCH_SHARE * num_bytes)
    return replace(workload, scratch_dir=scratch_dir)


def default_batch_size(size: int, device: str) -> int:
    """What `fast` takes; on a CPU half of it, to stay under five minutes."""
    fitting = fitting_batch_size(128, made_for=224, size=size, device_type=device)
    return fitting if device != "cpu" else max(2, fitting // 2)


def run_stage(
    stage: str, workload: Workload, meter: Meter, sizes: Sequence[int]
) -> list[Record]:
    """Measure one stage, at each size if size matters to it."""
    measure = import_module(f"bench.stages.{stage}").measure
    records: list[Record] = []
    for size in sizes if stage in SIZED_STAGES else sizes[:1]:
        records += measure(replace(workload, size=size), meter)
    return records


def _report(
    records: Sequence[Record], path: Path, json_path: Path | None
) -> dict[str, Any]:
    print(format_table(records))
    noisy = [record for record in records if record.is_noisy]
    if noisy:
        names = ", ".join(f"{record.stage} {record.name}" for record in noisy)
        _say(
            f"Warning: too noisy to say much: {names}; load average was "
            f"{max(record.load_before for record in noisy):.1f}; close other programs "
            "and measure again"
        )
    figure = path.with_name("throughput.png")
    write_figure(read_records(path), figure)
    _say(f"written: {path}\nwritten: {figure}")
    summary = summarize(records) | {"records": str(path), "figure": str(figure)}
    if json_path is not None:
        document = summary | {"all": [asdict(record) for record in records]}
        try:
            write_text_atomically(json_path, json.dumps(document) + "\n")
        except OSError as error:
            raise BenchError(f"cannot write {json_path}: {error.strerror}") from error
    return summary


def _results_path(workload: Workload, record: Record, *, to_commit: bool) -> Path:
    """<year-month>_<hardware>_<commit>.jsonl, in the checkout or in the cache."""
    environment = record.environment
    gpus = environment["gpus"] if record.device != "cpu" else []
    hardware = (
        gpus[0] if gpus else f"{environment['cores']}x {environment['processor']}"
    )
    slug = re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")
    commit = record.commit.replace("+", "-")
    folder = RESULTS_DIR if to_commit else workload.cache_dir / "results"
    return folder / f"{record.date[:7]}_{slug}_{commit}.jsonl"


def _show_turn(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K  {text}", end="\r", file=sys.stderr, flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
