"""The header of a store: its `store.json`.

1. It is written last, so a folder without one is not a store. Once it is complete in
   ``journal/next``, it and the tables there are the store's (`tables_dir`).
2. It contains no time and no path, so the same sources give the same bytes.
3. It is untrusted: every type and range is checked when it is read.
4. Its last field is the checksum of the rest (`ichfast.system.checksums`). One that is
   not as written, byte for byte, is refused.
"""

from __future__ import annotations

import errno
import hashlib
import json
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ichfast.errors import StoreError
from ichfast.store.levels import check_levels
from ichfast.store.shards import Shard, integer_field
from ichfast.system.checksums import check_document, with_checksum
from ichfast.system.files import write_text_atomically
from ichfast.windows import HU_OFFSET

RAW_VERSION, PACKED_VERSION = 1, 2
"""Format versions of stores with raw and with packed slices; all else is the same."""

ENTRIES_FILE = "entries.parquet"
"""Name of the intake (`ichfast.prepare.ingested`) in the folder ``journal``."""

COUNTS = (
    *("entries", "slices", "series", "patients"),
    *("duplicates", "labelled", "partly_labelled", "labels_without_slice"),
)
"""The counts of a header: entries of the listing; slices, series and patients of the
table; slices left out as duplicates; slices with all six labels; slices with some of
them; labels without a slice."""

MAX_HEADER_BYTES = 2**28
"""Upper limit of the size of a `store.json`, bytes: that of a million shards."""

_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""Errors raised by hostile JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreHeader:
    """The contents of `store.json`."""

    levels: tuple[int, ...]
    """The store's levels, largest first; see `check_levels`."""

    shards: tuple[Shard, ...]
    """Sorted by name. The table's `shard` column is an index into it."""

    counts: Mapping[str, int]
    """The numbers named in `COUNTS`."""

    rejected: Mapping[str, int]
    """Number of rejected files for each code."""

    known: Mapping[str, int] = field(default_factory=dict)
    """By column of labels, the number of known ones: of slices, or of series or studies
    where the labels are of these. Columns without a label are left out."""

    positives: Mapping[str, int] = field(default_factory=dict)
    """The number of labels 1, like `known`."""

    keep_ids: bool
    """Whether ids are kept; if not, they are keyed hashes."""

    plan: Mapping[str, str]
    """Digests of what the store was made from; see `ichfast.prepare.plan`."""

    versions: Mapping[str, str]
    """Versions of the packages that wrote the store."""

    lineage: tuple[str, ...] = ()
    """`digest` of each store that this one grew from by appends, oldest first."""

    table_crc32c: int = 0
    """CRC-32C of `slices.parquet`. Set by `ichfast.store.store.finish_store`."""

    rejected_crc32c: int = 0
    """CRC-32C of `rejected.csv`. Set by `ichfast.store.store.finish_store`."""

    entries_crc32c: int = 0
    """CRC-32C of `journal/entries.parquet`; 0 for a store without one."""

    hu_offset: int = HU_OFFSET
    """Added to HU when the store was written; subtract it to get HU back."""

    format_version: int = RAW_VERSION

    @property
    def is_packed(self) -> bool:
        """Whether slices are packed."""
        return self.format_version == PACKED_VERSION

    @property
    def digest(self) -> str:
        """Identifies what the store was made from: the same for every copy of it.

        A raw store and a packed one of the same slices have the same digest.
        """
        plan = json.dumps(dict(self.plan), sort_keys=True)
        return hashlib.sha256(plan.encode()).hexdigest()[:16]

    @property
    def num_bytes(self) -> int:
        """Size of all shards at all levels, bytes."""
        return sum(s.num_bytes(level) for s in self.shards for level in self.levels)


def tables_dir(path: Path) -> Path:
    """The folder of `store.json` and the tables of the store at `path`.

    Prepare completes these files in ``journal/next``, `store.json` last, and then
    copies them to their places. While it copies, and if it is killed then, the files in
    the journal are valid. So at any moment a store is the old one or the new one.
    """
    complete = path / "journal" / "next"
    return complete if (complete / "store.json").exists() else path


def intake_path(path: Path) -> Path:
    """The path of the intake (`ichfast.prepare.ingested`) of the store at `path`."""
    folder = tables_dir(path)
    return (path / "journal" if folder == path else folder) / ENTRIES_FILE


def write_header(path: Path, header: StoreHeader) -> None:
    """Write `store.json`.

    Args:
        path: the folder to write to.
        header: the contents.
    """
    document = {**asdict(header), "shards": [s.to_json() for s in header.shards]}
    write_text_atomically(path / "store.json", with_checksum(document))


def read_header(path: Path) -> StoreHeader:
    """Read and check the `store.json` of the store at `path`.

    Raises:
        StoreError: no store, an unfinished or damaged one, or another format version.
    """
    file = tables_dir(path) / "store.json"
    try:
        content = _bounded_content(file)
        document = json.loads(content)
        version = integer_field(document, "format_version", 1, 2**31)
        if version not in (RAW_VERSION, PACKED_VERSION):
            raise StoreError(
                f"{path} has format version {version}, this ichfast reads "
                f"{RAW_VERSION} (raw) and {PACKED_VERSION} (packed); install a newer "
                "ichfast, or run `ichfast prepare` again into another store"
            )
        check_document(content, document)
        return _header_from_json(document)
    except OSError as error:
        if (path / "journal").is_dir():
            raise StoreError(
                f"{path} is unfinished; run the command that began it again, `ichfast "
                "prepare` or `ichfast pack`: it continues where it stopped"
            ) from error
        raise StoreError(
            f"{path} is not a slice store (no readable store.json); make one with "
            f"`ichfast prepare SOURCE --store {path}`"
        ) from error
    except _MALFORMED as error:
        raise StoreError(
            f"{file} is damaged ({type(error).__name__}: {error!s:.200}); copy it "
            "back, or delete the store and run `ichfast prepare` again"
        ) from error


def _bounded_content(file: Path) -> bytes:
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if status.st_size > MAX_HEADER_BYTES:
        raise ValueError(
            f"{status.st_size:,} bytes, expected at most {MAX_HEADER_BYTES:,}"
        )
    return file.read_bytes()


def _counts(found: Mapping[str, Any]) -> dict[str, int]:
    return {str(name): integer_field(found, name, 0, 2**53) for name in found}


def _header_from_json(found: Mapping[str, Any]) -> StoreHeader:
    levels = tuple(found["levels"])
    check_levels(levels)
    version = found["format_version"]
    shards = tuple(
        Shard.from_json(shard, levels, packed=version == PACKED_VERSION)
        for shard in found["shards"]
    )
    names = [shard.name for shard in shards]
    if not names or names != sorted(set(names)):
        raise ValueError("shards are missing, repeated or out of order")
    if type(found["keep_ids"]) is not bool:
        raise ValueError(f"keep_ids is {found['keep_ids']!r}, expected true or false")
    counts = {"partly_labelled": 0, **found["counts"]}  # stores before had none
    header = StoreHeader(
        levels=levels,
        shards=shards,
        counts={name: integer_field(counts, name, 0, 2**53) for name in COUNTS},
        rejected=_counts(found["rejected"]),
        known=_counts(found.get("known", {})),
        positives=_counts(found.get("positives", {})),
        keep_ids=found["keep_ids"],
        plan={str(name): str(value) for name, value in found["plan"].items()},
        versions={str(name): str(v) for name, v in found["versions"].items()},
        lineage=tuple(map(str, found.get("lineage", ()))),
        table_crc32c=integer_field(found, "table_crc32c", 0, 2**32 - 1),
        rejected_crc32c=integer_field(found, "rejected_crc32c", 0, 2**32 - 1),
        entries_crc32c=integer_field(found, "entries_crc32c", 0, 2**32 - 1),
        hu_offset=integer_field(found, "hu_offset", HU_OFFSET, HU_OFFSET),
        format_version=version,
    )
    integer_field(header.counts, "slices", 1, sum(shard.count for shard in shards))
    return header
