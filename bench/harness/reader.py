"""Reads slices of a store as the loader does: ahead, into a ring of batches."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ichfast.loading.prefetch import ReadAhead, SliceRequest, batches_ahead
from ichfast.loading.store_level import StoreLevel
from ichfast.store.store import Store


class SliceReader:
    """The reading part of a loader. Close it after use.

    Args:
        store: Open for reading; must outlive this object.
        level: A level of the store.
        picked_N: Store positions of the slices, in the order of reading.
        batch_size: Slices in a batch.
    """

    def __init__(
        self, store: Store, level: int, picked_N: npt.NDArray[np.int64], batch_size: int
    ) -> None:
        self.level = level
        self.batch_size = batch_size
        self.num_ahead = batches_ahead(batch_size)
        self._picked_N = picked_N
        store_level = StoreLevel(store, level, "first")
        self.slice_shape = tuple(store_level.shape_N2[picked_N[0]].tolist())
        self._reading = ReadAhead(store_level, pinned=False)

    def read(self) -> int:
        """Read every slice, a batch at a time."""
        batches = [
            self._picked_N[first : first + self.batch_size]
            for first in range(0, len(self._picked_N), self.batch_size)
        ]
        for batch in batches[: self.num_ahead]:
            self._reading.request([SliceRequest.unhalved(batch)])
        for number in range(len(batches)):
            for batch in batches[number + self.num_ahead :][:1]:
                self._reading.request([SliceRequest.unhalved(batch)])
            self._reading.take()
            self._reading.release()
        return len(self._picked_N)

    def close(self) -> None:
        """End the threads and free the memory."""
        self._reading.close()
