"""The files that sources hold, one row each, kept in columns.

A competition's set has 752,803 files. As objects with a path each they would take
1 GB of the process that hands out the work; in columns they take 0.1 GB. An `Entry`
is made when it is asked for.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ichfast.remote import Container

CHUNK_ROWS = 4096
"""Rows that are objects at a time, while a listing is made or gone through."""

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

    def __init__(self, homes: Sequence[Container], table: pa.Table) -> None:
        self._homes = homes
        self._table = table

    @staticmethod
    def of(found: Iterable[Iterable[Found]]) -> Listing:
        """Put what was found into order.

        Args:
            found: for each source, its files, in any order.

        Returns:
            Sorted by source, then key, in code point order, then offset.
        """
        homes: dict[Container, int] = {}
        tables = [_SCHEMA.empty_table()]
        tables += [_source_table(n, files, homes) for n, files in enumerate(found)]
        return Listing(list(homes), pa.concat_tables(tables))

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return int(pc.sum(self._table["size"]).as_py() or 0)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __iter__(self) -> Iterator[Entry]:
        rows = self.columns("source", "member", "key", "size", "offset", "number")
        for container, (source, member, *rest) in zip(
            self._containers(), rows, strict=True
        ):
            yield Entry(source, container, member, *rest)

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
        return Listing(self._homes, self._table.slice(start, max(stop - start, 0)))

    def __reduce__(self) -> tuple[object, ...]:
        used = pc.unique(self._table["home"])
        table = _with_column(
            self._table, "home", pc.index_in(self._table["home"], used)
        )
        stream = pa.BufferOutputStream()
        with pa.ipc.new_stream(stream, _SCHEMA) as writer:
            writer.write_table(table)
        homes = [self._homes[home] for home in used.to_pylist()]
        return _restore, (homes, stream.getvalue().to_pybytes())

    def select(self, is_wanted_E: npt.NDArray[np.bool_]) -> Listing:
        """The entries for which a mask of shape (len(self),) is True."""
        return Listing(self._homes, self._table.filter(pa.array(is_wanted_E)))

    def take(self, index_E: Sequence[int]) -> Listing:
        """The entries at some indices, in their order."""
        return Listing(self._homes, self._table.take(pa.array(index_E, pa.int64())))

    def absolute(self) -> Listing:
        """The same entries, with paths that are good in any folder."""
        homes = [h.absolute() if isinstance(h, Path) else h for h in self._homes]
        return Listing(homes, self._table)

    def columns(self, *names: str) -> Iterator[tuple[Any, ...]]:
        """Some columns, row by row."""
        for batch in self._table.select(names).to_batches(CHUNK_ROWS):
            yield from zip(*map(_values, batch.columns), strict=True)

    def places(self) -> Iterator[str]:
        """Where each file or archive lies, as `place_of` says it."""
        homes = [place_of(home) for home in self._homes]
        for home, file in self.columns("home", "file"):
            yield f"{homes[home].rstrip('/')}/{file}" if file else homes[home]

    def _containers(self) -> Iterator[Container]:
        for home, file in self.columns("home", "file"):
            yield self._homes[home] / file if file else self._homes[home]


def _source_table(
    source: int, files: Iterable[Found], homes: dict[Container, int]
) -> pa.Table:
    """The rows of one source, sorted; homes that are new are added to `homes`."""
    left = iter(files)
    batches = []
    while rows := list(itertools.islice(left, CHUNK_ROWS)):
        columns = {
            "source": [source] * len(rows),
            "number": [0] * len(rows),
            "home": [homes.setdefault(row.home, len(homes)) for row in rows],
            "file": [_bytes(row.file) for row in rows],
            "member": [_bytes(row.member) for row in rows],
            "key": [row.key for row in rows],
            "size": [row.size for row in rows],
            "offset": [row.offset for row in rows],
        }
        batches.append(pa.RecordBatch.from_pydict(columns, schema=_SCHEMA))
    table = pa.Table.from_batches(batches, schema=_SCHEMA)
    order = pc.sort_indices(
        table, sort_keys=[("key", "ascending"), ("offset", "ascending")]
    )
    number = pa.array(np.arange(len(table), dtype=np.int32))
    return _with_column(table.take(order), "number", number)


def _with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    at = _SCHEMA.get_field_index(name)
    return table.set_column(at, _SCHEMA.field(at), values)


def _restore(homes: Sequence[Container], rows: bytes) -> Listing:
    return Listing(homes, pa.ipc.open_stream(rows).read_all())


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
