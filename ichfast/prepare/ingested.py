"""The intake of a store: every entry it was made from, as digests.

    STORE/journal/entries.parquet   one row an entry, in the order of reading: the
                                    number of its unit, and two digests, `name`
                                    and `place`

1. An entry is taken in when its `place` is known: the absolute path of its file or
   archive, its name and offset in there, and its size. So a folder that has grown
   gives what is new in it, and two folders with files of equal names are told apart.
   A source that was moved counts as new; its slices turn out to be duplicates.
2. `name` is the entry's key and size, wherever the source lies now: with it, a
   unit's entries are found again in a copy of the source.
3. Nothing but digests reaches the disk, keyed where the store's ids are.

Shape letters: E entries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ichfast.errors import StoreError
from ichfast.sources.listing import Listing
from ichfast.store.tables import checked_content
from ichfast.system.files import atomic_path, file_crc32c
from ichfast.system.untrusted import NOT_PARQUET, read_parquet

DIGEST_BYTES = 8
"""Of 10^6 entries, two share a digest with a chance of 1 in 37 million."""

_SCHEMA = pa.schema(
    [("unit", pa.int32()), ("name", pa.uint64()), ("place", pa.uint64())]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Intake:
    """What a store has taken in."""

    unit_E: npt.NDArray[np.int32]
    """Shape (E,), ascending: the unit that each entry belongs to."""

    name_E: npt.NDArray[np.uint64]
    """Shape (E,): digests of key and size."""

    place_E: npt.NDArray[np.uint64]
    """Shape (E,): digests of where each entry lay, and its size."""

    @staticmethod
    def of(
        entries: Listing, unit_E: npt.NDArray[np.int32], key: bytes | None
    ) -> Intake:
        """The intake of `entries`.

        Args:
            entries: in the order of reading.
            unit_E: shape (len(entries),), the number of each entry's unit.
            key: of the store's hashed ids, if they are hashed.
        """
        return Intake(
            unit_E=unit_E,
            name_E=name_digests(entries, key),
            place_E=place_digests(entries, key),
        )

    def __len__(self) -> int:
        return len(self.unit_E)

    @property
    def num_units(self) -> int:
        """Units that were read so far; the number of the next one."""
        return int(self.unit_E[-1]) + 1 if len(self) else 0

    def knows(self, entries: Listing, key: bytes | None) -> npt.NDArray[np.bool_]:
        """Which of `entries` were taken in already, shape (len(entries),)."""
        return np.isin(place_digests(entries, key), self.place_E)

    def __add__(self, other: Intake) -> Intake:
        return Intake(
            unit_E=np.concatenate([self.unit_E, other.unit_E]),
            name_E=np.concatenate([self.name_E, other.name_E]),
            place_E=np.concatenate([self.place_E, other.place_E]),
        )


def write_intake(file: Path, intake: Intake) -> int:
    """Write `intake` to `file`; return the file's checksum, CRC-32C."""
    columns = [intake.unit_E, intake.name_E, intake.place_E]
    with atomic_path(file) as temporary:
        pq.write_table(pa.table(columns, schema=_SCHEMA), temporary)
    return file_crc32c(file)


def read_intake(file: Path, crc32c: int) -> Intake:
    """Read what `write_intake` wrote.

    Args:
        file: a store's.
        crc32c: the checksum that the store's header gives.

    Raises:
        StoreError: it is missing or damaged.
    """
    advice = "the store can be read, but neither appended to nor repaired"
    content = checked_content(file, crc32c, advice)
    try:
        rows = read_parquet(pa.py_buffer(content))
        if not rows.schema.equals(_SCHEMA):
            raise ValueError("it has other columns")
    except NOT_PARQUET as error:
        raise StoreError(f"{file} is not a parquet table; {advice}") from error
    unit_E, name_E, place_E = (rows[name].to_numpy() for name in _SCHEMA.names)
    return Intake(unit_E=unit_E, name_E=name_E, place_E=place_E)


def name_digests(entries: Listing, key: bytes | None) -> npt.NDArray[np.uint64]:
    """Digests of keys and sizes, shape (len(entries),)."""
    rows = entries.columns("key", "size")
    return _digests((f"{name}\0{size}" for name, size in rows), key)


def place_digests(entries: Listing, key: bytes | None) -> npt.NDArray[np.uint64]:
    """Digests of where entries lie, and their sizes, shape (len(entries),)."""
    rows = entries.columns("member", "offset", "size")
    return _digests(
        (
            f"{place}\0{member}\0{offset}\0{size}"
            for place, (member, offset, size) in zip(
                entries.places(), rows, strict=True
            )
        ),
        key,
    )


def _digests(texts: Iterable[str], key: bytes | None) -> npt.NDArray[np.uint64]:
    digests = bytearray()
    for text in texts:
        digests += hashlib.blake2b(
            # As `plain_text`; a listing has texts by the million.
            text.encode("utf-8", "backslashreplace"),
            digest_size=DIGEST_BYTES,
            key=key or b"",
        ).digest()
    return np.frombuffer(digests, "<u8").astype(np.uint64)
