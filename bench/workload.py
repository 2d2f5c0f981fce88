"""What is measured: the files, the store and the settings that all stages share.

Without ``--store`` the slices are synthetic heads, made once into a cache folder:

    <cache>/heads-2048x512/     dicom/ and labels.csv (`ichfast.synth`)
    <cache>/store-2048x512/     the store prepared from them

1. A cached set is complete or not there: it is renamed into place.
2. Before anything is made, the free disk space is compared with what it takes.
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

from bench.measure import BenchError
from ichfast.labels import read_labels
from ichfast.prepare import prepare_store
from ichfast.store import Store
from ichfast.synth import synthesize

logger = logging.getLogger(__name__)

HEADER_BYTES = 4096
"""More than what a synthetic file has besides its pixels."""

STORE_SHARE = 1.25
"""Bytes of a store of both levels, over the bytes of its pixels."""

MEMORY_DIR = Path("/dev/shm")
"""A folder in memory, where Linux has one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Settings of a whole benchmark."""

    cache_dir: Path
    """Where the synthetic slices are kept."""

    scratch_dir: Path
    """Where stages write; emptied at the end."""

    store: Path | None = None
    """The user's store; None for the synthetic one."""

    num_files: int = 2048
    """Synthetic slices."""

    file_size: int = 512
    """Their rows and columns."""

    size: int = 224
    """Side of the model's input, pixels."""

    batch_size: int = 16
    archs: tuple[str, ...] = ("efficientnet-b0",)
    device: str = "cpu"
    peers: tuple[str, ...] = ()
    """Names of `bench.peers.PEERS`."""

    processes: int = 1
    """Of whatever runs in several: prepare, cp, converters, data loaders."""

    num_loaded: int = 512
    """Slices that a loader gives in a turn; a quarter for a peer."""

    num_steps: int = 2
    """Training steps in a turn."""

    @property
    def heads_dir(self) -> Path:
        """The synthetic DICOM files and their labels; made if need be."""
        heads = self.cache_dir / f"heads-{self.num_files}x{self.file_size}"
        if not heads.is_dir():
            self._make_heads(heads)
        return heads

    def open_store(self) -> Store:
        """Open the store that is measured, and make it first if it is ours.

        Raises:
            StoreError: no store there.
            BenchError: too few slices.
        """
        store = Store(self.store or self._synthetic_store())
        if len(common_slices(store)) < 2 * self.batch_size:
            store.close()
            raise BenchError(
                f"{store.path} is too small: it has {len(common_slices(store))} slices "
                f"of one shape, a benchmark needs two batches of {self.batch_size}; "
                "lower --batch-size, or leave out --store for synthetic slices"
            )
        return store

    def scratch(self, name: str) -> Path:
        """An unused path in the scratch folder; what was there is removed."""
        path = self.scratch_dir / name
        shutil.rmtree(path, ignore_errors=True)
        return path

    def _make_heads(self, heads: Path) -> None:
        num_bytes = self.num_files * (2 * self.file_size**2 + HEADER_BYTES)
        check_space(self.cache_dir, int(num_bytes * (1 + STORE_SHARE)))
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
        path = self.cache_dir / f"store-{self.num_files}x{self.file_size}"
        if not (path / "store.json").exists():
            prepare_store(
                [self.heads_dir / "dicom"],
                path,
                labels=read_labels(self.heads_dir / "labels.csv"),
                workers=self.processes,
                keep_ids=True,
            )
        return path


def common_slices(store: Store) -> npt.NDArray[np.int64]:
    """Store positions of the slices of the commonest shape, which peers can batch."""
    shape_N2 = store.table[["rows", "columns"]].to_numpy(np.int64)
    counts = Counter(map(tuple, shape_N2.tolist()))
    commonest = np.array(counts.most_common(1)[0][0])
    return np.flatnonzero((shape_N2 == commonest).all(axis=1))


def default_cache_dir() -> Path:
    """The folder that XDG names for what can be made again."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ichfast" / "bench"


def choose_scratch(cache_dir: Path, num_bytes: int) -> Path:
    """A folder to write `num_bytes` to: in memory if half of it stays free.

    Raises:
        BenchError: too little space in the cache folder, too.
    """
    name = f"ichfast-bench-{os.getpid()}"
    if MEMORY_DIR.is_dir() and shutil.disk_usage(MEMORY_DIR).free > 2 * num_bytes:
        return MEMORY_DIR / name
    check_space(cache_dir, num_bytes)
    return cache_dir / name


def check_space(folder: Path, num_bytes: int) -> None:
    """Make a folder, and refuse if its disk has less than `num_bytes` left.

    Raises:
        BenchError: too little, or the folder cannot be made.
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
