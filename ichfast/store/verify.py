"""Files of a store that are not as they were written, found by reading every byte.

1. Files are read, not mapped: a disk that cannot be read is a finding. On a map it
   would end the process.
2. Whatever stands in the place of a file is a finding, too: nothing, a folder, a
   pipe, a link that leads nowhere.
3. Memory does not grow with the files.

Shape letters: N slices in the shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt
import pandas as pd

from ichfast.errors import StoreError
from ichfast.store.header import (
    intake_path,
    is_as_written,
    read_header,
    tables_dir,
)
from ichfast.store.levels import SOURCE_LEVEL
from ichfast.store.shards import (
    NPY_HEADER_BYTES,
    Shard,
    npy_header,
    shard_path,
)
from ichfast.store.tables import read_table
from ichfast.store.writer import combine
from ichfast.system.files import file_crc32c
from ichfast.system.terminal import progress


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong with a store."""

    problem: str
    """One line that names the file and, where it is one, the slice."""

    level: int = 0
    """0: not of a shard."""

    shard: str = ""
    """Name of the damaged shard, or empty."""


def check_size(store: Path, shard: Shard, level: int) -> None:
    """See that a shard's file is there, and of the size that the header promises.

    Raises:
        StoreError: it is not.
    """
    file = shard_path(store, shard.name, level)
    found = file.stat().st_size if file.is_file() else 0
    if found != shard.num_bytes(level):
        raise StoreError(
            f"{file} has {found:,} bytes, store.json promises "
            f"{shard.num_bytes(level):,}; copy it again, or delete the store "
            "and run `ichfast prepare` again"
        )


def file_damage(file: Path, crc32c: int) -> list[Damage]:
    """What is wrong with a file that is no shard; empty if nothing is.

    Args:
        file: of a store.
        crc32c: the checksum that the store's header gives.
    """
    try:
        if file_crc32c(file) == crc32c:
            return []
    except OSError as error:
        return [Damage(f"cannot read {file}: {error.strerror}")]
    return [Damage(f"{file} does not match its checksum")]


def shard_damage(
    store: Path, shard: Shard, level: int, rows: pd.DataFrame | None
) -> list[Damage]:
    """What is wrong with a shard's file; empty if nothing is.

    Args:
        store: the store's folder.
        shard: what the store's header says of it.
        level: one of the store's.
        rows: those of the store's table that point into this shard; None when the
            table is damaged, so that no slice can be named.
    """
    file = shard_path(store, shard.name, level)
    try:
        check_size(store, shard, level)
        has_header, found_N, crc32c = _read_shard(file, shard, level)
    except StoreError as error:
        return [Damage(str(error), level, shard.name)]
    except OSError as error:
        problem = f"cannot read {file}: {error.strerror}"
        return [Damage(problem, level, shard.name)]
    problems = []
    if not has_header:
        shape = shard.shape(level)
        problems.append(f"{file} is damaged: its header is not that of uint16 {shape}")
    if rows is not None:
        column = "crc32c" if level == SOURCE_LEVEL else f"crc32c_{level}"
        bad = rows[rows[column].to_numpy() != found_N[rows["row_in_shard"].to_numpy()]]
        problems += [
            f"{file}: slice {slice_id} (row {row}) does not match its checksum"
            for slice_id, row in zip(bad["slice_id"], bad["row_in_shard"], strict=True)
        ]
    if crc32c != shard.crc32c[level] and not problems:
        what = "a row" if rows is None else "a row without a slice"
        problems.append(f"{file}: {what} does not match its checksum")
    return [Damage(problem, level, shard.name) for problem in problems]


def _read_shard(
    file: Path, shard: Shard, level: int
) -> tuple[bool, npt.NDArray[np.int64], int]:
    """Whether the header is as it should be, and checksums: of rows, of the file."""
    count, rows, columns = shard.shape(level)
    found_N = np.zeros(count, dtype=np.int64)
    with file.open("rb") as opened:
        header = opened.read(NPY_HEADER_BYTES)
        whole = int(google_crc32c.value(header))
        for row in range(count):
            stored = opened.read(2 * rows * columns)
            crc32c = int(google_crc32c.value(stored))
            found_N[row] = crc32c
            whole = combine(whole, crc32c, len(stored))
    return header == npy_header(shard.shape(level)), found_N, whole


def verify_store(path: str | Path) -> list[str]:
    """Read every byte of a store and compare it with its checksums.

    Returns:
        The problems found, each naming the file and, where it is one, the slice.
        Empty: the store is as it was written.
    """
    return [damage.problem for damage in find_damage(Path(path))]


def find_damage(path: Path) -> list[Damage]:
    """Read every byte of the store at `path`; return what is not as written."""
    try:
        header = read_header(path)
    except StoreError as error:
        return [Damage(str(error))]
    found: list[Damage] = []
    table = None
    try:
        table = read_table(path, header)
    except StoreError as error:
        found.append(Damage(str(error)))
    folder = tables_dir(path)
    if not is_as_written(path):
        found.append(Damage(f"{folder / 'store.json'} does not match its checksum"))
    found += file_damage(folder / "rejected.csv", header.rejected_crc32c)
    if header.entries_crc32c:
        found += file_damage(intake_path(path), header.entries_crc32c)
    total = sum(shard.count for shard in header.shards) * len(header.levels)
    with progress("verify", total, "slice") as bar:
        for number, shard in enumerate(header.shards):
            rows = None if table is None else table[table["shard"] == number]
            for level in header.levels:
                found += shard_damage(path, shard, level, rows)
                bar.update(shard.count)
    return found
