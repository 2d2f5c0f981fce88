"""Joining labels to the rows of a store.

1. Labels of slices are joined by slice id, those of series and studies by the id of
   these, and those of patients to the patient's study (`ichfast.prepare.label_ids`).
   A label fills the class of a row that has none; what it lacks stays as it is.
2. Labels of a series or study are in all its rows, in columns of their own. Extra
   classes are in columns ``extra_fracture``, or ``extra_study_fracture``.
3. A label that contradicts the one in the store is an error, or, to relabel, replaces
   it. Then an `any` that the file does not know follows the subtypes. Every other `any`
   that is not the OR of the five subtypes is an error, except in CQ500, where readers
   may agree on a bleed and not on its type.
4. A series or study with label 0 has no slice with label 1, and one with label 1 has
   not only slices with label 0. Otherwise it is an error, or, to relabel slices, the
   label of the series and study follows them.
5. Labels of which none is in the store are a warning that tells what differs.

Shape letters: N rows, L labels of the file, K classes, B bags (series or studies).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ichfast.errors import LabelError
from ichfast.labels import (
    CLASSES,
    NUM_SHOWN,
    LabelTable,
    contradicts_any,
    with_any,
)
from ichfast.prepare.label_ids import ID_COLUMNS, find_labels
from ichfast.prepare.pseudonyms import HASH_DIGITS, stored_id
from ichfast.store.tables import BAG_LABELS, EXTRA_PREFIX, label_columns

log = logging.getLogger(__name__)

BAG_OF_LEVEL = {"series": "series", "study": "study", "patient": "study"}
"""What the labels of a level are of, if not of slices."""

_FINEST_FIRST = ("slice", "series", "study")
"""Kinds of labels. Each is checked against those before it."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Rows with labels."""

    rows: pa.Table

    num_found: int
    """Labels of the file that are of something in the store."""

    num_changed: int
    """Rows with a label that was replaced by another one."""


def add_labels(
    rows: pa.Table, labels: LabelTable, key: bytes | None, *, relabel: bool
) -> Labelled:
    """Give rows the labels of a file.

    Args:
        rows: ids, instance_number and label columns (int8, null without a label).
        labels: of any level.
        key: of the store's hashed ids; None where ids are kept.
        relabel: whether labels of the rows that differ are replaced.

    Raises:
        LabelError: `labels` contradict those of a row, and `relabel` is false; `any` is
            not the OR of the subtypes; labels of a series or study contradict those of
            its slices; or the file does not tell which study or series of a patient
            its labels are of.
    """
    found = find_labels(rows, labels, key)
    kind = BAG_OF_LEVEL.get(labels.level, "slice")
    rows, differs_N = _filled(rows, labels, found, kind)
    label_N = found.fill_null(-1).to_numpy()
    if differs_N.any() and not relabel:
        different = np.unique(label_N[differs_N])
        raise LabelError(
            f"the labels contradict those in the store for {len(different):,} "
            f"{kind}(s), first {', '.join(labels.ids[different[:NUM_SHOWN]])}; correct "
            "the file, or add --relabel to replace the store's"
        )
    has_any = _label_column(labels.labels_NK[:, 0]).take(found).is_valid()
    may_follow_N = ~has_any.to_numpy(zero_copy_only=False) & relabel
    is_checked = labels.level != "patient"
    rows = _with_any(rows, _names(kind), may_follow_N, is_checked=is_checked)
    id_N = np.append(labels.ids, "")[label_N]
    rows = _consistent(rows, kind, id_N, relabel=relabel)
    num_found = len(rows) - found.null_count
    if kind != "slice":  # a label has many rows
        num_found = len(np.unique(label_N[label_N >= 0]))
    return Labelled(rows, num_found, int(differs_N.sum()))


def _filled(
    rows: pa.Table, labels: LabelTable, found: pa.Array, kind: str
) -> tuple[pa.Table, npt.NDArray[np.bool_]]:
    """Rows with the labels of a file, and which rows had another one, shape (N,).

    Args:
        rows: with the labels before.
        labels: of any level.
        found: the label of each row; null without one.
        kind: what the labels are of: slice, series or study.
    """
    values = dict(zip(_names(kind), labels.labels_NK.T, strict=True))
    prefix = EXTRA_PREFIX if kind == "slice" else f"{EXTRA_PREFIX}{kind}_"
    values |= {f"{prefix}{name}": extra_N for name, extra_N in labels.extra.items()}
    differs_N = np.zeros(len(rows), dtype=np.bool_)
    for name, values_L in values.items():
        if name not in rows.column_names:
            rows = rows.append_column(name, pa.nulls(len(rows), pa.int8()))
        new = _label_column(values_L).take(found)
        differs = pc.fill_null(pc.not_equal(rows[name], new), fill_value=False)
        differs_N |= differs.to_numpy()
        rows = _with_labels(rows, name, pc.coalesce(new, rows[name]).combine_chunks())
    return rows, differs_N


def spread_labels(rows: pa.Table) -> pa.Table:
    """Give new slices the labels that their series and study have.

    Args:
        rows: label columns, and series and study; labels of a bag may be null in some
            of its rows.
    """
    for name in label_columns(rows):
        bag = _bag_of(name)
        if not bag or rows[name].null_count in (0, len(rows)):
            continue
        code_N, value_N = _codes_N(rows, bag), _values_N(rows, name)
        value_B = np.full(int(code_N.max()) + 1, -1, dtype=np.int8)
        value_B[code_N[value_N >= 0]] = value_N[value_N >= 0]
        spread_N = value_B[code_N]
        rows = _with_labels(rows, name, pa.array(spread_N, mask=spread_N < 0))
    return rows


def _bag_of(name: str) -> str:
    """What a label column is of: series, study, or empty for slices."""
    kind = name.removeprefix(EXTRA_PREFIX).partition("_")[0]
    return kind if kind in BAG_LABELS else ""


def count_labels(rows: pa.Table) -> dict[str, int]:
    """Count the rows with all six labels (``labelled``), and those with some.

    Args:
        rows: six label columns.
    """
    num_known_N = (~np.isnan(_labels_NK(rows, CLASSES))).sum(axis=1)
    is_complete_N = num_known_N == len(CLASSES)
    return {
        "labelled": int(is_complete_N.sum()),
        "partly_labelled": int(((num_known_N > 0) & ~is_complete_N).sum()),
    }


def count_values(rows: pa.Table) -> tuple[dict[str, int], dict[str, int]]:
    """Count the known labels of each column, and the positive ones among them.

    Args:
        rows: label columns, and series and study.

    Returns:
        Both by column, for columns with a label. Labels of series and studies count
            once for each.
    """
    first_of: dict[str, npt.NDArray[np.int64]] = {}
    known: dict[str, int] = {}
    positives: dict[str, int] = {}
    for name in label_columns(rows):
        column = rows[name]
        bag = _bag_of(name)
        if column.null_count == len(rows):
            continue
        if bag:
            if bag not in first_of:
                first_of[bag] = np.unique(_codes_N(rows, bag), return_index=True)[1]
            column = column.take(pa.array(first_of[bag]))
        known[name] = len(column) - column.null_count
        positives[name] = pc.sum(column).as_py()
    return known, positives


def _names(kind: str) -> Sequence[str]:
    """The label columns of a slice, series or study, in `CLASSES` order."""
    return CLASSES if kind == "slice" else BAG_LABELS[kind]


def _label_column(labels_N: npt.NDArray[np.float32]) -> pa.Array:
    return pa.array(labels_N, from_pandas=True).cast(pa.int8())  # NaN becomes null


def _labels_NK(rows: pa.Table, names: Sequence[str]) -> npt.NDArray[np.float32]:
    return np.column_stack([rows[n].cast(pa.float32()).to_numpy() for n in names])


def _with_labels(rows: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index(name), name, values)


def _codes_N(rows: pa.Table, bag: str) -> npt.NDArray[np.int32]:
    """The number of the series or study of each row, shape (N,)."""
    column = rows[bag].combine_chunks()
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    codes: npt.NDArray[np.int32] = column.indices.to_numpy()
    return codes


def _with_any(
    rows: pa.Table,
    names: Sequence[str],
    may_follow_N: npt.NDArray[np.bool_],
    *,
    is_checked: bool,
) -> pa.Table:
    """Give the `any` that follows from labels of several files, and check it.

    Args:
        rows: with the labels of all files.
        names: six label columns.
        may_follow_N: where `any` may be replaced by what the subtypes say.
        is_checked: whether `any` must be the OR of the subtypes.
    """
    labels_NK = with_any(_labels_NK(rows, names))
    if is_checked:
        labels_NK[contradicts_any(labels_NK) & may_follow_N, 0] = np.nan
        labels_NK = with_any(labels_NK)
        wrong_N = contradicts_any(labels_NK)
        if wrong_N.any():
            first = rows["slice_id"][int(wrong_N.argmax())]
            raise LabelError(
                "with the labels of the store, `any` is not the OR of the five "
                f"subtypes for {wrong_N.sum():,} slice(s), first {first}; correct the "
                "file"
            )
    return _with_labels(rows, names[0], _label_column(labels_NK[:, 0]))


def _consistent(
    rows: pa.Table, kind: str, id_N: npt.NDArray[np.object_], *, relabel: bool
) -> pa.Table:
    """Check labels of series and studies against those of their parts.

    Args:
        rows: with the labels of all files.
        kind: what the labels of this file are of: slice, series or study.
        id_N: the id in this file of each row; empty without one.
        relabel: whether labels of larger things than `kind` follow their parts.
    """
    for whole in _FINEST_FIRST[1:]:
        if all(rows[name].null_count == len(rows) for name in _names(whole)):
            continue
        code_N = _codes_N(rows, whole)
        for part in _FINEST_FIRST[: _FINEST_FIRST.index(whole)]:
            for k, name in enumerate(_names(whole)):
                value_N = _values_N(rows, name)
                right_N = _following(value_N, _values_N(rows, _names(part)[k]), code_N)
                wrong_N = right_N != value_N
                if not wrong_N.any():
                    continue
                if not relabel or kind == whole:
                    value = value_N[wrong_N][0]
                    wrong = np.flatnonzero(wrong_N & (value_N == value))
                    firsts = wrong[np.unique(code_N[wrong], return_index=True)[1]]
                    ids = id_N if whole == kind else rows[whole].to_numpy()
                    what = f"{CLASSES[k]} is {value}, and {1 - value} for"
                    raise LabelError(
                        f"{len(firsts):,} label(s) of a {whole} contradict those of "
                        f"its {part.removesuffix('s')}s: {what} "
                        f"{'all' if value else 'one'} of them, first "
                        f"{', '.join(ids[firsts[:NUM_SHOWN]])}; correct the file"
                    )
                rows = _with_labels(rows, name, pa.array(right_N, mask=right_N < 0))
    return rows


def _values_N(rows: pa.Table, name: str) -> npt.NDArray[np.int8]:
    values: npt.NDArray[np.int8] = rows[name].fill_null(-1).to_numpy()
    return values


def _following(
    whole_N: npt.NDArray[np.int8],
    part_N: npt.NDArray[np.int8],
    code_N: npt.NDArray[np.int32],
) -> npt.NDArray[np.int8]:
    """Labels of bags that agree with those of their parts; others as they are.

    Args:
        whole_N: of the bag, 0, 1 or -1 (missing), shape (N,).
        part_N: of the slice or series, the same.
        code_N: number of the bag, shape (N,).
    """
    num_bags = int(code_N.max(initial=-1)) + 1
    has_one_B, all_zero_B = np.zeros(num_bags, bool), np.ones(num_bags, bool)
    has_one_B[code_N[part_N == 1]] = True
    all_zero_B[code_N[part_N != 0]] = False
    following_N = whole_N.copy()
    following_N[(whole_N == 0) & has_one_B[code_N]] = 1
    following_N[(whole_N == 1) & all_zero_B[code_N]] = 0
    return following_N


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
    """Warn that no label is of anything in the store, and tell what differs.

    Args:
        rows: the store's; the id columns.
        labels: of any level, at least one.
        key: of the store's hashed ids; None where ids are kept.
    """
    column, ids = ID_COLUMNS[labels.level], list(labels.ids)
    if labels.level == "slice number":
        ids = [each.rpartition("/")[0] for each in ids]
    stored = rows[column].unique().to_pylist()
    log.warning(
        "none of the %s labels is of a %s of the store: the label file has ids such "
        "as %s, the store such as %s; %s",
        f"{len(ids):,}",
        column.removesuffix("_id"),
        ids[0],
        stored[0] or "(empty)",
        _difference(set(stored), ids, key, _ELEMENTS[column]),
    )


_ELEMENTS = {
    "slice_id": "SOPInstanceUIDs",
    "series": "SeriesInstanceUIDs",
    "study": "StudyInstanceUIDs",
    "patient": "PatientIDs",
}


def _difference(
    stored: set[str], ids: Sequence[str], key: bytes | None, element: str
) -> str:
    if not stored.isdisjoint(ids):
        return "the file's are hashed already; prepare needs those of the DICOM files"
    for problem, change in _CHANGES:
        there = {stored_id(key, change(each)) for each in ids}
        here = stored if key else {change(each) for each in stored}
        if not here.isdisjoint(there):
            return f"{problem}; write them as in the DICOM files"
    if all(re.fullmatch(f"[0-9a-f]{{{HASH_DIGITS}}}", each) for each in ids):
        return "the file's look like hashes; prepare needs those of the DICOM files"
    if key is not None:
        return f"the store's are hashes; compare the file's with the {element}"
    return "check that the file is of these slices"
