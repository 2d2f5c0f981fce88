"""The files that sources hold, one row each, kept in packed columns.

A competition's set has 752,803 files. As objects with a path each they would take
1 GB of the process that hands out the work; packed they take 8 MB. An `Entry` is
made when it is asked for.
"""

from __future__ import annotations

import io
import itertools
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ichfast.sources.remote import Container
from ichfast.system.external_sort import Shelf, in_parts, sort_runs

CHUNK_ROWS = 1024
"""Rows that are unpacked at a time: those of a unit of work."""

_ORDER = ("source", "key", "offset", "file")

_SCHEMA = pa.schema(
    [
        *(("source", pa.int32()), ("number", pa.int32()), ("home", pa.int32())),
        # File systems and archives name files as they like: bytes, not text.
        *(("file", pa.binary()), ("member", pa.binary()), ("key", pa.string())),
        *(("size", pa.int64()), ("offset", pa.int64())),
    ]
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One file that may be DICOM, and where to find it."""

    source: int
    """Index of the source among those asked for."""

    container: Container
    """The file itself, or the archive that holds it."""

    member: str
    """Name inside the archive; empty for a plain file."""

    key: str
    """Name for sorting and for ``rejected.csv``: posix, relative to the source,
    ``archive.tar.xz/member`` inside an archive. Control characters escaped."""

    size: int
    """Bytes, unpacked."""

    offset: int = -1
    """Where the member begins in the (unpacked) archive, bytes; -1 for a file."""

    number: int = 0
    """Its place among the entries of its source."""

    @property
    def archive(self) -> Container | None:
        """The archive that it lies in, maybe without a name there."""
        return self.container if self.offset >= 0 else None


class Found(NamedTuple):
    """A file as a walk through a source comes across it."""

    home: Container
    """Its folder; or an archive, or a file, that is known by itself."""

    file: str
    """Its name in the folder, ``/`` between parts; empty for any other home."""

    member: str
    key: str
    size: int
    offset: int = -1
    """As in `Entry`."""


class Listing(Sequence[Entry]):
    """Entries in order. A slice of it shares its memory; it pickles as its rows."""

    def __init__(
        self, homes: Sequence[Container], shelf: Shelf, start: int, stop: int
    ) -> None:
        self._homes = homes
        self._shelf = shelf
        """Batches of `CHUNK_ROWS` rows; the last may have less."""
        self._start, self._stop = start, stop

    @staticmethod
    def of(found: Iterable[Iterable[Found]]) -> Listing:
        """Put what was found into order.

        Args:
            found: for each source, its files, in any order.

        Returns:
            Sorted by source, then key, in code point order, then offset.
        """
        homes: dict[Container, int] = {}
        rows = _found_rows(found, homes)
        ordered = sort_runs(rows, Shelf(_SCHEMA, io.BytesIO()), _ORDER).rows()
        shelf = _shelved(_numbered(ordered))
        num_rows = sum(len(batch) for batch in shelf)
        return Listing(list(homes), shelf, 0, num_rows)

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(pc.sum(rows["size"]).as_py() for rows in self._batches())

    def __len__(self) -> int:
        return self._stop - self._start

    def __iter__(self) -> Iterator[Entry]:
        names = ("home", "file", "source", "member", "key", "size", "offset", "number")
        for home, file, source, *rest in self.columns(*names):
            container = self._homes[home] / file if file else self._homes[home]
            yield Entry(source, container, *rest)

    @overload
    def __getitem__(self, index: int) -> Entry: ...

    @overload
    def __getitem__(self, index: slice) -> Listing: ...

    def __getitem__(self, index: int | slice) -> Entry | Listing:
        if not isinstance(index, slice):
            at = range(len(self))[index]
            return next(iter(self[at : at + 1]))
        start, stop, step = index.indices(len(self))
        if step != 1:
            return self.take(range(start, stop, step))
        start, stop = self._start + start, self._start + max(start, stop)
        return Listing(self._homes, self._shelf, start, stop)

    def __reduce__(self) -> tuple[object, ...]:
        table = self._table()
        used = pc.unique(table["home"])
        table = _with_column(table, "home", pc.index_in(table["home"], used))
        stream = pa.BufferOutputStream()
        with pa.ipc.new_stream(stream, _SCHEMA) as writer:
            writer.write_table(table)
        homes = [self._homes[home] for home in used.to_pylist()]
        return _restore, (homes, stream.getvalue().to_pybytes())

    def select(self, is_wanted_E: npt.NDArray[np.bool_]) -> Listing:
        """The entries for which a mask of shape (len(self),) is True."""
        return self._with(self._table().filter(pa.array(is_wanted_E)))

    def take(self, index_E: Sequence[int]) -> Listing:
        """The entries at some indices, in their order."""
        return self._with(self._table().take(pa.array(index_E, pa.int64())))

    def absolute(self) -> Listing:
        """The same entries, with paths that are good in any folder."""
        homes = [h.absolute() if isinstance(h, Path) else h for h in self._homes]
        return Listing(homes, self._shelf, self._start, self._stop)

    def columns(self, *names: str) -> Iterator[tuple[Any, ...]]:
        """Some columns, row by row."""
        for batch in self._batches():
            yield from zip(*(_values(batch[name]) for name in names), strict=True)

    def places(self) -> Iterator[str]:
        """Where each file or archive lies, as `place_of` says it."""
        homes = [place_of(home) for home in self._homes]
        for home, file in self.columns("home", "file"):
            yield f"{homes[home].rstrip('/')}/{file}" if file else homes[home]

    def _batches(self) -> Iterator[pa.RecordBatch]:
        first_batch, skipped = divmod(self._start, CHUNK_ROWS)
        left = len(self)
        for number in itertools.count(first_batch):
            if not left:
                return
            batch = self._shelf.get(number).slice(skipped, left)
            left -= len(batch)
            skipped = 0
            yield batch

    def _table(self) -> pa.Table:
        return pa.Table.from_batches(self._batches(), _SCHEMA)

    def _with(self, table: pa.Table) -> Listing:
        return Listing(self._homes, _shelved([table]), 0, len(table))


def _found_rows(
    found: Iterable[Iterable[Found]], homes: dict[Container, int]
) -> Iterator[pa.Table]:
    """The rows of all sources, not numbered; what is new is added to `homes`."""
    left = ((source, row) for source, files in enumerate(found) for row in files)
    while batch := list(itertools.islice(left, CHUNK_ROWS)):
        sources, rows = zip(*batch, strict=True)
        columns = {
            "source": sources,
            "number": [0] * len(rows),
            "home": [homes.setdefault(row.home, len(homes)) for row in rows],
            "file": [_bytes(row.file) for row in rows],
            "member": [_bytes(row.member) for row in rows],
            "key": [row.key for row in rows],
            "size": [row.size for row in rows],
            "offset": [row.offset for row in rows],
        }
        yield pa.Table.from_pydict(columns, schema=_SCHEMA)


def _numbered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Rows in order, with the place of each among those of its source."""
    next_of: defaultdict[int, Iterator[int]] = defaultdict(itertools.count)
    for table in tables:
        number = [next(next_of[source]) for source in table["source"].to_pylist()]
        yield _with_column(table, "number", pa.array(number, pa.int32()))


def _shelved(tables: Iterable[pa.Table]) -> Shelf:
    shelf = Shelf(_SCHEMA, io.BytesIO())
    for table in in_parts(tables, CHUNK_ROWS):
        shelf.put(*table.to_batches())
    return shelf


def _with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    at = _SCHEMA.get_field_index(name)
    return table.set_column(at, _SCHEMA.field(at), values)


def _restore(homes: Sequence[Container], rows: bytes) -> Listing:
    table = pa.ipc.open_stream(rows).read_all()
    return Listing(homes, _shelved([table]), 0, len(table))


def _values(column: pa.Array) -> list[Any]:
    values = column.to_pylist()
    return [*map(_text, values)] if pa.types.is_binary(column.type) else values


def place_of(home: Container) -> str:
    """Where a folder, file or archive lies: an absolute path, or a URL and path."""
    if isinstance(home, Path):
        return os.path.abspath(home)  # noqa: PTH100  links stay as they are
    return f"{home}\0{home.path}"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogatepass")
