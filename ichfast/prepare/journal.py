"""The journal of an unfinished store: one page for each unit that is done.

    STORE/journal/plan.json         the plan of the run
    STORE/journal/00000.page        a unit's rows, as a parquet file whose metadata has
                                    its shards and rejected files; then the file's
                                    CRC-32C, 4 bytes, little-endian
    STORE/journal/next/             tables and header of the finished store
    STORE/journal/entries.parquet   the intake (`ichfast.prepare.ingested`); it stays

1. A page is written atomically, after the shards of its unit. So a unit with a page is
   done, and one without a page has left nothing that counts.
2. Pages do not depend on the order in which units are converted.
3. A run changes no file of a finished store before `next` is complete, that is, has a
   ``store.json``, which is written last. Then only `publish` is left to do, and may be
   repeated: it copies the files to their places and removes the journal. Until it is
   done, readers take the store from `next` (`ichfast.store.header.tables_dir`). So the
   rename of that one file replaces the old store by the new one.
4. A page is checked against its checksum. One that was damaged on the disk is removed
   when the run continues, and its unit is converted again.
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
from ichfast.prepare.own_files import remove_own, remove_temporaries
from ichfast.prepare.plan import Unit, check_plan, packed_plan
from ichfast.store.header import ENTRIES_FILE
from ichfast.store.levels import level_folder
from ichfast.store.shards import Shard
from ichfast.store.tables import LABEL_COLUMNS, table_schema
from ichfast.system.files import (
    atomic_path,
    make_folder,
    remove_file,
    write_text_atomically,
)

log = logging.getLogger(__name__)

_CRC32C_BYTES = 4

_NOTES = b"ichfast"
"""The key of a page's rejects and shards in its metadata."""

Reject = tuple[int, str, str, str]
"""Index in the listing, name in `rejected.csv`, reason, detail."""


@dataclass(frozen=True, slots=True)
class Page:
    """The result of a unit."""

    rows: pa.Table
    """One row per slice in the order of the listing, columns of `Journal.schema`."""

    rejects: Sequence[Reject]
    """Rejected files in the order of the listing."""

    shards: Sequence[Shard]
    """The unit's shards by name."""


@dataclass(frozen=True, slots=True)
class Journal:
    """The journal of one store."""

    store: Path
    """The store's folder."""

    levels: tuple[int, ...]
    """The store's levels."""

    packed: bool = False
    """Whether the store is packed."""

    @property
    def path(self) -> Path:
        """The journal's folder."""
        return self.store / "journal"

    @property
    def next(self) -> Path:
        """The folder of tables and header until `publish` copies them."""
        return self.path / "next"

    @property
    def is_begun(self) -> bool:
        """Whether a run has begun and not finished."""
        return (self.path / "plan.json").exists()

    @property
    def schema(self) -> pa.Schema:
        """The columns of a page: those of the table without labels, and `entry`."""
        fields = [pa.field("entry", pa.int64())]
        for column in table_schema(self.levels):
            if column.name == "shard":
                fields.append(pa.field("shard", pa.string()))
            elif column.name not in LABEL_COLUMNS:
                fields.append(column)
        return pa.schema(fields)

    def begin(self, plan: Mapping[str, str], *, may_restart: bool) -> None:
        """Begin or continue; remove what a crash has left and damaged pages.

        Args:
            plan: the plan of this run.
            may_restart: discard a journal that was begun with another plan.

        Raises:
            StoreError: begun with another plan, and `may_restart` is False.
        """
        plan = {**plan, **packed_plan(packed=self.packed)}
        make_folder(self.path)
        remove_temporaries(self.store)
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
        """The units that have a page."""
        return [unit for unit in units if self._page_path(unit).exists()]

    def write(self, unit: Unit, page: Page) -> None:
        """Write a unit's page. Its shards must be on the disk.

        Args:
            unit: the unit.
            page: its result.
        """
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
            unit: a unit with a page.
            columns: names of the columns to read; None reads all.

        Raises:
            StoreError: the page is damaged.
        """
        # Threads gain nothing on a file of this size, and each keeps memory.
        rows = pq.read_table(self._open_page(unit), columns=columns, use_threads=False)
        notes = _notes(rows.schema)
        return Page(
            rows=rows.replace_schema_metadata(None),
            rejects=[tuple(reject) for reject in notes["rejects"]],
            shards=[
                Shard.from_json(shard, self.levels, packed=self.packed)
                for shard in notes["shards"]
            ],
        )

    def num_rejected(self, unit: Unit) -> int:
        """The number of rejected files in a unit's page.

        Raises:
            StoreError: the page is damaged.
        """
        return len(_notes(pq.read_schema(self._open_page(unit)))["rejects"])

    def publish(self) -> bool:
        """Finish the store if `next` is complete; return whether it is."""
        if not (self.next / "store.json").exists():
            return False
        remove_temporaries(self.store)
        for name, folder in (
            ("slices.parquet", self.store),
            ("rejected.csv", self.store),
            (ENTRIES_FILE, self.path),
            ("store.json", self.store),
        ):
            if (self.next / name).exists():  # a store may have no intake
                with atomic_path(folder / name) as temporary:
                    shutil.copyfile(self.next / name, temporary)
        self.remove()
        return True

    def remove(self) -> None:
        """Remove what a finished store does not need, first what could mislead."""
        remove_file(self.path / "plan.json")
        remove_file(self.next / "store.json")
        remove_own(self.store, self.path, keep=[self.path / ENTRIES_FILE])

    def clear_shards(self, names: Collection[str]) -> None:
        """Remove all shards except those with the given names."""
        for level in self.levels:
            folder = self.store / level_folder(level)
            remove_own(self.store, folder, keep={folder / name for name in names})

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
        """The parquet file of a page, in memory."""
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
    """The plan that a run was begun with; an empty one if the file is damaged."""
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
