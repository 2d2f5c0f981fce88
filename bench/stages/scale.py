"""What grows with the number of slices, and what must not.

* Memory of ``ichfast prepare``, of the parent and of its largest worker: flat in the
  number of files.
* Opening a store as large as the competition's, in a process that does nothing else.
* The order of an epoch, and slices read in it: a slice costs the same in a store of
  any size. The stores' shards are holes, so the pages are in memory.
* The loader, a rank on cores of its own beside another one: as fast as alone.

Shape letters: N slices of the store.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from bench.copies import SIDE, write_copies
from bench.measure import Contender, Meter, Record
from bench.opening import measure_opening
from bench.peak import watch_command
from bench.ranks import Ranks
from bench.stages.loader import make_task, pick_slices
from bench.workload import Workload
from ichfast.levels import SMALL_LEVEL
from ichfast.sampler import Sampler
from ichfast.store import Store

STAGE = "scale"

AIM_S, AIM_MIB = 1.0, 953.7
"""To open the store of the competition: a second and a gigabyte."""

PREPARE_TURNS = 2
"""What a process needs at most hardly varies."""

PREPARE_TIMEOUT_S = 900.0
READ_SLICES = 2048
"""Slices that are read in a turn."""

NUM_RANKS = 2


def measure(workload: Workload, meter: Meter) -> list[Record]:
    """Measure memory, opening, order, reading and ranks."""
    return [
        *_measure_prepare(workload, meter),
        *_measure_opening(workload, meter),
        *_measure_slices(workload, meter),
        *_measure_ranks(workload, meter),
    ]


def _measure_prepare(workload: Workload, meter: Meter) -> list[Record]:
    """Peak memory of the real command on few and on many tiny files, MiB."""
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
    """Seconds and peak memory of the first store that a process opens."""
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
    """Order and reading, the largest store against smaller ones, slices a second."""
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
    """Draws as many epochs as it takes to order `num_slices` slices."""
    num_epochs = -(-num_slices // len(sampler.slices_N))
    return lambda: sum(len(sampler.order(epoch)) for epoch in range(num_epochs))


def _read_in_order(store: Store, sampler: Sampler) -> Callable[[], int]:
    """Copies the slices that the first epochs begin with out of a store."""
    num_epochs = -(-READ_SLICES // sampler.num_slices)
    picked = np.concatenate([sampler.order(epoch) for epoch in range(num_epochs)])
    picked = picked[:READ_SLICES].tolist()
    copy_HW = np.empty((SMALL_LEVEL, SMALL_LEVEL), np.uint16)

    def run() -> int:
        for position in picked:
            copy_HW[:] = store.slice_HW(position, SMALL_LEVEL)
        return len(picked)

    return run


def _measure_ranks(workload: Workload, meter: Meter) -> list[Record]:
    """The loader of a rank beside another one and alone, slices a second of one."""
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // NUM_RANKS
    reason = _reason_against_ranks(workload, share)
    case = f"loader, {max(share, 1)} core(s) a rank"
    if reason:
        return [
            meter.left_out(
                stage=STAGE,
                case=case,
                name=f"each of {NUM_RANKS} ranks",
                role="ichfast",
                reason=reason,
            )
        ]
    own = [cores[rank * share : (rank + 1) * share] for rank in range(NUM_RANKS)]
    with workload.open_store() as store:
        task = make_task(store, min(store.levels), workload)
        positions_N = pick_slices(store, workload.num_loaded)
    with Ranks(replace(task, positions_N=positions_N), own) as ranks:
        return meter.compare(
            [
                Contender(
                    name=f"each of {NUM_RANKS} ranks",
                    role="ichfast",
                    run=lambda: ranks.run_epoch(NUM_RANKS) // NUM_RANKS,
                    settings={"ranks": NUM_RANKS},
                ),
                Contender(
                    name="alone",
                    role="limit",
                    run=lambda: ranks.run_epoch(1),
                    settings={"ranks": 1},
                ),
            ],
            stage=STAGE,
            case=case,
            unit="slices",
            cache="hot",
            settings={
                "recipe": "exp-30",
                "level": task.level,
                "size": task.size,
                "batch_size": task.batch_size,
                "slices": len(positions_N) // NUM_RANKS,
                "cores": share,
            },
        )


def _reason_against_ranks(workload: Workload, share: int) -> str:
    """Why ranks cannot run side by side here; empty if they can."""
    if share == 0:
        return f"{NUM_RANKS} ranks need a core each, there is one"
    if workload.device != "cpu":
        import torch

        found = torch.cuda.device_count()
        if found < NUM_RANKS:
            return f"{NUM_RANKS} ranks need a GPU each, there is {found}"
    return ""
