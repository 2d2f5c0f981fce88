"""The journal of a store in the making: a page for every unit that is done.

    STORE/journal/plan.json        what the run is bound to STORE/journal/00000.page
    a unit's rows, as a parquet file in whose metadata its shards and rejected files
    stand; behind it the file's CRC-32C, 4 bytes, little-endian STORE/journal/next/
    the tables and header of the store to be STORE/journal/entries.parquet  the intake
    (`ichfast.prepare.ingested`); it alone stays

1. A page is written after its unit's shards, at once or not at all. So a unit with
   a page is done, and one without leaves nothing that counts.
2. Pages do not depend on the order in which units were done.
3. A run touches no file of a finished store before `next` is complete, which its
   ``store.json``, written last, says. From then on `publish` alone is left to do,
   and may be repeated: it copies, and removes the journal when all is in its place.
   Readers take the store from `next` until then (`ichfast.store.header.tables_dir`), so
   the rename of that one file is the moment at which the old store becomes the new.
4. A page is read whole and against its checksum. One that was damaged since it was
   written is removed when the run continues, and its unit is done again.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq

from ichfast.errors import StoreError
from ichfast.labels import CLASSES
from ichfast.prepare.plan import Unit, check_plan
from ichfast.store.header import ENTRIES_FILE
from ichfast.store.levels import level_folder
from ichfast.store.shards import Shard
from ichfast.store.tables import table_schema
from ichfast.system.files import (
    atomic_path,
    make_folder,
    remove_file,
    write_text_atomically,
)

log = logging.getLogger(__name__)

_CRC32C_BYTES = 4

_NOTES = b"ichfast"
"""The key in a page's metadata under which its rejects and shards stand."""

Reject = tuple[int, str, str, str]
"""Index in the listing, name in `rejected.csv`, reason, detail."""


@dataclass(frozen=True, slots=True)
class Page:
    """What a unit came to."""

    rows: pa.Table
    """Columns of `Journal.schema`, in the order of the listing."""

    rejects: Sequence[Reject]
    """In the order of the listing."""

    shards: Sequence[Shard]
    """By name."""


@dataclass(frozen=True, slots=True)
class Journal:
    """The journal of one store."""

    store: Path
    """The store's folder."""

    levels: tuple[int, ...]
    """The store's."""

    @property
    def path(self) -> Path:
        """The journal's folder."""
        return self.store / "journal"

    @property
    def next(self) -> Path:
        """Where `finish_store` writes; `publish` takes it from there."""
        return self.path / "next"

    @property
    def is_begun(self) -> bool:
        """Whether a run has begun and none has finished."""
        return (self.path / "plan.json").exists()

    @property
    def schema(self) -> pa.Schema:
        """The table's columns without labels, plus where a row came from."""
        fields = [pa.field("entry", pa.int64())]
        for column in table_schema(self.levels):
            if column.name == "shard":
                fields.append(pa.field("shard", pa.string()))
            elif column.name not in CLASSES:
                fields.append(column)
        return pa.schema(fields)

    def begin(self, plan: Mapping[str, str], *, may_restart: bool) -> None:
        """Begin, or continue, and clear away what a crash left or the disk damaged.

        Args:
            plan: what decides the pages.
            may_restart: begin again if it was begun with another plan.

        Raises:
            StoreError: it was begun with another plan, and may not restart.
        """
        make_folder(self.path)
        self._clear_temporaries()
        file = self.path / "plan.json"
        begun = _read_plan(file) if file.exists() else None
        if may_restart and begun is not None and begun != plan:
            log.warning("the sources have changed since the append was begun: restart")
            begun = None
        if begun is None:
            self.remove()
            write_text_atomically(file, json.dumps(plan))
        else:
            check_plan(self.store, begun, plan)
            self._clear_damaged_pages()

    def done(self, units: Iterable[Unit]) -> list[Unit]:
        """Those of `units` that have a page."""
        return [unit for unit in units if self._page_path(unit).exists()]

    def write(self, unit: Unit, page: Page) -> None:
        """Write a unit's page; its shards must be on the disk."""
        notes = {
            "rejects": page.rejects,
            "shards": [shard.to_json() for shard in page.shards],
        }
        rows = page.rows.replace_schema_metadata({_NOTES: json.dumps(notes)})
        buffer = pa.BufferOutputStream()
        pq.write_table(rows, buffer)
        content = buffer.getvalue().to_pybytes()
        with atomic_path(self._page_path(unit)) as temporary:
            temporary.write_bytes(content + _checksum(content))

    def read(self, unit: Unit, columns: Sequence[str] | None = None) -> Page:
        """Read a unit's page.

        Args:
            unit: has a page.
            columns: of the rows; None: all.

        Raises:
            StoreError: it is damaged.
        """
        # A page is too small for threads to gain, and each of them keeps memory.
        rows = pq.read_table(self._open_page(unit), columns=columns, use_threads=False)
        notes = _notes(rows.schema)
        return Page(
            rows=rows.replace_schema_metadata(None),
            rejects=[tuple(reject) for reject in notes["rejects"]],
            shards=[Shard.from_json(shard, self.levels) for shard in notes["shards"]],
        )

    def num_rejected(self, unit: Unit) -> int:
        """How many of a unit's files its page rejects.

        Raises:
            StoreError: the page is damaged.
        """
        return len(_notes(pq.read_schema(self._open_page(unit)))["rejects"])

    def publish(self) -> bool:
        """Finish the store if `next` is complete; return whether it was."""
        if not (self.next / "store.json").exists():
            return False
        self._clear_temporaries()
        for name, folder in (
            ("slices.parquet", self.store),
            ("rejected.csv", self.store),
            (ENTRIES_FILE, self.path),
            ("store.json", self.store),
        ):
            with atomic_path(folder / name) as temporary:
                shutil.copyfile(self.next / name, temporary)
        self.remove()
        return True

    def remove(self) -> None:
        """Remove what a finished store does not need, and what would mislead first."""
        remove_file(self.path / "plan.json")
        remove_file(self.next / "store.json")
        for left in self.path.glob("*"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            elif left.name != ENTRIES_FILE:
                left.unlink(missing_ok=True)

    def clear_shards(self, names: Collection[str]) -> None:
        """Remove the shards that are not among `names`."""
        for level in self.levels:
            for left in (self.store / level_folder(level)).iterdir():
                if left.name not in names:
                    # Workers may outlive a killed parent by a moment, and rename it.
                    left.unlink(missing_ok=True)

    def _clear_temporaries(self) -> None:
        for left_by_a_crash in self.store.glob("**/.*.tmp"):
            # Workers may outlive a killed parent by a moment, and rename it.
            left_by_a_crash.unlink(missing_ok=True)

    def _clear_damaged_pages(self) -> None:
        for page in self.path.glob("*.page"):
            if not _is_sound(page.read_bytes()):
                log.warning(
                    "unit %s is done again: its page in the journal was damaged since "
                    "it was written; check the disk",
                    page.stem,
                )
                page.unlink()

    def _open_page(self, unit: Unit) -> pa.BufferReader:
        """A page's parquet file, in memory."""
        page = self._page_path(unit)
        content = page.read_bytes()
        if not _is_sound(content):
            raise StoreError(
                f"{page} was damaged since it was written; check the disk, then the "
                "same command continues and does this unit again"
            )
        return pa.BufferReader(content[:-_CRC32C_BYTES])

    def _page_path(self, unit: Unit) -> Path:
        return self.path / f"{unit.number:05d}.page"


def _read_plan(file: Path) -> dict[str, str]:
    """The plan that a run was begun with; of a damaged one, that it is another."""
    try:
        document = json.loads(file.read_bytes())
        return {str(name): str(value) for name, value in document.items()}
    except (ValueError, AttributeError):
        return {}


def _checksum(content: bytes) -> bytes:
    return int(google_crc32c.value(content)).to_bytes(_CRC32C_BYTES, "little")


def _is_sound(page: bytes) -> bool:
    content, checksum = page[:-_CRC32C_BYTES], page[-_CRC32C_BYTES:]
    return len(content) > 0 and checksum == _checksum(content)


def _notes(schema: pa.Schema) -> dict[str, Any]:
    notes: dict[str, Any] = json.loads(schema.metadata[_NOTES])
    return notes
