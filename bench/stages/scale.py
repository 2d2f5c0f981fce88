"""Costs that must not grow with the number of slices or ranks.

* Memory of ``ichfast prepare``, of the parent and of its largest worker: independent of
  the number of files.
* Opening a store as large as the competition's, in a fresh process.
* The order of an epoch, and reading in that order: a slice costs the same in a store of
  any size. The stores' shards are holes, so the pages are in memory.
* The loader of a rank beside others: as fast as alone while there are enough cores.

Shape letters: N slices of the store.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from bench.harness.measure import Contender, Meter, Record
from bench.harness.opening import measure_opening
from bench.harness.peak import watch_command
from bench.harness.ranks import Ranks
from bench.harness.workload import Workload
from bench.inputs.copies import SIDE, write_copies
from bench.peers.task import LoaderTask
from bench.stages.loader import make_task, pick_slices
from ichfast.loading.sampler import Sampler
from ichfast.store.levels import SMALL_LEVEL
from ichfast.store.store import Store

STAGE = "scale"

AIM_S, AIM_MIB = 1.0, 953.7
"""Aims for opening the competition's store: a second, and a gigabyte in MiB."""

PREPARE_TURNS = 2
"""Turns of prepare; its peak memory hardly varies."""

PREPARE_TIMEOUT_S = 900.0
"""Time after which prepare is killed, seconds."""

READ_SLICES = 2048
"""Slices that are read in a turn from each store."""


def measure(workload: Workload, meter: Meter) -> list[Record]:
    """Measure memory, opening, order, reading and ranks.

    Args:
        workload: What is measured.
        meter: Makes the records.
    """
    return [
        *_measure_prepare(workload, meter),
        *_measure_opening(workload, meter),
        *_measure_slices(workload, meter),
        *_measure_ranks(workload, meter),
    ]


def _measure_prepare(workload: Workload, meter: Meter) -> list[Record]:
    """Measure the peak memory of the command on few and on many tiny files, MiB."""
    records = []
    for num_files in workload.memory_files:
        case = f"memory of prepare, {num_files:,} files"
        source, store = workload.scratch("copies"), workload.scratch("copies-store")
        write_copies(source, num_files)
        peaks = []
        for _ in range(PREPARE_TURNS):
            meter.on_turn(f"{STAGE}, {case}")
            workload.scratch(store.name)
            command = [sys.executable, "-m", "ichfast", "prepare", str(source)]
            command += ["--store", str(store), "--keep-ids"]
            command += ["--workers", str(workload.processes)]
            peaks.append(watch_command(command, timeout_s=PREPARE_TIMEOUT_S))
        settings = {"files": num_files, "rows": SIDE, "processes": workload.processes}
        for name, values in (
            ("parent", [peak.parent_mib for peak in peaks]),
            ("largest worker", [peak.worker_mib for peak in peaks]),
        ):
            records.append(
                meter.note(
                    values,
                    stage=STAGE,
                    case=case,
                    name=name,
                    unit="MiB",
                    cache="hot",
                    settings=settings,
                )
            )
        workload.scratch(source.name)
    return records


def _measure_opening(workload: Workload, meter: Meter) -> list[Record]:
    """Measure seconds and peak memory of a fresh process that opens a store."""
    path = workload.store_of_holes(workload.opened_slices)
    case = f"opening {workload.opened_slices:,} slices"
    costs = []
    for _ in range(meter.warmup + meter.repeats):
        meter.on_turn(f"{STAGE}, {case}")
        costs.append(measure_opening(path))
    counted = costs[meter.warmup :]
    settings = {"slices": workload.opened_slices, "warmup": meter.warmup}
    return [
        meter.note(
            [cost[column] for cost in counted],
            stage=STAGE,
            case=case,
            name=name,
            unit=unit,
            cache="hot",
            settings={**settings, "aim": aim},
        )
        for column, (name, unit, aim) in enumerate(
            (("time", "s", AIM_S), ("memory of the process", "MiB", AIM_MIB))
        )
    ]


def _measure_slices(workload: Workload, meter: Meter) -> list[Record]:
    """Compare order and reading of the largest store with smaller ones, slices/s."""
    sizes = sorted(workload.store_slices, reverse=True)
    with ExitStack() as stack:
        stores = [
            stack.enter_context(Store(workload.store_of_holes(size))) for size in sizes
        ]
        samplers = [
            Sampler(
                slices_N=np.arange(size), batch_size=workload.batch_size, shuffle=True
            )
            for size in sizes
        ]
        orders = [_draw_order(sampler, sizes[0]) for sampler in samplers]
        reads = [
            _read_in_order(store, sampler)
            for store, sampler in zip(stores, samplers, strict=True)
        ]
        return [
            record
            for case, runs, cache in (
                ("order of epochs", orders, "none"),
                (f"level {SMALL_LEVEL} in that order", reads, "hot"),
            )
            for record in meter.compare(
                _largest_against_smaller(sizes, runs),
                stage=STAGE,
                case=case,
                unit="slices",
                cache=cache,
                settings={"batch_size": workload.batch_size},
            )
        ]


def _largest_against_smaller(
    sizes: Sequence[int], runs: Sequence[Callable[[], int]]
) -> list[Contender]:
    return [
        Contender(
            name=f"store of {size:,}",
            role="ichfast" if size == sizes[0] else "limit",
            run=run,
            settings={"slices": size},
        )
        for size, run in zip(sizes, runs, strict=True)
    ]


def _draw_order(sampler: Sampler, num_slices: int) -> Callable[[], int]:
    """Make a run that draws enough epochs to order `num_slices` slices."""
    num_epochs = -(-num_slices // len(sampler.slices_N))
    return lambda: sum(len(sampler.order(epoch)) for epoch in range(num_epochs))


def _read_in_order(store: Store, sampler: Sampler) -> Callable[[], int]:
    """Make a run that copies the first slices of the first epochs from a store."""
    num_epochs = -(-READ_SLICES // sampler.num_slices)
    picked = np.concatenate([sampler.order(epoch) for epoch in range(num_epochs)])
    picked = picked[:READ_SLICES].tolist()
    copy_HW = np.empty((SMALL_LEVEL, SMALL_LEVEL), np.uint16)

    def run() -> int:
        for position in picked:
            copy_HW[:] = store.slice_HW(position, SMALL_LEVEL, check=False)
        return len(picked)

    return run


def _measure_ranks(workload: Workload, meter: Meter) -> list[Record]:
    """Measure the loader of a rank beside others and alone, and of all together."""
    cores = sorted(os.sched_getaffinity(0))
    share = max(len(cores) // max(workload.ranks), 1)
    case = f"loader, {share} core(s) a rank"
    num_devices = _num_devices(workload.device)
    world_sizes = sorted({1, *(n for n in workload.ranks if n <= num_devices)})
    left_out = [
        meter.left_out(
            stage=STAGE,
            case=case,
            name=f"each of {num_ranks} ranks",
            role="ichfast",
            reason=f"each rank needs a GPU, there is {num_devices}",
        )
        for num_ranks in workload.ranks
        if num_ranks > num_devices
    ]
    if len(world_sizes) < 2:
        return left_out
    max_ranks = world_sizes[-1]
    own = [
        [cores[(rank * share + k) % len(cores)] for k in range(share)]
        for rank in range(max_ranks)
    ]
    task = _task_of_ranks(workload, max_ranks)
    with Ranks(task, own, world_sizes) as ranks:
        records = meter.compare(
            [_rank_of(ranks, n, len(cores) // share) for n in reversed(world_sizes)],
            stage=STAGE,
            case=case,
            unit="slices",
            cache="hot",
            settings={
                "recipe": "exp-30",
                "level": task.level,
                "size": task.size,
                "batch_size": task.batch_size,
                "slices": len(task.positions_N) // max_ranks,
                "cores": share,
            },
        )
    together = [
        _all_ranks(record, meter) for record in records if record.settings["ranks"] > 1
    ]
    return records + together + left_out


def _task_of_ranks(workload: Workload, num_ranks: int) -> LoaderTask:
    """Make a task with enough slices for a whole batch of every rank."""
    num_slices = max(workload.num_loaded, num_ranks * workload.batch_size)
    with workload.open_store() as store:
        task = make_task(store, min(store.levels), workload)
        positions_N = pick_slices(store, num_slices)
    return replace(task, positions_N=positions_N)


def _num_devices(device: str) -> float:
    """Count the ranks that can have their own device; a CPU is shared by any number."""
    if device == "cpu":
        return math.inf
    import torch

    return torch.cuda.device_count()


def _rank_of(ranks: Ranks, num_ranks: int, max_at_once: int) -> Contender:
    """Make the contender of one rank of several; its rate is that of the slowest."""
    shared = "" if num_ranks <= max_at_once else f", {max_at_once} at a time"
    return Contender(
        name="alone" if num_ranks == 1 else f"each of {num_ranks} ranks{shared}",
        role="limit" if num_ranks == 1 else "ichfast",
        run=lambda: ranks.run_epoch(num_ranks) // num_ranks,
        settings={"ranks": num_ranks},
    )


def _all_ranks(record: Record, meter: Meter) -> Record:
    """Record the rate of all ranks of a record together."""
    num_ranks = record.settings["ranks"]
    return meter.note(
        [num_ranks * value for value in record.values],
        stage=STAGE,
        case=record.case,
        name=record.name.replace("each of ", "all of "),
        unit=record.unit,
        cache=record.cache,
        settings=record.settings,
    )
