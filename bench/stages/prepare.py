"""DICOM files to a store, against ``cp -r`` of the same files.

The page cache is hot: every turn reads the same files. All write to the same
folder, in memory where the machine has room for it, so that processors are
compared and not what a disk does with its writes; the record says which.
"""

from __future__ import annotations

import contextlib
import io
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.measure import BenchError, Contender, Meter, Record
from bench.peers import peers_of, reason_to_skip
from bench.peers.converters import ConverterPool
from bench.workload import MEMORY_DIR, Workload
from ichfast.prepare import UNIT_ENTRIES, prepare_store

STAGE, CASE = "prepare", "page cache to files"

PEER_SHARE = 8
"""A peer converts one file in so many; what it costs a file is the same."""

COPY_TIMEOUT_S = 600


def measure(workload: Workload, meter: Meter) -> list[Record]:
    """Measure prepare, files a second."""
    dicom_dir = workload.heads_dir / "dicom"
    files = sorted(dicom_dir.rglob("*.dcm"))
    # A unit of work is as much as one process gets.
    processes = min(workload.processes, -(-len(files) // UNIT_ENTRIES))
    peers = peers_of(STAGE, workload.peers)
    present = [name for name in peers if not reason_to_skip(name)]
    with ExitStack() as stack:
        pool = stack.enter_context(ConverterPool(processes)) if present else None
        contenders = [_ichfast(workload, dicom_dir, processes)]
        contenders.append(_copy(workload, dicom_dir, processes))
        for name in present:
            assert pool is not None
            contenders.append(_converter(workload, files, name, pool))
        records = meter.compare(
            contenders,
            stage=STAGE,
            case=CASE,
            unit="files",
            cache="hot",
            settings={
                "files": len(files),
                "rows": workload.file_size,
                "processes": processes,
                "writes_to": "memory"
                if workload.scratch_dir.is_relative_to(MEMORY_DIR)
                else "disk",
            },
        )
    return records + [
        meter.left_out(
            stage=STAGE, case=CASE, name=name, role="peer", reason=reason_to_skip(name)
        )
        for name in peers
        if name not in present
    ]


def _ichfast(workload: Workload, dicom_dir: Path, processes: int) -> Contender:
    def run() -> int:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress, beside ours
            report = prepare_store(
                [dicom_dir],
                workload.scratch_dir / "store",
                labels=None,
                workers=processes,
                keep_ids=True,
            )
        return report.slices

    return Contender(
        name="ichfast prepare",
        role="ichfast",
        run=run,
        before=lambda: workload.scratch("store"),
        settings={"levels": [512, 256]},
    )


def _copy(workload: Workload, dicom_dir: Path, processes: int) -> Contender:
    folders = sorted(path for path in dicom_dir.iterdir() if path.is_dir())
    num_files = sum(1 for _ in dicom_dir.rglob("*.dcm"))

    def make_room() -> None:
        workload.scratch("copy").mkdir(parents=True)

    def run() -> int:
        copy_folders(folders, workload.scratch_dir / "copy", processes)
        return num_files

    return Contender(name="cp -r", role="limit", run=run, before=make_room)


def copy_folders(folders: Sequence[Path], out_dir: Path, processes: int) -> None:
    """Copy folders with several ``cp -r`` at once.

    Raises:
        BenchError: a copy failed.
    """
    shares = [folders[k::processes] for k in range(processes)]
    running = [
        subprocess.Popen(["cp", "-r", *map(str, share), str(out_dir)])
        for share in shares
        if share
    ]
    try:
        status = [process.wait(timeout=COPY_TIMEOUT_S) for process in running]
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
    if any(status):
        raise BenchError(f"cp -r to {out_dir} failed; make room there")


def _converter(
    workload: Workload, files: Sequence[Path], name: str, pool: ConverterPool
) -> Contender:
    share = files[::PEER_SHARE]
    return Contender(
        name=name,
        role="peer",
        run=lambda: pool.convert(name, share, workload.scratch_dir / name),
        before=lambda: workload.scratch(name),
        settings={"files": len(share)},
    )
