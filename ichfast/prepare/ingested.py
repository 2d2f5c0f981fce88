"""The intake of a store: digests of all entries that it was made from.

    STORE/journal/entries.parquet   one row per entry in the order of reading: number of
                                    its unit, and two digests, `name` and `place`

1. `place` is the absolute path of the entry's file or archive, its name and offset in
   the archive, and its size. An entry whose place is in the intake is not read again.
   So only new files of a folder are appended, and equal names in two folders differ. A
   source that was moved is read again, and its slices are found to be duplicates.
2. `name` is the entry's key and size, without the location of the source. With it the
   entries of a unit are found in a copy of the source.
3. Only digests are written to the disk. They are keyed if the store's ids are hashed.

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
"""Size of a digest. Among 10^6 entries, the chance of two equal ones is 1 in 37
million."""

_SCHEMA = pa.schema(
    [("unit", pa.int32()), ("name", pa.uint64()), ("place", pa.uint64())]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Intake:
    """The entries that a store was made from."""

    unit_E: npt.NDArray[np.int32]
    """Shape (E,), ascending: number of each entry's unit."""

    name_E: npt.NDArray[np.uint64]
    """Shape (E,): digests of key and size."""

    place_E: npt.NDArray[np.uint64]
    """Shape (E,): digests of place and size."""

    @staticmethod
    def of(
        entries: Listing, unit_E: npt.NDArray[np.int32], key: bytes | None
    ) -> Intake:
        """The intake of `entries`.

        Args:
            entries: in the order of reading.
            unit_E: shape (E,), int32, number of each entry's unit.
            key: key of the hashed ids; None where ids are kept.
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
        """Number of units so far, which is the number of the next one."""
        return int(self.unit_E[-1]) + 1 if len(self) else 0

    def contains(self, entries: Listing, key: bytes | None) -> npt.NDArray[np.bool_]:
        """Whether each entry is in the intake, shape (len(entries),).

        Args:
            entries: of a listing.
            key: key of the hashed ids; None where ids are kept.
        """
        return np.isin(place_digests(entries, key), self.place_E)

    def __add__(self, other: Intake) -> Intake:
        return Intake(
            unit_E=np.concatenate([self.unit_E, other.unit_E]),
            name_E=np.concatenate([self.name_E, other.name_E]),
            place_E=np.concatenate([self.place_E, other.place_E]),
        )


def write_intake(file: Path, intake: Intake) -> int:
    """Write an intake; return the file's checksum, CRC-32C.

    Args:
        file: replaced if it exists.
        intake: the entries.
    """
    columns = [intake.unit_E, intake.name_E, intake.place_E]
    with atomic_path(file) as temporary:
        pq.write_table(pa.table(columns, schema=_SCHEMA), temporary)
    return file_crc32c(file)


def read_intake(file: Path, crc32c: int) -> Intake:
    """Read an intake that `write_intake` has written.

    Args:
        file: path of the intake.
        crc32c: its checksum in the store's header.

    Raises:
        StoreError: the file is missing or damaged.
    """
    advice = (
        "copy it back; until then the store can be read, but neither appended to nor "
        "repaired"
    )
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
    """Digests of keys and sizes, shape (len(entries),), uint64.

    Args:
        entries: of a listing.
        key: key of the digests; None for plain ones.
    """
    rows = entries.columns("key", "size")
    return _digests((f"{name}\0{size}" for name, size in rows), key)


def place_digests(entries: Listing, key: bytes | None) -> npt.NDArray[np.uint64]:
    """Digests of places and sizes, shape (len(entries),), uint64.

    Args:
        entries: of a listing.
        key: key of the digests; None for plain ones.
    """
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
            # As in `plain_text`, but inline: there are millions of texts.
            text.encode("utf-8", "backslashreplace"),
            digest_size=DIGEST_BYTES,
            key=key or b"",
        ).digest()
    return np.frombuffer(digests, "<u8").astype(np.uint64)
