"""Joining labels to the rows of a store.

1. Labels are joined by slice id, hashed where the store's ids are hashed. A label fills
   the class of a row that has none; what it lacks stays as it is.
2. A label that contradicts the one in the store is an error, or, to relabel, replaces
   it. Then an `any` that the file does not know follows the subtypes. Every other `any`
   that is not the OR of the five subtypes is an error.
3. Labels of which none has a slice are a warning that tells what differs.

Shape letters: N rows, K classes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ichfast.errors import LabelError
from ichfast.labels import CLASSES, LabelTable, contradicts_any, with_any
from ichfast.prepare.pseudonyms import HASH_DIGITS, stored_id

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Labelled:
    """Rows with labels."""

    rows: pa.Table

    num_found: int
    """Rows whose id has labels in the file."""

    num_changed: int
    """Rows with a label that was replaced by another one."""


def add_labels(
    rows: pa.Table, labels: LabelTable, key: bytes | None, *, relabel: bool
) -> Labelled:
    """Give rows the labels of a file.

    Args:
        rows: slice_id and six label columns (int8, null without a label).
        labels: labels by slice id.
        key: of the store's hashed ids; None where ids are kept.
        relabel: whether labels of the rows that differ are replaced.

    Raises:
        LabelError: `labels` contradict those of a row, and `relabel` is false; or `any`
            is not the OR of the subtypes.
    """
    ids = pa.array([stored_id(key, slice_id) for slice_id in labels.ids], pa.string())
    found = pc.index_in(rows["slice_id"], ids)
    differs_N = np.zeros(len(rows), dtype=np.bool_)
    for k, name in enumerate(CLASSES):
        new = _label_column(labels.labels_NK[:, k]).take(found)
        differs = pc.fill_null(pc.not_equal(rows[name], new), fill_value=False)
        differs_N |= differs.to_numpy()
        rows = _with_labels(rows, name, pc.coalesce(new, rows[name]).combine_chunks())
    num_changed = int(differs_N.sum())
    if num_changed and not relabel:
        first = rows["slice_id"][int(differs_N.argmax())]
        raise LabelError(
            f"the labels contradict those in the store for {num_changed:,} slice(s), "
            f"first {first}; correct the file, or add --relabel to replace the store's"
        )
    has_any = _label_column(labels.labels_NK[:, 0]).take(found).is_valid()
    may_follow_N = ~has_any.to_numpy(zero_copy_only=False) & relabel
    rows = _with_any(rows, may_follow_N)
    return Labelled(rows, len(rows) - found.null_count, num_changed)


def count_labels(rows: pa.Table) -> dict[str, int]:
    """Count the rows with all six labels (``labelled``), and those with some.

    Args:
        rows: six label columns.
    """
    num_known_N = (~np.isnan(_labels_NK(rows))).sum(axis=1)
    is_complete_N = num_known_N == len(CLASSES)
    return {
        "labelled": int(is_complete_N.sum()),
        "partly_labelled": int(((num_known_N > 0) & ~is_complete_N).sum()),
    }


def _label_column(labels_N: npt.NDArray[np.float32]) -> pa.Array:
    return pa.array(labels_N, from_pandas=True).cast(pa.int8())  # NaN becomes null


def _labels_NK(rows: pa.Table) -> npt.NDArray[np.float32]:
    return np.column_stack([rows[n].cast(pa.float32()).to_numpy() for n in CLASSES])


def _with_labels(rows: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index(name), name, values)


def _with_any(rows: pa.Table, may_follow_N: npt.NDArray[np.bool_]) -> pa.Table:
    """Give the `any` that follows from labels of several files, and check it.

    Args:
        rows: with the labels of all files.
        may_follow_N: where `any` may be replaced by what the subtypes say.
    """
    labels_NK = with_any(_labels_NK(rows))
    labels_NK[contradicts_any(labels_NK) & may_follow_N, 0] = np.nan
    labels_NK = with_any(labels_NK)
    wrong_N = contradicts_any(labels_NK)
    if wrong_N.any():
        first = rows["slice_id"][int(wrong_N.argmax())]
        raise LabelError(
            "with the labels of the store, `any` is not the OR of the five subtypes "
            f"for {wrong_N.sum():,} slice(s), first {first}; correct the file"
        )
    return _with_labels(rows, CLASSES[0], _label_column(labels_NK[:, 0]))


_CHANGES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("they differ in upper and lower case", str.lower),
    (
        "the file's have a suffix that the store's have not",
        lambda text: re.sub(r"\.[A-Za-z]{3,4}$", "", text),
    ),
    (
        "the file's have the name of a folder in front",
        lambda text: re.sub(r"^.*[/\\]", "", text),
    ),
)
"""What may differ between ids, and a function that takes it away."""


def warn_of_strangers(rows: pa.Table, labels: LabelTable, key: bytes | None) -> None:
    """Warn that no label has a slice, and tell what differs.

    Args:
        rows: the store's; column slice_id.
        labels: labels by slice id, at least one.
        key: of the store's hashed ids; None where ids are kept.
    """
    log.warning(
        "none of the %s labels is of a slice of the store: the label file has ids such "
        "as %s, the store such as %s; %s",
        f"{len(labels.ids):,}",
        labels.ids[0],
        rows["slice_id"][0],
        _difference(set(rows["slice_id"].to_pylist()), labels, key),
    )


def _difference(stored: set[str], labels: LabelTable, key: bytes | None) -> str:
    if not stored.isdisjoint(labels.ids):
        return "the file's are hashed already; prepare needs those of the DICOM files"
    for problem, change in _CHANGES:
        there = {stored_id(key, change(each)) for each in labels.ids}
        here = stored if key else {change(each) for each in stored}
        if not here.isdisjoint(there):
            return f"{problem}; write them as in the DICOM files"
    if all(re.fullmatch(f"[0-9a-f]{{{HASH_DIGITS}}}", each) for each in labels.ids):
        return "the file's look like hashes; prepare needs those of the DICOM files"
    if key is not None:
        return "the store's are hashes; compare the file's with the SOPInstanceUIDs"
    return "check that the file is of these slices"
