"""The files, the store and the settings that all stages share.

Without ``--store`` the slices are synthetic heads. They are made once, into a cache
folder:

    <cache>/heads-2-2048x512/   dicom/ and labels.csv (`ichfast.synth`, drawing 2)
    <cache>/store-2-2048x512/   the store prepared from them
    <cache>/holes-1000/         1,000 slices without pixels (`bench.inputs.bigstore`)

Promises:

1. A cached set is complete or absent: it is renamed into place.
2. Before anything is made, its needs are compared with the free disk space and memory.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.harness.measure import BenchError
from bench.harness.pagecache import fill_cache
from bench.inputs.bigstore import write_big_store
from ichfast.errors import StoreError
from ichfast.labels import read_labels
from ichfast.prepare.prepare import prepare_store
from ichfast.store.store import Store
from ichfast.synth.dataset import DRAWING, synthesize
from ichfast.system.memory import available_memory

logger = logging.getLogger(__name__)

HEADER_BYTES = 4096
"""Upper limit of the bytes before the pixels of a synthetic file."""

TABLE_BYTES_A_SLICE = 100
"""Upper limit of the bytes of a slice in the tables of a store."""

STORE_SHARE = 1.25
"""Bytes of a store of both levels, divided by the bytes of its source pixels."""

MAKING_BYTES, MAKING_BYTES_A_PROCESS = 512 * 2**20, 256 * 2**20
"""Upper limit of the memory that making the synthetic set takes (bench/LOG.md)."""

MEMORY_DIR = Path("/dev/shm")
"""A folder in memory, where Linux has one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Settings of a whole benchmark."""

    cache_dir: Path
    """Folder that keeps the synthetic slices."""

    scratch_dir: Path
    """Folder that stages write to; removed at the end."""

    store: Path | None = None
    """The user's store; None for the synthetic one."""

    num_files: int = 2048
    """Synthetic slices."""

    file_size: int = 512
    """Rows and columns of a synthetic slice."""

    size: int = 224
    """Side of the model's input, pixels."""

    batch_size: int = 32
    """Slices in a batch of a loader."""

    train_batch_size: int = 8
    """Slices in a training step."""

    archs: tuple[str, ...] = ("efficientnet-b0",)
    device: str = "cpu"
    peers: tuple[str, ...] = ()
    """Names of `bench.peers.PEERS`."""

    processes: int = 1
    """Processes of prepare, cp, converters and data loaders."""

    num_loaded: int = 512
    """Slices that a loader loads in a turn."""

    num_steps: int = 2
    """Training steps in a turn."""

    ranks: tuple[int, ...] = (1, 2)
    """Numbers of ranks that load at the same time on this machine."""

    memory_files: tuple[int, ...] = (1_000, 10_000)
    """Numbers of tiny files for which the memory of prepare is compared."""

    store_slices: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    """Sizes of stores for which the cost of a slice is compared."""

    num_computed: int = 64
    """Slices of which a network computes features in a turn."""

    num_head_series: int = 64
    """Series that the series head reads in a turn."""

    predicted_slices: tuple[int, ...] = (10_000,)
    """Sizes of stores that are predicted with and without a series head."""

    head_slices: int = 100_000
    """Slices whose features a head trains on once."""

    opened_slices: int = 752_803
    """Slices of the store that is opened: the number in the competition."""

    @property
    def heads_dir(self) -> Path:
        """Folder of the synthetic DICOM files and labels; makes them if missing."""
        heads = self.cache_dir / f"heads-{self._heads_name}"
        if not heads.is_dir():
            self._make_heads(heads)
        return heads

    @property
    def _heads_name(self) -> str:
        return f"{DRAWING}-{self.num_files}x{self.file_size}"

    def open_store(self) -> Store:
        """Open the store that is measured; makes the synthetic store if missing.

        The synthetic store is then in the page cache in large pieces, as
        `ichfast prepare` leaves it.

        Raises:
            StoreError: `store` is not a store.
            BenchError: It is packed, or has too few slices.
        """
        store = Store(self.store or self._synthetic_store())
        if store.is_packed:
            store.close()
            raise BenchError(
                f"{store.path} is packed; the benchmark packs a copy of a raw store by "
                f"itself: make one with `ichfast unpack {store.path} NEW`"
            )
        if self.store is None:
            fill_cache(sorted(store.path.glob("level-*/*.npy")))
        if len(common_slices(store)) < 2 * self.batch_size:
            store.close()
            raise BenchError(
                f"{store.path} is too small: it has {len(common_slices(store))} slices "
                f"of one shape, a benchmark needs two batches of {self.batch_size}; "
                "lower --batch-size, or leave out --store for synthetic slices"
            )
        return store

    def store_of_holes(self, num_slices: int) -> Path:
        """Path of a store of `num_slices` without pixels; makes it if missing."""
        path = self.cache_dir / f"holes-{num_slices}"
        if not path.is_dir():
            check_space(self.cache_dir, num_slices * TABLE_BYTES_A_SLICE)
            unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            try:
                write_big_store(unfinished, num_slices)
                unfinished.rename(path)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
        return path

    def scratch(self, name: str) -> Path:
        """Give a path in the scratch folder, after removing what is there."""
        path = self.scratch_dir / name
        shutil.rmtree(path, ignore_errors=True)
        return path

    def _make_heads(self, heads: Path) -> None:
        num_bytes = self.num_files * (2 * self.file_size**2 + HEADER_BYTES)
        check_space(self.cache_dir, int(num_bytes * (1 + STORE_SHARE)))
        check_memory(MAKING_BYTES + self.processes * MAKING_BYTES_A_PROCESS)
        unfinished = heads.with_name(f".{heads.name}.{os.getpid()}.tmp")
        logger.info("making %d synthetic slices, once", self.num_files)
        try:
            synthesize(
                unfinished,
                num_slices=self.num_files,
                quirks=False,
                size=self.file_size,
            )
            unfinished.rename(heads)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _synthetic_store(self) -> Path:
        path = self.cache_dir / f"store-{self._heads_name}"
        if not _can_be_opened(path):
            shutil.rmtree(path, ignore_errors=True)
            prepare_store(
                [self.heads_dir / "dicom"],
                path,
                labels=read_labels(self.heads_dir / "labels.csv"),
                workers=self.processes,
                keep_ids=True,
            )
        return path


def _can_be_opened(path: Path) -> bool:
    """Whether a cached store exists and has the format of this version."""
    try:
        Store(path).close()
    except StoreError:
        return False
    return True


def common_slices(store: Store) -> npt.NDArray[np.int64]:
    """Give the store positions of the slices of the commonest shape."""
    shape_N2 = store.table[["rows", "columns"]].to_numpy(np.int64)
    counts = Counter(map(tuple, shape_N2.tolist()))
    commonest = np.array(counts.most_common(1)[0][0])
    return np.flatnonzero((shape_N2 == commonest).all(axis=1))


def default_cache_dir() -> Path:
    """Give the benchmark's folder in XDG's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ichfast" / "bench"


def choose_scratch(cache_dir: Path, num_bytes: int) -> Path:
    """Choose a folder to write to: in memory if half of it stays free.

    Args:
        cache_dir: Holds the folder if memory does not.
        num_bytes: How much will be written.

    Raises:
        BenchError: The cache folder has too little space too.
    """
    name = f"ichfast-bench-{os.getpid()}"
    if MEMORY_DIR.is_dir():
        free = min(shutil.disk_usage(MEMORY_DIR).free, available_memory())
        if free > 2 * num_bytes:
            return MEMORY_DIR / name
    check_space(cache_dir, num_bytes)
    return cache_dir / name


def check_space(folder: Path, num_bytes: int) -> None:
    """Create a folder, and check the free space on its disk.

    Args:
        folder: Created with its parents.
        num_bytes: Space that must be free.

    Raises:
        BenchError: There is less space, or the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise BenchError(
            f"cannot write {folder}: {error.strerror}; name another cache folder with "
            "XDG_CACHE_HOME"
        ) from error
    if free < num_bytes:
        raise BenchError(
            f"{folder} has {free / 2**30:.1f} GiB left, the benchmark needs "
            f"{num_bytes / 2**30:.1f}; make room, or name another cache folder with "
            "XDG_CACHE_HOME"
        )


def check_memory(num_bytes: int) -> None:
    """Check that `num_bytes` of memory are available.

    Raises:
        BenchError: There is less.
    """
    available = available_memory()
    if available < num_bytes:
        raise BenchError(
            f"{available / 2**30:.1f} GiB of memory are free, making the synthetic set "
            f"takes {num_bytes / 2**30:.1f}; close other programs, or measure your own "
            "store with --store"
        )
