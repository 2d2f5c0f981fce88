"""Finding the label of each row of a store, by the ids of a label file.

1. An id of a slice, series or study is compared as it is, hashed where the store's ids
   are hashed.
2. The number of a patient is compared in all its spellings: ``49`` and ``049`` in
   PhysioNet CT-ICH; in CQ500 ``CQ500-CT-7``, as in reads.csv, ``CQ500CT7``, as in the
   names of folders, small letters, and zeros in front. Each spelling is hashed where
   the store's ids are hashed.
3. Labels of a patient are of the patient's one study.
4. Slice numbers count the slices of the patient's one series, from 1. They are its
   instance numbers, which may also count from 0. Where these are other numbers, such as
   101 to 130, their order counts, if the file has as many slices. Otherwise the labels
   of this patient are left out with a warning.

Shape letters: N rows, L labels of the file.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ichfast.errors import LabelError
from ichfast.labels import LabelTable
from ichfast.prepare.pseudonyms import stored_id

log = logging.getLogger(__name__)

Ids = Sequence[str] | npt.NDArray[np.object_]
"""The ids of a label file, or some of them."""

ID_COLUMNS = {
    "slice": "slice_id",
    "series": "series",
    "study": "study",
    "patient": "patient",
    "slice number": "patient",
}
"""The column of a store in which ids of a level are looked for."""

NUMBER_WIDTHS = (1, 2, 3, 4)
"""Digits that the number of a patient may be filled up to with zeros."""

CQ500_PREFIXES = ("CQ500-CT-", "CQ500CT", "CQ500-CT", "CQ500_CT_", "CQ500CT-")


def find_labels(rows: pa.Table, labels: LabelTable, key: bytes | None) -> pa.Array:
    """Find the label of each row.

    Args:
        rows: ids and instance_number.
        labels: of any level.
        key: of the store's hashed ids; None where ids are kept.

    Returns:
        The position in `labels`, int32, shape (N,); null for a row without a label.

    Raises:
        LabelError: a patient has several studies, or several series for slice numbers.
    """
    column = rows[ID_COLUMNS[labels.level]]
    if labels.level in ("slice", "series", "study"):
        return _index_in(column, labels.ids, key)
    if labels.level == "patient":
        found = _find_spelled(column, labels.ids, key)
        _check_one(rows, found, "study", labels.ids)
        return found
    return _find_numbers(rows, labels, key)


def _index_in(column: pa.ChunkedArray, ids: Ids, key: bytes | None) -> pa.Array:
    stored = pa.array([stored_id(key, each) for each in ids], pa.string())
    if not pa.types.is_dictionary(column.type):
        return pc.index_in(column, stored)
    encoded = column.combine_chunks()
    return pc.index_in(encoded.dictionary, stored).take(encoded.indices)


def _find_spelled(column: pa.ChunkedArray, ids: Ids, key: bytes | None) -> pa.Array:
    """The position in `ids` for each row, by any spelling of an id."""
    spelled = [(text, owner) for owner, each in enumerate(ids) for text in _spell(each)]
    found = _index_in(column, [text for text, _ in spelled], key)
    return pa.array([owner for _, owner in spelled], pa.int32()).take(found)


def _spell(patient: str) -> list[str]:
    """All spellings of the id of a patient."""
    number = re.fullmatch(r"(cq500[-_ ]?ct[-_ ]?)?0*(\d+)", patient, re.IGNORECASE)
    if number is None:
        return [patient]
    prefixes: tuple[str, ...] = ("",)
    if number[1]:
        prefixes = (*CQ500_PREFIXES, *map(str.lower, CQ500_PREFIXES))
    numbers = {f"{int(number[2]):0{width}d}" for width in NUMBER_WIDTHS}
    return [prefix + each for prefix in prefixes for each in sorted(numbers)]


def _check_one(rows: pa.Table, found: pa.Array, part: str, ids: Ids) -> None:
    """Refuse labels of which one belongs to several studies, or series."""
    pairs = pa.table({"label": found, part: rows[part].combine_chunks()})
    pairs = pairs.filter(found.is_valid()).group_by(["label", part]).aggregate([])
    label_P, counts = np.unique(pairs["label"].to_numpy(), return_counts=True)
    several = label_P[counts > 1]
    if several.size:
        raise LabelError(
            f"{several.size:,} labelled patient(s) have more than one {part}, first "
            f"{ids[several[0]]}, and the file does not tell which one it means; give "
            f"labels with the {'Study' if part == 'study' else 'Series'}InstanceUID"
        )


def _find_numbers(rows: pa.Table, labels: LabelTable, key: bytes | None) -> pa.Array:
    """The position in `labels` for each row, by patient and slice number."""
    parts = [each.rpartition("/") for each in labels.ids]
    number_L = [int(number) for _, _, number in parts]
    patients = sorted({name for name, _, _ in parts})
    number_of = {name: number for number, name in enumerate(patients)}
    patient_L = np.array([number_of[name] for name, _, _ in parts])
    found = _find_spelled(rows["patient"], patients, key)
    _check_one(rows, found, "series", patients)
    patient_N = found.fill_null(-1).to_numpy()
    instance_N = rows["instance_number"].to_numpy()
    label_N = np.full(len(rows), -1, dtype=np.int32)
    unclear = []
    for patient in np.unique(patient_N[patient_N >= 0]):
        rows_M = np.flatnonzero(patient_N == patient)
        label_of = {number_L[at]: at for at in np.flatnonzero(patient_L == patient)}
        numbers_M = _slice_numbers(instance_N[rows_M], sorted(label_of))
        if numbers_M is None:
            unclear.append(
                f"{patients[patient]} with {len(rows_M)} slices in the store and "
                f"{len(label_of)} in the file"
            )
        else:
            label_N[rows_M] = [label_of.get(int(number), -1) for number in numbers_M]
    if unclear:
        log.warning(
            "the slice numbers of %s patient(s) do not tell their slices, so their "
            "labels are left out, first %s",
            f"{len(unclear):,}",
            unclear[0],
        )
    return pa.array(label_N, mask=label_N < 0)


def _slice_numbers(
    instance_M: npt.NDArray[np.int64], numbers: Sequence[int]
) -> npt.NDArray[np.int64] | None:
    """The slice number of each slice of a series; None if they cannot be told.

    Args:
        instance_M: instance numbers, shape (M,).
        numbers: those in the label file, sorted.
    """
    if len(np.unique(instance_M)) < len(instance_M):
        return None
    number_M = instance_M + (instance_M.min() == 0)
    if set(number_M) <= set(numbers) or set(numbers) <= set(number_M):
        return number_M
    if len(number_M) == len(numbers):
        rank_M = instance_M.argsort().argsort()
        return np.array(numbers, dtype=np.int64)[rank_M]
    return None
