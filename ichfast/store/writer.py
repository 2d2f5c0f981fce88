"""Writing the shards of one unit: all files complete, or none at all.

Slices go straight to the files, so memory does not grow with the unit. Only the files
of the last shape are open, because a unit may have hundreds of shapes.

Shape letters: H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from ichfast.store.levels import SOURCE_LEVEL, level_folder, reduce_to_level
from ichfast.store.packed_shards import PackedWriter
from ichfast.store.raw_shards import RawWriter
from ichfast.store.shards import Shard, shard_name, shard_path
from ichfast.system.files import atomic_path, make_folder


class UnitWriter:
    """Writes the slices of one unit, one after the other. Use it as a context manager.

    At the end of the block the files are completed, flushed to the disk and renamed.
    If the block raises, they are removed.

    Args:
        store: the store's folder.
        unit: the unit's number.
        levels: the store's, the source level first.
        packed: whether slices are packed.
    """

    def __init__(
        self, store: Path, unit: int, levels: Sequence[int], *, packed: bool = False
    ) -> None:
        self.shards: list[Shard] = []
        """The shards by name; empty until the block has ended."""
        self._store = store
        self._unit = unit
        self._levels = levels
        self._packed = packed
        self._stack = ExitStack()
        self._begun: dict[tuple[int, ...], _Begun] = {}
        self._last: _Begun | None = None
        for level in levels:
            make_folder(store / level_folder(level))

    def add(self, stored_HW: npt.NDArray[np.uint16]) -> tuple[str, int, dict[int, int]]:
        """Append one slice.

        Args:
            stored_HW: shape (H, W), uint16, HU + `HU_OFFSET`. Not changed.

        Returns:
            Its shard's name, its row in the shard, and its checksum at each level.
        """
        begun = self._begun.get(stored_HW.shape) or self._begin(stored_HW.shape)
        if begun is not self._last:
            self._close_last()
            self._last = begun
        row = begun.count
        sums = {}
        for level, file in begun.files.items():
            is_source = level == SOURCE_LEVEL
            sums[level] = file.append(
                stored_HW if is_source else reduce_to_level(stored_HW, level)
            )
        return begun.name, row, sums

    def __enter__(self) -> UnitWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            shards = [self._complete(*each) for each in self._begun.items()]
        self.shards = sorted(shards, key=lambda shard: shard.name)

    def _begin(self, shape_HW: tuple[int, ...]) -> _Begun:
        rows, columns = shape_HW
        name = shard_name(self._unit, rows, columns, packed=self._packed)
        files: dict[int, RawWriter | PackedWriter] = {}
        make = PackedWriter if self._packed else RawWriter
        for level in self._levels:
            path = shard_path(self._store, name, level)
            shape = shape_HW if level == SOURCE_LEVEL else (level, level)
            files[level] = make(self._stack.enter_context(atomic_path(path)), shape)
            # Runs before the file is flushed and renamed, or removed.
            self._stack.callback(files[level].close)
        self._begun[shape_HW] = _Begun(name, files)
        return self._begun[shape_HW]

    def _complete(self, shape_HW: tuple[int, ...], begun: _Begun) -> Shard:
        """Complete the files of a shard."""
        rows, columns = shape_HW
        crc32c = {level: file.complete() for level, file in begun.files.items()}
        sizes = {level: file.path.stat().st_size for level, file in begun.files.items()}
        return Shard(
            name=begun.name,
            rows=rows,
            columns=columns,
            count=begun.count,
            crc32c=crc32c,
            packed_bytes=sizes if self._packed else None,
        )

    def _close_last(self) -> None:
        if self._last is not None:
            for file in self._last.files.values():
                file.close()


@dataclass(frozen=True, slots=True)
class _Begun:
    """A shard that is being written."""

    name: str
    files: Mapping[int, RawWriter | PackedWriter]
    """Its file at each level."""

    @property
    def count(self) -> int:
        """Slices written so far."""
        return len(self.files[SOURCE_LEVEL].row_crc32c)
