"""The slice store: every slice of a training set as uint16, decoded once.

A store is a folder:

    store.json               `StoreHeader`; written last, so a folder without it is not
                             a store. It contains no time and no path
    slices.parquet           one row per slice (`table_schema`), sorted by patient,
                             study, series, position_mm, instance_number, slice_id
    rejected.csv             path, reason (a fixed code), detail
    journal/entries.parquet  digests of what the store was made from
                             (`ichfast.prepare.ingested`); only in stores that prepare
                             has made
    level-512/00000.npy      (n, rows, columns) uint16, little-endian, C order
    level-256/00000.npy      (n, 256, 256), the same slices row for row
    level-512/00000.icp      in place of these in a packed store
    level-256/00000.icp

1. The stored number is ``clip(round(HU) + 1024, 0, 32767)``: air is 24, padding is 0,
   and the same bytes are valid int16.
2. Level 512 is the source resolution, unchanged. One unit of work (1,024 entries of the
   listing) makes one shard per shape: ``00000.npy`` has its 512x512 slices,
   ``00000-638x490.npy`` those of 638 rows and 490 columns. The number is the unit's.
3. Smaller levels are made from level 512 by `reduce_to_level`, with the same shard
   names. So (shard, row_in_shard) finds a slice at every level.
4. The .npy header (version 1.0) is padded to 4,096 bytes. So slices of 512x512 start on
   a page, and memory maps, O_DIRECT and GPUDirect can read the file. Packed files take
   a quarter of the bytes (`ichfast.store.packed_shards`); the store's format version is
   then 2. Tables and checksums are the same in both.
5. A shard may have rows that no table row points to (dropped duplicates, and series
   that `ichfast.prepare.series_choice` did not choose).
6. The checksum of a slice is the CRC-32C of its bytes at a level (`checksum_column`),
   that of a shard is the CRC-32C of its rows' checksums (`shard_checksum`).
7. A slice is compared with its checksum whenever it is read, unless the reader asks for
   it unchecked, as loaders do (`DataConfig.check`). The record of a packed slice is
   always checked. `docs/checksums.md` lists for each file what checks it, and when.

The parts: `ichfast.store.header` is store.json, `ichfast.store.tables` the tables,
`ichfast.store.shards` the files of slices, raw (`ichfast.store.raw_shards`) or packed
(`ichfast.store.packed_shards`), `ichfast.store.writer` writes them,
`ichfast.store.levels` is the mip map, `ichfast.store.verify` finds damage. This module
finishes a store and opens it.

Shape letters: N slices in the store, B slices asked for, H rows, W columns,
K classes.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from ichfast.errors import StoreError
from ichfast.labels import CLASSES
from ichfast.store.header import (
    StoreHeader,
    read_header,
    write_header,
)
from ichfast.store.levels import LEVELS, SOURCE_LEVEL, checksum_column
from ichfast.store.packed_shards import PackedReader
from ichfast.store.raw_shards import RawReader
from ichfast.store.shards import PIXEL_DTYPE
from ichfast.store.tables import read_table, write_rejected, write_rows
from ichfast.store.verify import check_size
from ichfast.system.memory import total_memory


def finish_store(
    path: Path,
    header: StoreHeader,
    parts: Iterable[pa.Table],
    rejected: pd.DataFrame,
) -> StoreHeader:
    """Write the tables of a store, and `store.json` last.

    Args:
        path: the store's folder, or one whose files are moved there later.
        header: complete except for `table_crc32c` and `rejected_crc32c`.
        parts: consecutive parts of the sorted rows, with the columns of `table_schema`.
        rejected: columns path, reason, detail.

    Returns:
        The header as written.
    """
    header = replace(
        header,
        table_crc32c=write_rows(path, parts, header.levels),
        rejected_crc32c=write_rejected(path, rejected),
    )
    write_header(path, header)
    return header


class Store:
    """A store opened for reading. Safe to share between threads.

    A shard is opened when it is first read, and stays open until `close`. So a store of
    many shards raises this process's limit of open files (RLIMIT_NOFILE), up to the
    hard limit. A copy, or a store pickled for another process, opens its own files.

    Args:
        path: the store's folder.
        past_cache: whether to read from the disk without filling the page cache. None
            does so for levels larger than the memory of this process, where the cache
            would drop each slice before it is read again.

    Raises:
        StoreError: no store, an unfinished or damaged one, or another version.

    Example:
        >>> import ichfast
        >>> with ichfast.Store("ichfast-store") as store:
        ...     len(store), store.levels, len(set(store.table["patient"])) > 1
        (90, (512, 256), True)
    """

    def __init__(self, path: str | Path, *, past_cache: bool | None = None) -> None:
        self.path = Path(path)
        self.header = read_header(self.path)
        self.levels = self.header.levels
        self.is_packed = self.header.is_packed
        self.table = read_table(self.path, self.header)
        for level in self.levels:
            for shard in self.header.shards:
                check_size(self.path, shard, level)
        self._allow_open_files()
        self._shard_N = self.table["shard"].to_numpy()
        self._row_N = self.table["row_in_shard"].to_numpy()
        self._crc32c_N = {
            level: self.table[checksum_column(level)].to_numpy()
            for level in self.levels
        }
        self._open: dict[tuple[int, int], RawReader | PackedReader] | None = {}
        self._past_cache = {
            level: self._num_bytes(level) > total_memory()
            if past_cache is None
            else past_cache
            for level in self.levels
        }

    def __len__(self) -> int:
        return len(self.table)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # File descriptors are not valid in another process.
        return {**self.__dict__, "_open": None if self._open is None else {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._allow_open_files()

    def close(self) -> None:
        """Close each shard as soon as its reads in progress have ended."""
        self._open = None

    def check_open(self) -> None:
        """Raise StoreError if the store is closed."""
        self._opened()

    def slice_HW(
        self, index: int, level: int = SOURCE_LEVEL, *, check: bool = True
    ) -> npt.NDArray[np.uint16]:
        """Read one slice.

        Args:
            index: store position in [0, N).
            level: one of `levels`.
            check: compare the slice with its checksum.

        Returns:
            Shape (H, W), uint16, HU + `header.hu_offset`; a new array.

        Raises:
            StoreError: `index` or `level` lies outside the store, the shard is
                damaged or cannot be read, or the store is closed.
        """
        shard = self._shard_of(index, level)
        stored_HW = np.empty(shard.slice_shape, PIXEL_DTYPE)
        self.read_into(index, level, stored_HW, check=check)
        return stored_HW

    def read_into(
        self,
        index: int,
        level: int,
        out_HW: npt.NDArray[np.uint16],
        *,
        halvings: int = 0,
        check: bool = True,
    ) -> None:
        """Read one slice into an array of the caller, halved as often as asked.

        Args:
            index: store position in [0, N).
            level: one of `levels`.
            out_HW: shape of the halved slice, uint16, C order; overwritten.
            halvings: see `ichfast.store.levels.halve_into`.
            check: compare the slice with its checksum. The record of a packed one is
                compared with its own in any case.

        Raises:
            StoreError: `index` or `level` lies outside the store, the shard is
                damaged or cannot be read, or the store is closed.
        """
        shard = self._shard_of(index, level)
        crc32c = int(self._crc32c_N[level][index]) if check else None
        shard.read_into(
            int(self._row_N[index]), out_HW, halvings=halvings, crc32c=crc32c
        )

    def record_bytes_N(self, level: int) -> npt.NDArray[np.int64]:
        """Sizes of the records of a packed store, bytes, shape (N,), int64.

        Args:
            level: one of `levels`.

        Raises:
            StoreError: a shard is damaged or cannot be read, or the store is closed.
        """
        sizes_N = np.empty(len(self), np.int64)
        order_N = np.argsort(self._shard_N, kind="stable")
        firsts = np.flatnonzero(np.diff(self._shard_N[order_N])) + 1
        for positions in np.split(order_N, firsts):
            shard = self._packed_shard(int(positions[0]), level)
            sizes_N[positions] = shard.record_bytes_N[self._row_N[positions]]
        return sizes_N

    def read_record_into(
        self, index: int, level: int, out_R: npt.NDArray[np.uint8]
    ) -> None:
        """Read the record of a slice of a packed store, and check it.

        Args:
            index: store position in [0, N).
            level: one of `levels`.
            out_R: shape (R,), uint8, of the size in `record_bytes_N`; overwritten.

        Raises:
            StoreError: `index` or `level` lies outside the store, the shard is
                damaged or cannot be read, or the store is closed.
        """
        shard = self._packed_shard(index, level)
        crc32c = int(self._crc32c_N[level][index])
        shard.read_record_into(int(self._row_N[index]), out_R, crc32c=crc32c)

    def past_cache(self, level: int) -> bool:
        """Whether slices of a level are read without filling the page cache."""
        return self._past_cache[level]

    def labels_NK(self) -> npt.NDArray[np.float32]:
        """The labels, shape (N, 6), float32, `CLASSES` order, NaN where missing."""
        return self.table[list(CLASSES)].to_numpy(np.float32, na_value=np.nan)

    def _opened(self) -> dict[tuple[int, int], RawReader | PackedReader]:
        opened = self._open
        if opened is None:
            raise StoreError(f"{self.path} was closed; open it again")
        return opened

    def _shard_of(self, index: int, level: int) -> RawReader | PackedReader:
        opened = self._opened()
        if not 0 <= index < len(self._shard_N):
            raise StoreError(
                f"{self.path} holds slices 0 to {len(self) - 1}, asked for {index}"
            )
        key = (level, self._shard_N[index])
        found = opened.get(key)
        if found is None:
            # Two threads may both open it; one of the two is kept.
            found = opened.setdefault(key, self._open_shard(key[1], level))
        return found

    def _packed_shard(self, index: int, level: int) -> PackedReader:
        shard = self._shard_of(index, level)
        if not isinstance(shard, PackedReader):
            raise StoreError(
                f"{self.path} is not packed; make a packed one with `ichfast pack "
                f"{self.path} NEW`"
            )
        return shard

    def _open_shard(self, number: int, level: int) -> RawReader | PackedReader:
        if level not in self.levels:
            raise StoreError(
                f"{self.path} has the levels {', '.join(map(str, self.levels))}, asked "
                f"for {level}; prepare a store with --levels "
                f"{','.join(map(str, LEVELS))} or read {SOURCE_LEVEL}"
            )
        reader = PackedReader if self.is_packed else RawReader
        shard = self.header.shards[number]
        return reader(self.path, shard, level, past_cache=self._past_cache[level])

    def _num_bytes(self, level: int) -> int:
        return sum(shard.num_bytes(level) for shard in self.header.shards)

    def _allow_open_files(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = len(self.header.shards) * len(self.levels) + 1024
        if hard != resource.RLIM_INFINITY:
            wanted = min(wanted, hard)
        if soft not in (resource.RLIM_INFINITY, hard) and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
