"""DICOM files to a store, against ``cp -r`` and the barest checked copy of the files.

The page cache is hot: it is filled in sequence, and every turn reads the same files.
All contenders write to the same place:

* in memory, if the machine has room: this compares processor time. ``cp`` only copies;
  `bench.limits.barest` also clips and checks, which shows the cost of that alone.
* on disk: here all contenders end with their data safe from a power cut. prepare always
  does; ``cp`` is followed by ``sync``, the barest copy by ``fsync``.

The rates of compressed files depend on their decoders: another case measures reading
in each transfer syntax.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.harness.measure import BenchError, Contender, Meter, Record
from bench.harness.pagecache import fill_cache
from bench.harness.workload import MEMORY_DIR, Workload
from bench.inputs.syntaxes import encode_in_syntaxes
from bench.limits.barest import BarestCopiers
from bench.peers import peers_of, reason_to_skip
from bench.peers.converters import ConverterPool
from ichfast.dicom.slices import read_slices
from ichfast.prepare.prepare import UNIT_ENTRIES, prepare_store
from ichfast.store.levels import SMALL_LEVEL, SOURCE_LEVEL

STAGE = "prepare"

PEER_SHARE = 8
"""A peer converts one of this many files; its cost per file is the same."""

COPY_TIMEOUT_S = 600
"""Time after which a copy is killed, seconds."""

NUM_COMPRESSED = 16
"""Number of files in each transfer syntax."""


def measure(workload: Workload, meter: Meter) -> list[Record]:
    """Measure prepare, files per second.

    Args:
        workload: What is measured.
        meter: Makes the records.
    """
    files = sorted((workload.heads_dir / "dicom").rglob("*.dcm"))
    fill_cache(files)
    processes = count_processes(workload, len(files))
    one_level, both = (SOURCE_LEVEL,), (SOURCE_LEVEL, SMALL_LEVEL)
    first_dir, *other_dirs = out_dirs(workload)
    setups = [Setup(first_dir, processes, one_level)]
    if processes > 1:
        setups.append(Setup(first_dir, 1, one_level))
    setups.append(Setup(first_dir, processes, both))
    for out_dir in other_dirs:
        setups += [Setup(out_dir, processes, levels) for levels in (one_level, both)]
    peers = peers_of(STAGE, workload.peers)
    present = [name for name in peers if not reason_to_skip(name)]
    records: list[Record] = []
    for number, setup in enumerate(setups):
        with_peers = present if number == 0 else []
        records += _compare(workload, meter, files, setup, with_peers)
    records += [
        meter.left_out(
            stage=STAGE,
            case=setups[0].case,
            name=name,
            role="peer",
            reason=reason_to_skip(name),
        )
        for name in peers
        if name not in present
    ]
    return records + _measure_syntaxes(files[:NUM_COMPRESSED], meter)


def out_dirs(workload: Workload) -> list[Path]:
    """Folders to write to: in memory, if there is room, and on the disk."""
    if not _is_in_memory(workload.scratch_dir):
        return [workload.scratch_dir]
    return [workload.scratch_dir, workload.cache_dir / f"prepare.{os.getpid()}.tmp"]


def count_processes(workload: Workload, num_files: int) -> int:
    """Count the processes of each contender, which get a unit of work or more.

    Args:
        workload: Limits them.
        num_files: What is prepared.
    """
    return min(workload.processes, -(-num_files // UNIT_ENTRIES))


def _is_in_memory(folder: Path) -> bool:
    return folder.is_relative_to(MEMORY_DIR)


@dataclass(frozen=True, slots=True)
class Setup:
    """Settings of all contenders in one case."""

    out_dir: Path
    """Folder that they write to."""

    processes: int
    """Number of processes of each."""

    levels: tuple[int, ...]
    """Levels of the store."""

    @property
    def place(self) -> str:
        """``memory`` or ``disk``."""
        return "memory" if _is_in_memory(self.out_dir) else "disk"

    @property
    def case(self) -> str:
        """The name of the case."""
        levels = "+".join(map(str, self.levels))
        return f"level {levels}, {self.processes} proc., to {self.place}"

    def fresh(self, name: str) -> Path:
        """Give a path after removing what is there and emptying the write cache."""
        path = self.out_dir / name
        shutil.rmtree(path, ignore_errors=True)
        self.out_dir.mkdir(parents=True, exist_ok=True)
        if self.place == "disk":
            os.sync()
        return path


def _compare(
    workload: Workload,
    meter: Meter,
    files: Sequence[Path],
    setup: Setup,
    peers: Sequence[str],
) -> list[Record]:
    dicom_dir = workload.heads_dir / "dicom"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, setup.out_dir, ignore_errors=True)
        contenders = [
            prepare_contender(setup, dicom_dir),
            _copy(setup, dicom_dir, len(files)),
        ]
        if setup.levels == (SOURCE_LEVEL,):  # the only level that it writes
            copiers = stack.enter_context(BarestCopiers(setup.processes))
            contenders.append(_barest(setup, files, workload.file_size**2, copiers))
        if peers:
            pool = stack.enter_context(ConverterPool(setup.processes))
            contenders += [_converter(setup, files, name, pool) for name in peers]
        return meter.compare(
            contenders,
            stage=STAGE,
            case=setup.case,
            unit="files",
            cache="hot",
            settings={
                "files": len(files),
                "unit_bytes": files[0].stat().st_size,
                "rows": workload.file_size,
                "processes": setup.processes,
                "levels": list(setup.levels),
                "writes_to": setup.place,
            },
        )


def prepare_contender(
    setup: Setup, dicom_dir: Path, *, is_packed: bool = False
) -> Contender:
    """Make the contender that prepares a store.

    Args:
        setup: Where to, and with what.
        dicom_dir: Folder of the files.
        is_packed: Whether the store is packed.
    """

    def run() -> int:
        with contextlib.redirect_stderr(io.StringIO()):  # hides its progress
            report = prepare_store(
                [dicom_dir],
                setup.out_dir / "store",
                labels=None,
                levels=setup.levels,
                packed=is_packed,
                workers=setup.processes,
                keep_ids=True,
            )
        return report.slices

    return Contender(
        name="ichfast prepare --packed" if is_packed else "ichfast prepare",
        role="ichfast",
        run=run,
        before=lambda: setup.fresh("store"),
    )


def _copy(setup: Setup, dicom_dir: Path, num_files: int) -> Contender:
    folders = sorted(path for path in dicom_dir.iterdir() if path.is_dir())
    on_disk = setup.place == "disk"

    def run() -> int:
        out_dir = setup.out_dir / "copy"
        copy_folders(folders, out_dir, setup.processes)
        if on_disk:
            subprocess.run(
                ["sync", "-f", out_dir],
                check=True,
                timeout=COPY_TIMEOUT_S,
                capture_output=True,  # notices the end at once, as in `copy_folders`
            )
        return num_files

    return Contender(
        name="cp -r, sync" if on_disk else "cp -r",
        role="limit",
        run=run,
        before=lambda: setup.fresh("copy").mkdir(),
    )


def _barest(
    setup: Setup, files: Sequence[Path], num_pixels: int, copiers: BarestCopiers
) -> Contender:
    on_disk = setup.place == "disk"
    return Contender(
        name="barest copy, fsync" if on_disk else "barest copy",
        role="limit",
        run=lambda: copiers.copy(
            files, setup.out_dir / "barest", num_pixels=num_pixels, flush=on_disk
        ),
        before=lambda: setup.fresh("barest"),
    )


def copy_folders(folders: Sequence[Path], out_dir: Path, processes: int) -> None:
    """Copy folders with several ``cp -r`` at the same time.

    Args:
        folders: What is copied.
        out_dir: An existing folder that gets the copies.
        processes: Number of ``cp``.

    Raises:
        BenchError: A copy failed.
    """
    shares = [folders[k::processes] for k in range(processes)]
    # The pipe of a process closes as soon as the process ends. Without a pipe, Python
    # polls every 50 ms to wait with a time limit.
    with ExitStack() as stack:
        running = []
        for share in filter(None, shares):
            process = subprocess.Popen(
                ["cp", "-r", *map(str, share), str(out_dir)],
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)  # no effect after its end
            running.append(process)
        errors = [process.communicate(timeout=COPY_TIMEOUT_S)[1] for process in running]
    if any(process.returncode for process in running):
        reason, *_ = *"".join(errors).splitlines(), "no message"
        raise BenchError(f"cp -r to {out_dir} failed ({reason}); make room")


def _converter(
    setup: Setup, files: Sequence[Path], name: str, pool: ConverterPool
) -> Contender:
    share = files[::PEER_SHARE]
    return Contender(
        name=name,
        role="peer",
        run=lambda: pool.convert(name, share, setup.out_dir / name),
        before=lambda: setup.fresh(name),
        settings={"files": len(share)},
    )


def _measure_syntaxes(files: Sequence[Path], meter: Meter) -> list[Record]:
    """Measure `read_slices` alone, in one process, for each transfer syntax."""

    def reader(contents: Sequence[bytes]) -> Callable[[], int]:
        return lambda: sum(1 for content in contents for _ in read_slices(content))

    encoded, left_out = encode_in_syntaxes([file.read_bytes() for file in files])
    case = "decoding by syntax, 1 proc."
    return meter.compare(
        [
            Contender(name=name, role="ichfast", run=reader(contents))
            for name, contents in encoded.items()
        ],
        stage=STAGE,
        case=case,
        unit="files",
        cache="hot",
        settings={"files": len(files)},
    ) + [
        meter.left_out(stage=STAGE, case=case, name=name, role="ichfast", reason=reason)
        for name, reason in left_out.items()
    ]
