"""A shard: slices of one unit that share a shape, one file in each level.

1. ``00000.npy`` holds a unit's 512x512 slices, ``00000-638x490.npy`` those of 638
   rows and 490 columns. The number is the unit's; a level does not change the name.
2. The files of a packed store end with ``.icp`` (`ichfast.store.packed_shards`), those
   of any other with ``.npy`` (`ichfast.store.raw_shards`).
3. The checksum of a shard's file is that of its rows' checksums (`shard_checksum`),
   which are those of pixels. So it is the same if the file is packed.

Shape letters: N slices in the shard, H rows, W columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from ichfast.store.levels import SOURCE_LEVEL, level_folder

NPY_HEADER_BYTES = 4096
"""Size of a raw file's header: one page, so that slices of 512x512 start on pages."""

PIXEL_DTYPE = np.dtype("<u2")
"""Type of a stored pixel: little-endian uint16."""

MIN_PACKED_BYTES = 64
"""Lower limit of a packed slice's size. It bounds the slices of a hostile header."""

MAX_PIXELS = 4096 * 4096
"""Upper limit of a slice's rows times columns; `prepare` rejects larger ones."""

_NAME = re.compile(r"([0-9]{5,9})(?:-[0-9]+x[0-9]+)?\.(?:npy|icp)", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """The entry of a shard in a store's header."""

    name: str
    """Name of its file in the folder of every level."""

    rows: int
    """Rows of its slices at level 512."""

    columns: int
    """Columns of its slices at level 512."""

    count: int
    """Number of slices, including those that no row of the table points to."""

    crc32c: Mapping[int, int]
    """For each level, the file's `shard_checksum`."""

    packed_bytes: Mapping[int, int] | None = None
    """For each level, the size of the packed file, bytes; None if files are raw."""

    @property
    def is_packed(self) -> bool:
        """Whether its files are packed."""
        return self.packed_bytes is not None

    @property
    def unit(self) -> int:
        """The number of its unit."""
        return int(self.name.partition(".")[0].partition("-")[0])

    def shape(self, level: int) -> tuple[int, int, int]:
        """Shape (N, H, W) of the array in the file at `level`."""
        if level == SOURCE_LEVEL:
            return self.count, self.rows, self.columns
        return self.count, level, level

    def num_bytes(self, level: int) -> int:
        """Exact size of the file at `level`, bytes."""
        if self.packed_bytes is not None:
            return self.packed_bytes[level]
        count, rows, columns = self.shape(level)
        return NPY_HEADER_BYTES + count * rows * columns * PIXEL_DTYPE.itemsize

    def to_json(self) -> dict[str, Any]:
        """The shard as an object of `store.json`."""
        sizes = {str(level): self.num_bytes(level) for level in self.crc32c}
        sums = {str(level): value for level, value in self.crc32c.items()}
        fields = {**asdict(self), "bytes": sizes, "crc32c": sums}
        del fields["packed_bytes"]
        return fields

    @staticmethod
    def from_json(
        found: Mapping[str, Any], levels: Sequence[int], *, packed: bool
    ) -> Shard:
        """Read what `to_json` made, and check every type and range.

        Args:
            found: an object from an untrusted `store.json`.
            levels: the store's.
            packed: whether the store is packed.

        Raises:
            ValueError, LookupError, TypeError: a field is missing or out of range.
        """
        rows = integer_field(found, "rows", 1, MAX_PIXELS)
        columns = integer_field(found, "columns", 1, MAX_PIXELS // rows)
        count = integer_field(found, "count", 1, 2**31 - 1)
        shard = Shard(
            name=str(found["name"]),
            rows=rows,
            columns=columns,
            count=count,
            crc32c={
                level: integer_field(found["crc32c"], str(level), 0, 2**32 - 1)
                for level in levels
            },
            packed_bytes={
                level: integer_field(
                    found["bytes"], str(level), count * MIN_PACKED_BYTES, 2**53
                )
                for level in levels
            }
            if packed
            else None,
        )
        unit = _NAME.fullmatch(shard.name)
        if not unit or shard.name != shard_name(
            int(unit[1]), rows, columns, packed=packed
        ):
            raise ValueError(f"shard name {shard.name!r} does not fit its shape")
        if found["bytes"] != shard.to_json()["bytes"]:
            raise ValueError(f"shard {shard.name} has bytes that do not fit its shape")
        return shard


def integer_field(found: Mapping[str, Any], name: str, low: int, high: int) -> int:
    """Take an integer out of untrusted JSON.

    Args:
        found: a JSON object.
        name: of the field.
        low: smallest allowed value.
        high: largest allowed value.

    Raises:
        ValueError, LookupError, TypeError: the field is missing or out of range.
    """
    value = found[name]
    if type(value) is not int or not low <= value <= high:
        raise ValueError(
            f"{name} is {value!r}, expected an integer from {low} to {high}"
        )
    return value


def shard_name(unit: int, rows: int, columns: int, *, packed: bool = False) -> str:
    """The file name of a unit's shard for slices of one shape, at every level.

    Args:
        unit: the unit's number.
        rows: of the slices at level 512.
        columns: of the slices at level 512.
        packed: whether the store is packed.
    """
    shape = "" if rows == columns == SOURCE_LEVEL else f"-{rows}x{columns}"
    return f"{unit:05d}{shape}.{'icp' if packed else 'npy'}"


def shard_path(store: Path, name: str, level: int) -> Path:
    """The path of a shard's file.

    Args:
        store: the store's folder.
        name: the shard's.
        level: one of the store's.
    """
    return store / level_folder(level) / name


def shard_checksum(row_crc32c: Iterable[int]) -> int:
    """The checksum of a shard's file: the CRC-32C of the checksums of all its rows.

    Args:
        row_crc32c: the CRC-32C of each row's bytes, in the order of rows. They are
            put together as 4 bytes each, little-endian.
    """
    return int(google_crc32c.value(np.fromiter(row_crc32c, "<u4").tobytes()))
