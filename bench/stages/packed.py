"""A packed store against the raw one that it was made of.

* The bytes of whole shards.
* The loader. A raw slice is compared with its checksum once, in the warm-up; the record
  of a packed one is always compared.
* What a GPU does with slices in its memory (`bench.stages.packed_gpu`).

Without a GPU, also what does not depend on one:

* The code of a slice (`bench.stages.packed_code`).
* The reading part of the loader alone, which is all that the processor does where a GPU
  does the rest; both from disks of a given rate, too (`bench.harness.slow_disk`).
* The memory that ``--cache host`` takes.
* ``ichfast prepare`` with and without ``--packed``.

Without the C library nothing is measured: NumPy would take its place, slowly.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness.loading import open_loader, run_epoch
from bench.harness.measure import Contender, Meter, Record
from bench.harness.pagecache import fill_cache
from bench.harness.peak import resident_mib
from bench.harness.reader import SliceReader
from bench.harness.slow_disk import TokenBucket, slow_disk
from bench.harness.workload import Workload, check_space
from bench.stages.loader import make_task, pick_slices
from bench.stages.packed_code import (
    STAGE,
    measure_code,
    note_peer_bytes,
)
from bench.stages.packed_gpu import MAX_SLICES, measure_on_gpu
from bench.stages.prepare import Setup, count_processes, out_dirs, prepare_contender
from ichfast.packed.codec import packed_by
from ichfast.prepare.packing import pack_store
from ichfast.store.levels import LEVELS, SMALL_LEVEL, SOURCE_LEVEL
from ichfast.store.shards import shard_path
from ichfast.store.store import Store

DISKS = {"page cache": None, "0.5 GB/s": 0.5e9, "2 GB/s": 2e9}
"""Where slices are read from, and the rate of a disk, bytes per second."""

MIN_RATIO = {SOURCE_LEVEL: 3.8, SMALL_LEVEL: 2.85}
"""Aims for real slices: raw bytes, divided by packed ones."""

MIN_RATES = {
    ("page cache", SOURCE_LEVEL): 0.85,
    ("page cache", SMALL_LEVEL): 0.9,
    ("0.5 GB/s", SOURCE_LEVEL): 3.0,
    ("0.5 GB/s", SMALL_LEVEL): 2.3,
}
"""Aims for the loader, by disk and level: its rate, divided by that from raw slices."""

MIN_PREPARE_RATE = 0.8
"""Aim for prepare: its rate, divided by that without packing."""

MAX_MEMORY_PERCENT = 30.0
"""Aim for ``--cache host``: its memory, in per cent of that of raw slices."""

MAX_STORE_BYTES = 8 * 2**30
"""Upper limit of a store that is packed here."""

NUM_KEPT = 2048
"""Slices that ``--cache host`` keeps."""

KEPT_TURNS = 2
"""Turns of its memory, which hardly varies."""

PAGE_MIB = 4096 / 2**20
"""A page: the least memory that is noted."""


def measure(workload: Workload, meter: Meter) -> list[Record]:
    """Measure packed slices: rates, bytes and memory.

    Args:
        workload: What is measured.
        meter: Makes the records.
    """
    if packed_by() == "NumPy":
        return [_left_out(meter, "all", "the C library is missing")]
    on_cpu = workload.device == "cpu"
    with workload.open_store() as raw:
        records = measure_code(raw, workload, meter) if on_cpu else []
        if _num_bytes(raw) > MAX_STORE_BYTES:
            reason = f"the store takes more than {MAX_STORE_BYTES >> 30} GiB"
            records.append(_left_out(meter, "a whole store", reason))
        else:
            with _packed_copy(raw, workload) as packed:
                for level in raw.levels:
                    compared = _Comparison(packed, raw, level, workload, meter)
                    records += compared.measure()
    return records + (_measure_prepare(workload, meter) if on_cpu else [])


def _left_out(meter: Meter, case: str, reason: str) -> Record:
    return meter.left_out(
        stage=STAGE, case=case, name="ichfast", role="ichfast", reason=reason
    )


@contextmanager
def _packed_copy(raw: Store, workload: Workload) -> Iterator[Store]:
    """Pack a store to the disk; both are then in the page cache in large pieces."""
    path = workload.cache_dir / f"packed.{os.getpid()}.tmp"
    check_space(workload.cache_dir, _num_bytes(raw))
    try:
        with redirect_stderr(io.StringIO()):  # hides its progress
            pack_store(raw.path, path, workers=workload.processes)
        with Store(path) as packed:
            fill_cache([*_files(raw, *raw.levels), *_files(packed, *raw.levels)])
            yield packed
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _files(store: Store, *levels: int) -> list[Path]:
    return [
        shard_path(store.path, shard.name, level)
        for level in levels
        for shard in store.header.shards
    ]


def _num_bytes(store: Store, *levels: int) -> int:
    files = _files(store, *(levels or store.levels))
    return sum(file.stat().st_size for file in files)


@dataclass(frozen=True, slots=True)
class _Comparison:
    """A level of a packed store, and of the raw one that it was made of."""

    packed: Store
    raw: Store
    level: int
    workload: Workload
    meter: Meter

    def measure(self) -> list[Record]:
        """Measure bytes, rates and memory, or what depends on the GPU."""
        on_cpu = self.workload.device == "cpu"
        return [
            *self._bytes(),
            *self._rates(),
            *(self._memory() if on_cpu else []),
            *measure_on_gpu(
                self.packed, self.raw, self.level, self.workload, self.meter
            ),
        ]

    def _bytes(self) -> list[Record]:
        """The bytes of whole shards, and of slices that the peers pack."""
        share = _num_bytes(self.packed, self.level) / _num_bytes(self.raw, self.level)
        is_real = self.workload.store is not None
        settings: dict[str, Any] = {"level": self.level, "slices": len(self.raw)}
        settings["synthetic"] = not is_real
        if is_real:
            settings["aim"] = 100 / MIN_RATIO[self.level]
        ours = self.meter.note(
            [100 * share],
            stage=STAGE,
            case=f"level {self.level}, bytes",
            name="packed",
            unit="%",
            cache="none",
            settings=settings,
        )
        return [ours, *note_peer_bytes(self.raw, self.level, self.workload, self.meter)]

    def _rates(self) -> list[Record]:
        """The loader and its reading part, slices per second."""
        picked_N = pick_slices(self.raw, min(self.workload.num_loaded, MAX_SLICES))
        task = make_task(self.raw, self.level, self.workload)
        task = replace(task, positions_N=picked_N)
        stores = (self.packed, self.raw)
        settings = {"level": self.level, "slices": len(picked_N)}
        loader_case = f"loader, level {self.level} to {task.size}"
        with ExitStack() as stack:
            loaders = [stack.enter_context(open_loader(each, task)) for each in stores]
            epochs = [partial(run_epoch, each) for each in loaders]
            if self.workload.device != "cpu":
                return self._compare(loader_case, "page cache", epochs, settings)
            readers = [
                SliceReader(each, self.level, picked_N, task.batch_size)
                for each in stores
            ]
            for reader in readers:
                stack.callback(reader.close)
            reads = [each.read for each in readers]
            return [
                record
                for what, runs in (
                    (loader_case, epochs),
                    (f"reader, level {self.level}", reads),
                )
                for disk in DISKS
                for record in self._compare(what, disk, runs, settings)
            ]

    def _compare(
        self,
        what: str,
        disk: str,
        runs: Sequence[Callable[[], int]],
        settings: Mapping[str, Any],
    ) -> list[Record]:
        """Compare reading from the packed and from the raw store.

        Args:
            what: Names what reads.
            disk: One of `DISKS`.
            runs: From the packed and from the raw store.
            settings: For the records.
        """
        aim = MIN_RATES.get((disk, self.level)) if "loader" in what else None
        rate = DISKS[disk]
        with ExitStack() as stack:
            if rate is not None:
                bucket = stack.enter_context(slow_disk(rate))
                runs = [partial(_run_from, bucket, run) for run in runs]
            from_packed, from_raw = runs
            return self.meter.compare(
                [
                    Contender(name="ichfast", role="ichfast", run=from_packed),
                    Contender(
                        name="raw store",
                        role="limit",
                        run=from_raw,
                        settings={"aim_ratio": aim} if aim else {},
                    ),
                ],
                stage=STAGE,
                case=f"{what}, {disk}",
                unit="slices",
                cache="hot",
                settings=dict(settings),
            )

    def _memory(self) -> list[Record]:
        """The memory that ``--cache host`` takes, MiB."""
        picked_N = np.unique(pick_slices(self.raw, NUM_KEPT))
        task = make_task(self.raw, self.level, self.workload)
        data = replace(task.data, cache="host")
        task = replace(task, positions_N=picked_N, data=data)
        case = f"--cache host, level {self.level}"
        taken_mib: dict[str, list[float]] = {"packed": [], "raw": []}
        for _ in range(KEPT_TURNS):
            for name, store in (("packed", self.packed), ("raw", self.raw)):
                self.meter.on_turn(f"{STAGE}, {case}: {name}")
                before_mib = resident_mib()
                with redirect_stderr(io.StringIO()), open_loader(store, task):
                    taken_mib[name].append(max(resident_mib() - before_mib, PAGE_MIB))
        percent = [
            100 * packed / raw
            for packed, raw in zip(taken_mib["packed"], taken_mib["raw"], strict=True)
        ]
        note = partial(self.meter.note, stage=STAGE, case=case, cache="hot")
        settings = {"level": self.level, "slices": len(picked_N)}
        return [
            *(
                note(values, name=name, unit="MiB", settings=settings)
                for name, values in taken_mib.items()
            ),
            note(
                percent,
                name="packed of raw",
                unit="%",
                settings={**settings, "aim": MAX_MEMORY_PERCENT},
            ),
        ]


def _run_from(bucket: TokenBucket, run: Callable[[], int]) -> int:
    """Run with a disk that has done nothing before."""
    bucket.begin()
    return run()


def _measure_prepare(workload: Workload, meter: Meter) -> list[Record]:
    """Measure prepare with and without packing, files per second."""
    dicom_dir = workload.heads_dir / "dicom"
    files = sorted(dicom_dir.rglob("*.dcm"))
    fill_cache(files)
    records = []
    for out_dir in out_dirs(workload):
        setup = Setup(out_dir, count_processes(workload, len(files)), LEVELS)
        try:
            records += meter.compare(
                [
                    prepare_contender(setup, dicom_dir, is_packed=True),
                    replace(
                        prepare_contender(setup, dicom_dir),
                        role="limit",
                        settings={"aim_ratio": MIN_PREPARE_RATE},
                    ),
                ],
                stage=STAGE,
                case=f"prepare, {setup.case}",
                unit="files",
                cache="hot",
                settings={"files": len(files), "processes": setup.processes},
            )
        finally:
            shutil.rmtree(out_dir, ignore_errors=True)
    return records
