"""The files that sources hold, as one sorted Arrow table.

A competition's set has 752,803 files. As objects with a path each they would take
1 GB of the process that hands out the work; as a table they take 80 MB. An `Entry` is
made when it is asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ichfast.sources.dicomweb import WebStudy
from ichfast.sources.places import Place
from ichfast.sources.remote import Container
from ichfast.sources.walk import Found, place_of

BATCH_ROWS = 1024
"""Rows that are turned into Python objects at a time."""

_ORDER = ("source", "key", "offset", "file")
"""Sort columns, ascending. Arrow compares texts by code point."""

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

    container: Place
    """The file or instance itself, or the archive that holds it."""

    member: str
    """Name inside the archive; empty for a plain file."""

    key: str
    """Name for sorting and for ``rejected.csv``: posix, relative to the source,
    ``archive.tar.xz/member`` inside an archive. Control characters escaped."""

    size: int
    """Bytes, unpacked; 0 on a DICOMweb server, which does not tell."""

    offset: int = -1
    """Where the member begins in the (unpacked) archive, bytes; -1 for a file."""

    number: int = 0
    """Its place among the entries of its source."""

    @property
    def archive(self) -> Container | None:
        """The archive that holds it; None for a plain file."""
        if isinstance(self.container, WebStudy) or self.offset < 0:
            return None
        return self.container


class Listing(Sequence[Entry]):
    """Entries in order. A slice shares its memory; it pickles as its own rows.

    Args:
        homes: what the column ``home`` counts.
        table: of the schema of this module.
    """

    def __init__(self, homes: Sequence[Place], table: pa.Table) -> None:
        self._homes = homes
        self._table = table

    @staticmethod
    def of(found: Iterable[Iterable[Found]]) -> Listing:
        """Sort files.

        Args:
            found: for each source, its files, in any order.

        Returns:
            Sorted by source, then key, in code point order, then offset.
        """
        homes: dict[Place, int] = {}
        table = pa.Table.from_batches(_batches_of(found, homes), _SCHEMA)
        order = [(name, "ascending") for name in _ORDER]
        table = table.take(pc.sort_indices(table, sort_keys=order))
        pa.default_memory_pool().release_unused()
        source_E = table["source"].to_numpy()
        number_E = np.arange(len(table)) - np.searchsorted(source_E, source_E)
        return Listing(list(homes), _with_column(table, "number", number_E))

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return pc.sum(self._table["size"]).as_py() or 0

    def __len__(self) -> int:
        return len(self._table)

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
        return Listing(self._homes, self._table.slice(start, max(0, stop - start)))

    def __reduce__(self) -> tuple[object, ...]:
        used = pc.unique(self._table["home"])
        home_E = pc.index_in(self._table["home"], used)
        stream = pa.BufferOutputStream()
        with pa.ipc.new_stream(stream, _SCHEMA) as writer:
            writer.write_table(_with_column(self._table, "home", home_E))
        homes = [self._homes[home] for home in used.to_pylist()]
        return _restore, (homes, stream.getvalue().to_pybytes())

    def select(self, is_wanted_E: npt.NDArray[np.bool_]) -> Listing:
        """The entries for which a mask of shape (len(self),) is True."""
        return Listing(self._homes, self._table.filter(pa.array(is_wanted_E)))

    def take(self, index_E: Sequence[int]) -> Listing:
        """The entries at some indices, in the order of the indices."""
        return Listing(self._homes, self._table.take(pa.array(index_E, pa.int64())))

    def absolute(self) -> Listing:
        """The same entries, with paths that are good in any folder."""
        homes = [h.absolute() if isinstance(h, Path) else h for h in self._homes]
        return Listing(homes, self._table)

    def columns(self, *names: str) -> Iterator[tuple[Any, ...]]:
        """Some columns, row by row."""
        for batch in self._table.select(names).to_batches(BATCH_ROWS):
            yield from zip(*map(_values, batch.columns), strict=True)

    def places(self) -> Iterator[str]:
        """Where each file or archive lies, in the form of `place_of`."""
        homes = [place_of(home) for home in self._homes]
        for home, file in self.columns("home", "file"):
            yield f"{homes[home].rstrip('/')}/{file}" if file else homes[home]


def _batches_of(
    found: Iterable[Iterable[Found]], homes: dict[Place, int]
) -> Iterator[pa.RecordBatch]:
    """The rows of all sources, without numbers; new homes are added to `homes`."""
    left = ((source, row) for source, files in enumerate(found) for row in files)
    while rows := list(itertools.islice(left, BATCH_ROWS)):
        columns = {
            "source": [source for source, _ in rows],
            "number": [0] * len(rows),
            "home": [homes.setdefault(row.home, len(homes)) for _, row in rows],
            "file": [_bytes(row.file) for _, row in rows],
            "member": [_bytes(row.member) for _, row in rows],
            "key": [row.key for _, row in rows],
            "size": [row.size for _, row in rows],
            "offset": [row.offset for _, row in rows],
        }
        yield pa.RecordBatch.from_pydict(columns, schema=_SCHEMA)


def _with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    at = _SCHEMA.get_field_index(name)
    if isinstance(values, np.ndarray):
        values = pa.array(values, _SCHEMA.field(at).type)
    return table.set_column(at, _SCHEMA.field(at), values)


def _restore(homes: Sequence[Place], rows: bytes) -> Listing:
    return Listing(homes, pa.ipc.open_stream(rows).read_all())


def _values(column: pa.Array) -> list[Any]:
    values = column.to_pylist()
    return [*map(_text, values)] if pa.types.is_binary(column.type) else values


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogatepass")
