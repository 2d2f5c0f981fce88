"""A packed copy of a raw store, and a raw copy of a packed one.

1. Packed and unpacked again, a store has the same bytes in every file. A copy and its
   original have the same digest, so what was made with one goes on with the other.
2. Each slice is checked while it is copied: those that are damaged are refused.
3. The copy is of the store as it was when the run began, also if slices are appended
   meanwhile.
4. After a run was killed at any moment, the same command continues: files that are
   complete are not made again. `store.json` is written last.
5. Before a slice is written, the disk must have room for all of it. How much a packed
   store takes is estimated from slices spread over the whole store.
"""

from __future__ import annotations

import json
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ichfast.errors import StoreError
from ichfast.packed import pack
from ichfast.prepare.append import check_unfinished
from ichfast.prepare.journal import Journal
from ichfast.prepare.lock import only_writer
from ichfast.store.header import (
    PACKED_VERSION,
    RAW_VERSION,
    StoreHeader,
    intake_path,
    read_header,
    tables_dir,
)
from ichfast.store.levels import level_folder
from ichfast.store.packed_shards import PackedReader, PackedWriter
from ichfast.store.raw_shards import RawReader, RawWriter
from ichfast.store.shard_file import damage_error
from ichfast.store.shards import (
    NPY_HEADER_BYTES,
    PIXEL_DTYPE,
    Shard,
    shard_name,
    shard_path,
)
from ichfast.store.tables import checked_content
from ichfast.store.verify import check_size
from ichfast.system.checksums import FIELD, with_checksum
from ichfast.system.files import atomic_path, make_folder, write_text_atomically
from ichfast.system.signals import signals_interrupt
from ichfast.system.terminal import progress

SAMPLE_SLICES = 64
"""Slices of each level from which the size of a packed store is estimated."""

MARGIN = 0.02
"""Share added to that estimate."""

GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class PackReport:
    """The result of `pack_store`."""

    store: str
    """The folder of the copy."""
    slices: int
    bytes: int
    """Size of all shards of the copy."""
    bytes_before: int
    """Size of all shards of the original."""
    seconds: float
    """Duration of this run."""
    already_finished: bool
    """Whether the run found nothing to do."""


def pack_store(
    original: Path, store: Path, *, packed: bool = True, workers: int
) -> PackReport:
    """Make a packed copy of a raw store, or a raw copy of a packed one.

    Args:
        original: the folder of a finished store, which is not changed.
        store: the folder of the copy; its parents are made.
        packed: whether the copy is packed.
        workers: number of threads.

    Raises:
        StoreError: the original is damaged, unfinished or has that form already; the
            folder lies in it, has other files or is another store; the disk has too
            little room; or the run was interrupted. Then the same command continues.
    """
    started_s = time.monotonic()
    header = read_header(original)
    if header.is_packed == packed:
        form = "packed" if packed else "raw"
        raise StoreError(f"{original} is {form} already; copy its folder if you like")
    if store.resolve().is_relative_to(original.resolve()):
        raise StoreError(f"{store} lies in the store itself; name another folder")
    # Before all else, for an append to the original replaces them.
    tables = _read_tables(original, header)
    journal = Journal(store, header.levels, packed)
    copies = [_Copy(original, store, s, packed) for s in header.shards]
    with only_writer(store) as discard, signals_interrupt(), _resumable(store):
        was_finished = (tables_dir(store) / "store.json").exists()
        if was_finished:
            _check_same(original, store, header, packed=packed)
            journal.publish()
            if not journal.is_begun:  # else slices are being appended to the copy
                journal.remove()
        else:
            is_new = not journal.is_begun
            _begin(original, journal, header)
            missing = [
                (copy, level)
                for copy in copies
                for level in header.levels
                if not copy.path(level).exists()
            ]
            try:
                _check_room(journal, missing)
            except StoreError:
                if is_new:
                    discard()
                raise
            _copy_shards(missing, workers)
            _finish(journal, tables, copies)
    return PackReport(
        store=str(store),
        slices=header.counts["slices"],
        bytes=read_header(store).num_bytes,
        bytes_before=header.num_bytes,
        seconds=time.monotonic() - started_s,
        already_finished=was_finished,
    )


@dataclass(frozen=True, slots=True)
class _Copy:
    """A shard, and where its copy is."""

    original: Path
    """The folder of the original store."""

    store: Path
    """The folder of the copy."""

    shard: Shard

    packed: bool
    """Whether the copy is packed."""

    @property
    def name(self) -> str:
        """Name of the copy's files."""
        shard = self.shard
        return shard_name(shard.unit, shard.rows, shard.columns, packed=self.packed)

    def path(self, level: int) -> Path:
        """Path of the copy at a level."""
        return shard_path(self.store, self.name, level)

    def open(self, level: int) -> RawReader | PackedReader:
        """Open the shard of the original at a level.

        Raises:
            StoreError: it is damaged or cannot be read.
        """
        check_size(self.original, self.shard, level)
        reader = PackedReader if self.shard.is_packed else RawReader
        return reader(self.original, self.shard, level, past_cache=False)

    def write(self, level: int, done: Callable[[], None]) -> None:
        """Write the copy at a level.

        Args:
            level: one of the store's.
            done: called after each slice.

        Raises:
            StoreError: the original is damaged or cannot be read.
        """
        shard = self.open(level)
        stored_HW = np.empty(shard.slice_shape, PIXEL_DTYPE)
        make = PackedWriter if self.packed else RawWriter
        with atomic_path(self.path(level)) as temporary:
            writer = make(temporary, shard.slice_shape)
            try:
                for row in range(self.shard.count):
                    shard.read_into(row, stored_HW)
                    writer.append(stored_HW)
                    done()
            finally:
                writer.close()
            if writer.complete() != self.shard.crc32c[level]:
                raise damage_error(
                    shard.path, self.original, "a row does not match its checksum"
                )

    def header_entry(self, levels: Sequence[int]) -> Shard:
        """The shard in the header of the copy, which is complete."""
        sizes = {level: self.path(level).stat().st_size for level in levels}
        return replace(
            self.shard, name=self.name, packed_bytes=sizes if self.packed else None
        )


def _check_same(
    original: Path, store: Path, header: StoreHeader, *, packed: bool
) -> None:
    """Check that a finished store is the copy.

    Args:
        original: the folder of the original store.
        store: the folder of the finished store.
        header: of the original.
        packed: whether the copy is packed.

    Raises:
        StoreError: it is another store.
    """
    found = read_header(store)
    sums = [shard.crc32c for shard in header.shards]
    if (
        found.is_packed != packed
        or found.table_crc32c != header.table_crc32c
        or [shard.crc32c for shard in found.shards] != sums
    ):
        raise StoreError(
            f"{store} is another store, or a copy of {original} before that was "
            "changed; name a new folder, or delete it"
        )


def _begin(original: Path, journal: Journal, header: StoreHeader) -> None:
    """Begin or continue a copy, and make its folders.

    Args:
        original: the folder of the original store.
        journal: the copy's.
        header: of the original.

    Raises:
        StoreError: something else was begun or finished in the folder.
    """
    if not journal.is_begun:
        check_unfinished(journal.store)
        journal.clear_shards([])
    plan = {
        "copy of": f"{header.digest} with table {header.table_crc32c:08x}",
        "levels": ",".join(map(str, header.levels)),
    }
    try:
        journal.begin(plan, may_restart=False)
    except StoreError as error:
        raise StoreError(
            f"{journal.store} was begun by another command, or from {original} before "
            "that was changed; name a new folder, or delete it"
        ) from error
    for level in header.levels:
        make_folder(journal.store / level_folder(level))


def _check_room(journal: Journal, missing: Sequence[tuple[_Copy, int]]) -> None:
    """Check that the disk has room for the files that are missing.

    Args:
        journal: the copy's.
        missing: shards and levels.

    Raises:
        StoreError: it has not; or the original is damaged or cannot be read.
    """
    needed: float = 0
    for level in journal.levels:
        copies = [copy for copy, each in missing if each == level]
        pixels = sum(math.prod(copy.shard.shape(level)) for copy in copies)
        pixel_bytes = pixels * PIXEL_DTYPE.itemsize
        if journal.packed:
            needed += pixel_bytes * _packed_share(copies, level)
        else:
            needed += pixel_bytes + NPY_HEADER_BYTES * len(copies)
    free = shutil.disk_usage(journal.store).free
    if needed > free:
        raise StoreError(
            f"the copy takes about {needed / GIB:.1f} GiB more, the disk of "
            f"{journal.store} has {free / GIB:.1f} GiB free; make room, or name a "
            "folder on another disk"
        )


def _packed_share(copies: Sequence[_Copy], level: int) -> float:
    """Packed bytes of a raw byte, estimated from slices spread over some shards.

    Args:
        copies: shards to pack; 0 if there are none.
        level: one of the store's.
    """
    counts = [copy.shard.count for copy in copies]
    ends = np.cumsum(counts)
    raw_bytes, packed_bytes = 1, 0
    for index in np.linspace(0, sum(counts) - 1, min(SAMPLE_SLICES, sum(counts))):
        number = int(np.searchsorted(ends, int(index), side="right"))
        shard = copies[number].open(level)
        stored_HW = np.empty(shard.slice_shape, PIXEL_DTYPE)
        shard.read_into(int(index) - int(ends[number]) + counts[number], stored_HW)
        raw_bytes += stored_HW.nbytes
        packed_bytes += len(pack(stored_HW))
    return (1 + MARGIN) * packed_bytes / raw_bytes


class _StoppedError(Exception):
    """Another thread has failed, or the run was interrupted."""


def _copy_shards(missing: Sequence[tuple[_Copy, int]], workers: int) -> None:
    """Write files of shards.

    Args:
        missing: shards and levels.
        workers: number of threads.
    """
    total = sum(copy.shard.count for copy, _ in missing)
    is_stopped, counting = threading.Event(), threading.Lock()
    with progress("pack", total, "slice") as bar, ThreadPoolExecutor(workers) as pool:

        def count() -> None:
            if is_stopped.is_set():
                raise _StoppedError
            with counting:
                bar.update()

        try:
            jobs = [pool.submit(copy.write, level, count) for copy, level in missing]
            for job in as_completed(jobs):
                job.result()
        finally:
            is_stopped.set()
            pool.shutdown(cancel_futures=True)


def _read_tables(original: Path, header: StoreHeader) -> dict[str, bytes]:
    """Read the tables and `store.json` of a store, by name of their files.

    Args:
        original: the store's folder.
        header: of that store.

    Raises:
        StoreError: one is damaged or cannot be read, or was replaced just now.
    """
    folder = tables_dir(original)
    checksums = {
        folder / "slices.parquet": header.table_crc32c,
        folder / "rejected.csv": header.rejected_crc32c,
    }
    if header.entries_crc32c:
        checksums[intake_path(original)] = header.entries_crc32c
    advice = "it was changed just now or is damaged; run `ichfast verify`"
    contents = {
        file.name: checked_content(file, crc32c, advice)
        for file, crc32c in checksums.items()
    }
    contents["store.json"] = (folder / "store.json").read_bytes()
    if read_header(original) != header:
        raise StoreError(f"{original} was changed just now; run the command again")
    return contents


def _finish(
    journal: Journal,
    tables: Mapping[str, bytes],
    copies: Sequence[_Copy],
) -> None:
    """Write the tables, and `store.json` last.

    Args:
        journal: the copy's.
        tables: from `_read_tables`.
        copies: all shards.
    """
    make_folder(journal.next)
    for name in tables.keys() - {"store.json"}:
        with atomic_path(journal.next / name) as temporary:
            temporary.write_bytes(tables[name])
    # All else stays as it is, byte for byte, also if an earlier version wrote it.
    document = json.loads(tables["store.json"])
    del document[FIELD]
    document["shards"] = [
        copy.header_entry(journal.levels).to_json() for copy in copies
    ]
    document["format_version"] = PACKED_VERSION if journal.packed else RAW_VERSION
    write_text_atomically(journal.next / "store.json", with_checksum(document))
    journal.publish()


@contextmanager
def _resumable(store: Path) -> Iterator[None]:
    """Turn an interruption or a write error into a StoreError."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise StoreError("stopped; the same command continues") from error
    except OSError as error:
        raise StoreError(
            f"cannot write {store} ({error.strerror}); make room or mend the disk, "
            "then the same command continues"
        ) from error
