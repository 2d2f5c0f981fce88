"""Packed slices in the memory of a GPU, against raw ones there.

* The two kernels that unpack a batch, against the one that gathers it. All slices are
  on the GPU; a turn goes over them several times, batch by batch.
* The loader with ``--cache device``.

Shape letters: N slices in memory, B slices of a batch.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from bench.harness.loading import open_loader, run_epoch
from bench.harness.measure import Contender, Meter, Record
from bench.harness.workload import Workload
from bench.stages.loader import make_task, pick_slices
from bench.stages.packed_code import STAGE
from ichfast.loading.gather import gather_slices, load_kernels, unpack_slices
from ichfast.store.store import Store

MAX_SLICES = 1536
"""Upper limit of the slices that are loaded or unpacked in a turn."""

KERNEL_TIMES = 8
"""How often a turn of the kernels goes over the slices."""


def measure_on_gpu(
    packed: Store, raw: Store, level: int, workload: Workload, meter: Meter
) -> list[Record]:
    """Measure the kernels and the loader on a GPU, slices per second.

    Args:
        packed: Holds the slices.
        raw: The store that it was made of.
        level: One of their levels.
        workload: What is measured.
        meter: Makes the records.
    """
    kernels_case = f"on the GPU, level {level}"
    loader_case = f"--cache device, level {level} to {workload.size}"
    reason = _reason_to_skip(workload.device)
    if reason:
        return [
            meter.left_out(
                stage=STAGE, case=case, name="ichfast", role="ichfast", reason=reason
            )
            for case in (kernels_case, loader_case)
        ]
    return [
        *_compare_kernels(packed, raw, level, workload, meter, case=kernels_case),
        *_compare_loaders(packed, raw, level, workload, meter, case=loader_case),
    ]


def _reason_to_skip(device: str) -> str:
    """Explain why nothing can be measured; empty if it can."""
    if device == "cpu":
        return "no GPU is used"
    if not load_kernels(torch.device(device, torch.cuda.current_device())):
        return "CuPy cannot compile the kernels"
    return ""


def _compare_kernels(
    packed: Store,
    raw: Store,
    level: int,
    workload: Workload,
    meter: Meter,
    *,
    case: str,
) -> list[Record]:
    picked_N = pick_slices(raw, min(workload.num_loaded, MAX_SLICES))
    rows_N = torch.arange(len(picked_N), device=workload.device)
    firsts = range(0, len(rows_N), workload.batch_size)
    batches = [rows_N[first:][: workload.batch_size] for first in firsts] * KERNEL_TIMES
    records = ResidentRecords(packed, level, picked_N, workload.device)
    slices_NHW = read_resident(raw, level, picked_N, workload.device)

    def repeat(pick: Callable[[torch.Tensor], object]) -> int:
        for rows_B in batches:
            pick(rows_B)
        return KERNEL_TIMES * len(rows_N)

    return meter.compare(
        [
            Contender(
                name="ichfast", role="ichfast", run=partial(repeat, records.unpack)
            ),
            Contender(
                name="gathering raw slices",
                role="limit",
                run=partial(repeat, partial(gather_slices, slices_NHW)),
            ),
        ],
        stage=STAGE,
        case=case,
        unit="slices",
        cache="none",
        settings={
            "level": level,
            "slices": len(picked_N),
            "times": KERNEL_TIMES,
            "batch_size": workload.batch_size,
            "unit_bytes": slices_NHW[0].nbytes,
        },
    )


class ResidentRecords:
    """Records of slices of one shape in the memory of a device.

    Args:
        packed: Holds the slices.
        level: One of its levels.
        picked_N: Their store positions.
        device: ``cuda``, or ``cpu`` in tests.
    """

    def __init__(
        self, packed: Store, level: int, picked_N: npt.NDArray[np.int64], device: str
    ) -> None:
        sizes_N = packed.record_bytes_N(level)[picked_N]
        ends_N = np.cumsum(sizes_N)
        records = np.empty(ends_N[-1], np.uint8)
        for position, size, end in zip(picked_N, sizes_N, ends_N, strict=True):
            packed.read_record_into(int(position), level, records[end - size : end])
        self._shape = packed.slice_HW(int(picked_N[0]), level).shape
        self._records = torch.from_numpy(records).to(device)
        self._at_N = torch.from_numpy(ends_N - sizes_N).to(device)
        self._size_N = torch.from_numpy(sizes_N.astype(np.int32)).to(device)

    def unpack(self, rows_B: torch.Tensor) -> torch.Tensor:
        """Unpack a batch, given the numbers of its slices; shape (B, H, W), int16."""
        stored_BHW, _ = unpack_slices(
            self._records, self._at_N[rows_B], self._size_N[rows_B], self._shape
        )
        return stored_BHW


def read_resident(
    raw: Store, level: int, picked_N: npt.NDArray[np.int64], device: str
) -> torch.Tensor:
    """Read slices of one shape to a device, shape (N, H, W), int16.

    Args:
        raw: Holds the slices.
        level: One of its levels.
        picked_N: Their store positions.
        device: ``cuda``, or ``cpu`` in tests.
    """
    stored_NHW = np.stack([raw.slice_HW(int(each), level) for each in picked_N])
    return torch.from_numpy(stored_NHW.view(np.int16)).to(device)


def _compare_loaders(
    packed: Store,
    raw: Store,
    level: int,
    workload: Workload,
    meter: Meter,
    *,
    case: str,
) -> list[Record]:
    task = make_task(raw, level, workload)
    task = replace(
        task,
        positions_N=pick_slices(raw, min(workload.num_loaded, MAX_SLICES)),
        data=replace(task.data, cache="device"),
    )
    with ExitStack() as stack:
        with redirect_stderr(io.StringIO()):  # hides their progress
            from_packed, from_raw = (
                stack.enter_context(open_loader(store, task)) for store in (packed, raw)
            )
        return meter.compare(
            [
                Contender(
                    name="ichfast",
                    role="ichfast",
                    run=partial(run_epoch, from_packed),
                ),
                Contender(
                    name="raw store", role="limit", run=partial(run_epoch, from_raw)
                ),
            ],
            stage=STAGE,
            case=case,
            unit="slices",
            cache="none",
            settings={
                "level": level,
                "slices": len(task.positions_N),
                "batch_size": task.batch_size,
            },
        )
