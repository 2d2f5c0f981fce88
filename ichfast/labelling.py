"""Labels joined to rows by slice id.

Shape letters: N rows, L labelled slices, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from ichfast.errors import LabelError
from ichfast.labels import CLASSES, LabelTable
from ichfast.prepare.pseudonyms import stored_id
from ichfast.sharedtexts import replaced


@dataclass(frozen=True, slots=True)
class Labelling:
    """Labels by the slice ids of a store."""

    slice_ids: pd.Index[Any]
    """L texts. It is hashed once for all rows that are looked up, part after part."""

    labels_LK: npt.NDArray[np.uint8]
    """Shape (L, 6), 0 or 1, classes in `CLASSES` order."""

    @staticmethod
    def of(labels: LabelTable, key: bytes | None) -> Labelling:
        """The labels for a store whose slice ids were hashed with `key`, or kept."""
        ids = [stored_id(key, slice_id) for slice_id in labels.slice_ids]
        return Labelling(pd.Index(ids, dtype=object), labels.labels_NK)

    def add(self, rows: pa.Table) -> tuple[pa.Table, int]:
        """Label those rows that have no labels.

        Args:
            rows: slice_id and six label columns, which may be null.

        Returns:
            The rows, and of how many the labels speak.

        Raises:
            LabelError: they say something else of a row that has labels.
        """
        slice_ids = rows["slice_id"].to_numpy(zero_copy_only=False)
        found_N = self.slice_ids.get_indexer(pd.Index(slice_ids, dtype=object))
        is_named_N = found_N >= 0
        old_NK = np.column_stack([rows[name].to_numpy() for name in CLASSES])
        new_NK = old_NK.copy()
        new_NK[is_named_N] = self.labels_LK[found_N[is_named_N]]
        was_labelled_N = ~np.isnan(old_NK[:, 0])
        differs_N = was_labelled_N & (new_NK != old_NK).any(axis=1)
        if differs_N.any():
            first = rows["slice_id"][int(differs_N.argmax())]
            raise LabelError(
                f"the labels contradict those in the store for {differs_N.sum():,} "
                f"slice(s), first {first}; correct the csv, or prepare a new store"
            )
        is_null_N = np.isnan(new_NK[:, 0])
        value_NK = np.nan_to_num(new_NK).astype(np.int8)
        for k, name in enumerate(CLASSES):
            rows = replaced(rows, name, pa.array(value_NK[:, k], mask=is_null_N))
        return rows, int(is_named_N.sum())
