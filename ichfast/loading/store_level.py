"""A level of a store, as a loader reads it: its slices, or the records of packed ones.

Shape letters: N slices of the store, H rows, W columns.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from ichfast.loading.config import source_shapes
from ichfast.store.store import Store


class Level(Protocol):
    """What a loader reads, slice by slice. Safe to share between threads."""

    store: Store
    """Open for reading; must outlive this object."""

    level: int
    """A level of the store."""

    shape_N2: npt.NDArray[np.int64]
    """Rows and columns of each slice."""

    def read_into(
        self, position: int, halvings: int, out_HW: npt.NDArray[np.uint16]
    ) -> None:
        """Read a slice.

        Args:
            position: store position.
            halvings: how often it is halved.
            out_HW: shape of the slice after that, uint16, C order; overwritten.

        Raises:
            StoreError: the slice is damaged, or its shard missing or cannot be read.
        """


class StoreLevel:
    """The slices of a level.

    Args:
        store: open for reading; must outlive this object.
        level: a level of the store.
        check: when a slice is compared with its checksum, a name of
            `loading.config.CHECKS`. A packed one always is.
    """

    def __init__(self, store: Store, level: int, check: str) -> None:
        self.store = store
        self.level = level
        self.shape_N2 = source_shapes(store, level)
        self._check = check
        self._is_due_N = bytearray([check != "never"]) * len(store)
        """Whether the next read of a slice compares it, a byte each."""

    def read_into(
        self, position: int, halvings: int, out_HW: npt.NDArray[np.uint16]
    ) -> None:
        """Read a slice, and compare it with its checksum if it is due.

        Args:
            position: store position.
            halvings: how often it is halved.
            out_HW: shape of the slice after that, uint16, C order; overwritten.

        Raises:
            StoreError: the slice is damaged, or its shard missing or cannot be read.
        """
        is_due = bool(self._is_due_N[position])
        self.store.read_into(
            position, self.level, out_HW, halvings=halvings, check=is_due
        )
        if self._check == "first":
            self._is_due_N[position] = False


class StoreRecords:
    """The records of a packed level: one of R bytes is a slice of 1 row, R / 2 columns.

    Args:
        level: a level of a packed store.
    """

    def __init__(self, level: StoreLevel) -> None:
        self.store = level.store
        self.level = level.level
        pixels_N = self.store.record_bytes_N(self.level) // 2
        self.shape_N2 = np.stack([np.ones_like(pixels_N), pixels_N], axis=1)

    def read_into(
        self,
        position: int,
        halvings: int,  # noqa: ARG002 - 0: a record is not halved
        out_HW: npt.NDArray[np.uint16],
    ) -> None:
        """Read a record, and compare it with its checksum.

        Args:
            position: store position.
            halvings: 0.
            out_HW: shape (1, R / 2), uint16, C order; overwritten.

        Raises:
            StoreError: the record is damaged, or its shard missing or cannot be read.
        """
        self.store.read_record_into(position, self.level, out_HW[0].view(np.uint8))
