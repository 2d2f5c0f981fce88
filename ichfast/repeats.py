"""Slices that come twice: found by digests of their ids, then by the ids themselves.

Shape letters: N rows, S suspects, R repeats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from ichfast.allrows import AllRows

_SAME = ("rows", "columns", "crc32c")
"""Columns in which two equal slices agree."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeats:
    """Rows whose slice id stands in a row before."""

    row_R: npt.NDArray[np.int64]
    """Shape (R,), ascending: their numbers."""

    entry_R: npt.NDArray[np.int64]
    """Shape (R,): the entries that they came from."""

    original_entry_R: npt.NDArray[np.int64]
    """Shape (R,): the entry of the first row with the same slice id."""

    differs_R: npt.NDArray[np.bool_]
    """Shape (R,): whether their slice is another than that of the first row."""


def find_repeats(rows: AllRows) -> Repeats:
    """Find the rows whose slice id stands in a row before.

    Only rows that share a digest with another are looked at whole.
    """
    suspect_S = _suspects(rows)
    suspects = _rows_at(rows, suspect_S)
    # Codes count up in the order in which ids appear.
    ids = suspects["slice_id"].combine_chunks().dictionary_encode()
    code_S = ids.indices.to_numpy()
    _, first_of = np.unique(code_S, return_index=True)
    original_S = first_of[code_S]
    repeat_R = np.flatnonzero(original_S != np.arange(len(suspects)))
    original_R = original_S[repeat_R]
    differs_R = np.zeros(len(repeat_R), dtype=np.bool_)
    for column in _SAME:
        value_S = suspects[column].to_numpy()
        differs_R |= value_S[repeat_R] != value_S[original_R]
    entry_S = suspects["entry"].to_numpy()
    return Repeats(
        row_R=suspect_S[repeat_R],
        entry_R=entry_S[repeat_R],
        original_entry_R=entry_S[original_R],
        differs_R=differs_R,
    )


def _suspects(rows: AllRows) -> npt.NDArray[np.int64]:
    """The rows whose slice id has the digest of another row's, shape (S,)."""
    digests = [
        pd.util.hash_array(
            table["slice_id"].to_numpy(zero_copy_only=False), categorize=False
        )
        for table in rows.tables(["slice_id"])
    ]
    digest_N = np.concatenate([np.empty(0, np.uint64), *digests])
    ordered_N = np.sort(digest_N)
    common = ordered_N[1:][ordered_N[1:] == ordered_N[:-1]]
    return np.flatnonzero(np.isin(digest_N, common))


def _rows_at(rows: AllRows, row_S: npt.NDArray[np.int64]) -> pa.Table:
    """What tells equal slices from others, of some rows; their numbers ascend."""
    names = ["slice_id", "entry", *_SAME]
    found = [rows.schema(names).empty_table()]
    if len(row_S):
        first = 0
        for table in rows.tables(names):
            start, stop = np.searchsorted(row_S, [first, first + len(table)])
            found.append(table.take(pa.array(row_S[start:stop] - first)))
            first += len(table)
    return pa.concat_tables(found)
