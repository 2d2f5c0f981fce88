"""Finding damaged files of a store by reading every byte.

1. Files are read, not mapped. So a disk error is a finding; on a map it would end the
   process.
2. Anything in the place of a file is a finding too: nothing, a folder, a pipe, a broken
   link.
3. Memory does not grow with the size of files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ichfast.errors import StoreError
from ichfast.store.header import intake_path, read_header, tables_dir
from ichfast.store.levels import checksum_column
from ichfast.store.packed_shards import check_packed_file
from ichfast.store.raw_shards import check_raw_file
from ichfast.store.shards import Shard, shard_checksum, shard_path
from ichfast.store.tables import read_table
from ichfast.system.files import file_crc32c
from ichfast.system.terminal import progress


@dataclass(frozen=True, slots=True)
class Damage:
    """One problem of a store."""

    problem: str
    """One line that names the file and, if one is damaged, the slice."""

    level: int = 0
    """The level of the damaged shard; 0 for any other file."""

    shard: str = ""
    """The name of the damaged shard; empty for any other file."""


def check_size(store: Path, shard: Shard, level: int) -> None:
    """Check that a shard's file exists and has the size that the header promises.

    Args:
        store: the store's folder.
        shard: of the store's header.
        level: one of the store's.

    Raises:
        StoreError: the file is missing or has another size.
    """
    file = shard_path(store, shard.name, level)
    found = file.stat().st_size if file.is_file() else 0
    if found != shard.num_bytes(level):
        raise StoreError(
            f"{file} has {found:,} bytes, store.json promises "
            f"{shard.num_bytes(level):,}; copy it back, or mend it with "
            f"`ichfast verify {store} --repair SOURCE`"
        )


def file_damage(file: Path, crc32c: int) -> list[Damage]:
    """The damage of a file that is not a shard; empty if it is sound.

    Args:
        file: a table of a store.
        crc32c: its checksum in the store's header.
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
    """The damage of a shard's file; empty if every byte is as written.

    Args:
        store: the store's folder.
        shard: of the store's header.
        level: one of the store's.
        rows: the rows of the store's table that point into this shard; None if the
            table is not known, so that no slice can be named.
    """
    file = shard_path(store, shard.name, level)
    shape, size = shard.shape(level), shard.num_bytes(level)
    problems: list[str] = []
    try:
        check_size(store, shard, level)
        if shard.is_packed:
            found_N = check_packed_file(file, shape, size)
        else:
            problems, found_N = check_raw_file(file, shape)
    except StoreError as error:
        return [Damage(str(error), level, shard.name)]
    except OSError as error:
        problem = f"cannot read {file}: {error.strerror}"
        return [Damage(problem, level, shard.name)]
    if rows is not None:
        expected = rows[checksum_column(level)].to_numpy()
        bad = rows[expected != found_N[rows["row_in_shard"].to_numpy()]]
        problems += [
            f"{file}: slice {slice_id} (row {row}) does not match its checksum"
            for slice_id, row in zip(bad["slice_id"], bad["row_in_shard"], strict=True)
        ]
    is_whole = (found_N >= 0).all() and shard_checksum(found_N) == shard.crc32c[level]
    if not is_whole and not problems:
        what = "a row" if rows is None else "a row without a slice"
        problems.append(f"{file}: {what} does not match its checksum")
    return [Damage(problem, level, shard.name) for problem in problems]


def verify_store(path: str | Path) -> list[str]:
    """Read every byte of a store and compare it with its checksums.

    Returns:
        The problems found, each naming the file and, if one is damaged, the slice.
        Empty if the store is as it was written.
    """
    return [damage.problem for damage in find_damage(Path(path))]


def find_damage(path: Path) -> list[Damage]:
    """Read every byte of a store; return the damage that was found."""
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
