"""Slices that come twice: found by digests of their ids, then by the ids themselves.

Shape letters: N rows, S suspects, R repeats.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from ichfast.prepare.rows import AllRows

_SAME = ("rows", "columns", "crc32c")
"""Columns in which two equal slices agree."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeats:
    """Rows whose slice id stands in a row before."""

    is_repeat_N: npt.NDArray[np.bool_]
    """Shape (N,): which rows they are."""

    entry_R: npt.NDArray[np.int64]
    """Shape (R,): the entries that they came from, in the order of rows."""

    original_entry_R: npt.NDArray[np.int64]
    """Shape (R,): the entry of the first row with the same slice id."""

    differs_R: npt.NDArray[np.bool_]
    """Shape (R,): whether their slice is another than that of the first row."""


def find_repeats(rows: AllRows) -> Repeats:
    """Find the rows whose slice id stands in a row before.

    Only rows that share a digest with another are looked at whole.

    Args:
        rows: none is left out.
    """
    is_suspect_N = _shares_digest(rows)
    suspects = _read(replace(rows, is_kept_N=is_suspect_N))
    # Codes count up in the order in which ids appear.
    ids = suspects["slice_id"].combine_chunks().dictionary_encode()
    code_S = ids.indices.to_numpy()
    _, first_of = np.unique(code_S, return_index=True)
    original_S = first_of[code_S]
    is_repeat_S = original_S != np.arange(len(suspects))
    original_R = original_S[is_repeat_S]
    differs_R = np.zeros(len(original_R), dtype=np.bool_)
    for column in _SAME:
        value_S = suspects[column].to_numpy()
        differs_R |= value_S[is_repeat_S] != value_S[original_R]
    entry_S = suspects["entry"].to_numpy()
    is_repeat_N = is_suspect_N.copy()
    is_repeat_N[is_suspect_N] = is_repeat_S
    return Repeats(
        is_repeat_N=is_repeat_N,
        entry_R=entry_S[is_repeat_S],
        original_entry_R=entry_S[original_R],
        differs_R=differs_R,
    )


def _shares_digest(rows: AllRows) -> npt.NDArray[np.bool_]:
    """Whether a row's slice id has the digest of another row's, shape (N,)."""
    digests = [
        pd.util.hash_array(
            table["slice_id"].to_numpy(zero_copy_only=False), categorize=False
        )
        for table in rows.tables(["slice_id"])
    ]
    digest_N = np.concatenate([np.empty(0, np.uint64), *digests])
    ordered_N = np.sort(digest_N)
    common = ordered_N[1:][ordered_N[1:] == ordered_N[:-1]]
    return np.isin(digest_N, common)


def _read(rows: AllRows) -> pa.Table:
    """What tells equal slices from others, of some rows."""
    names = ["slice_id", "entry", *_SAME]
    tables = rows.tables(names) if len(rows) else ()
    return pa.concat_tables([rows.schema(names).empty_table(), *tables])
