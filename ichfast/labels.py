"""Label files as arrays in one fixed class order.

A file is recognized by its columns (`FORMS`); docs/labels.md shows an example of each
form. Names of columns are compared without case, spaces and punctuation, and
`CLASS_NAMES` lists what a class may be called. Ids count without a suffix ``.dcm``.

Promises:

1. A value is 0 or 1 (also 0.0, 1.0, true, false), or missing (empty, nan, na, null).
   A class without a column is missing for all. A row without any label is dropped.
2. A missing `any` is the OR of the five subtypes where all five are known. Where only
   some are known it stays missing: a table with positives alone would mislead.
3. Rows that repeat others count once, and their number is reported.
4. A column of another name whose values are all 0, 1 or missing is an extra class, such
   as a fracture. Other columns are left out.
5. Values other than these, unknown classes, rows that contradict each other, an `any`
   that is not the OR, and rows that are missing in the long form are errors that name
   the first offenders. Nothing is guessed.

Shape letters: N ids, K classes, R rows of the file, Q readers, V columns of labels (the
six classes and the extra ones), C cells (a label of an id).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ichfast.errors import LabelError, first_line
from ichfast.system.text_table import (
    MAX_NAME_SHOWN,
    NOT_A_TABLE,
    column_key,
    open_text_table,
    shown_names,
)

CLASSES = (
    "any",
    "epidural",
    "intraparenchymal",
    "intraventricular",
    "subarachnoid",
    "subdural",
)
"""The six classes, in the order of every array with a K axis."""

ABBREVIATIONS = ("ich", "edh", "iph", "ivh", "sah", "sdh")
"""Short names of the classes, in `CLASSES` order."""

CLASS_NAMES = MappingProxyType(
    {
        **{name: name for name in CLASSES},
        **dict(zip(ABBREVIATIONS, CLASSES, strict=True)),
    }
)
"""The class for each name that it may have in a file."""

SLICE_IDS = ("sliceid", "sopinstanceuid", "id", "imageid", "image", "filename")
"""Keys of columns with a slice id; the first that is there counts."""

READERS = ("r1", "r2", "r3")
"""The readers of CQ500, by the start of their columns."""

VALUES: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(("0", "0.0", "false"), 0),
        **dict.fromkeys(("1", "1.0", "true"), 1),
        **dict.fromkeys(("", "nan", "na", "null"), -1),
    }
)
"""The label for each text of a cell; -1 is a missing one."""

MAX_EXTRA = 32
"""Upper limit of the extra classes of a file; more columns are left out."""

NO_EXTRA = re.compile(r"fold|(unnamed|series|study).*|.*(id|uid|number|name|index)")
"""Keys of columns that are no extra class although their values may all be 0 and 1."""

MAX_SPELLINGS = 64
"""Upper limit of the distinct texts in a column of 0 and 1."""

NUM_SHOWN = 3
"""Number of offenders that an error names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelTable:
    """The labels of a file."""

    ids: npt.NDArray[np.object_]
    """Shape (N,), each id once, in the file's order."""

    labels_NK: npt.NDArray[np.float32]
    """Shape (N, 6), 0, 1 or NaN (missing), classes in `CLASSES` order. Some label of
    each id is known. It is float32, as `Store.labels_NK` is, because NaN cannot be
    taken for a label by mistake, as -1 could."""

    num_duplicates: int
    """Rows dropped because they repeat an earlier row."""

    extra: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """Labels of other classes by name, such as ``fracture``, each of shape (N,)."""

    level: str = "slice"
    """What an id names: slice, series, study, patient, or slice number (of a
    patient, such as ``49/14``)."""

    description: str = ""
    """One line about the file: its form, rows, classes, and the columns left out."""


@dataclass(frozen=True, slots=True)
class LabelForm:
    """A form of label files."""

    name: str
    level: str
    needs: tuple[tuple[str, ...], ...]
    """The keys of columns that the form needs, one of each group."""

    def missing(self, keys: Sequence[str]) -> list[tuple[str, ...]]:
        """The groups of which a file with these keys has no column."""
        return [group for group in self.needs if not set(group) & set(keys)]


FORMS = (
    LabelForm("wide", "slice", (SLICE_IDS, CLASSES)),
    LabelForm("long", "slice", (SLICE_IDS, ("label",))),
    LabelForm("wide by series", "series", (("seriesinstanceuid",), CLASSES)),
    LabelForm("wide by study", "study", (("studyinstanceuid",), CLASSES)),
    LabelForm(
        "PhysioNet CT-ICH",
        "slice number",
        (("patientnumber",), ("slicenumber",), CLASSES),
    ),
    LabelForm(
        "CQ500 reads",
        "patient",
        (("name",), tuple(f"{r}{name}" for r in READERS for name in ABBREVIATIONS)),
    ),
)
"""All forms. A file has the first form whose columns it has."""


def read_labels(path: Path) -> LabelTable:
    """Read a label file of any form.

    The full Kaggle csv, 4.5 million rows, takes 3 s and half a GiB.

    Args:
        path: a csv or parquet file; see `ichfast.system.text_table`.

    Raises:
        LabelError: the file is missing, cannot be read, has no labels or no known form,
            or breaks a rule of this module's docstring.
    """
    try:
        with open_text_table(path) as table:
            columns = _columns(path, table.names)
            form = _form_of(path, table.names, columns)
            used = _used_columns(form, columns)
            extra = _extra_columns(form, table.readable, set(columns.values()))
            others = [name for names in extra.values() for name in names]
            rows = table.read(list(used.values()), others)
            rows = rows.rename_columns([*used, *others])
            names = [name for name in table.names if name not in used.values()]
    except FileNotFoundError as error:
        raise LabelError(f"no label file at {path}") from error
    except NOT_A_TABLE as error:
        reason = first_line(error)
        raise LabelError(f"cannot read the label file {path}: {reason}") from error
    if len(rows) == 0:
        raise LabelError(f"{path} has no row")
    if form.name == "long":
        cells = _long_cells(path, rows)
    else:
        cells = _wide_cells(path, form, rows, _extra_values(rows, extra))
    carried = [name for key in cells.names[6:] for name in extra[key]]
    left_out = [name for name in names if name not in carried]
    return _table_of(path, form, cells, len(rows), left_out)


def _key(name: str) -> str:
    """The name of a column without case, spaces and punctuation; its class, if any."""
    key = column_key(name)
    return CLASS_NAMES.get(key, key)


def _columns(path: Path, names: Sequence[str]) -> dict[str, str]:
    """The name of the column for each key that some form knows."""
    known = {key for form in FORMS for group in form.needs for key in group}
    known.add("nohemorrhage")
    pairs = [(_key(name), name) for name in names]
    pairs = [(key, name) for key, name in pairs if key in known]
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            found = ", ".join(name for other, name in pairs if other == key)
            raise LabelError(
                f"{path} has more than one column {key} ({found}); correct the file"
            )
    return dict(pairs)


def _form_of(path: Path, names: Sequence[str], columns: Mapping[str, str]) -> LabelForm:
    missing_of = {form: form.missing(list(columns)) for form in FORMS}
    for form, missing in missing_of.items():
        if not missing:
            return form
    nearest, missing = min(
        missing_of.items(), key=lambda pair: (len(pair[1]), -len(pair[0].needs))
    )
    needs = " and ".join(
        f"a column {group[0]}" if len(group) == 1 else f"one of {', '.join(group[:6])}"
        for group in missing
    )
    raise LabelError(
        f"{path} is no label file of a known form: it has the columns "
        f"{shown_names(names)}; the nearest form, {nearest.name}, also needs {needs} "
        "(docs/labels.md lists the forms)"
    )


def _used_columns(form: LabelForm, columns: Mapping[str, str]) -> dict[str, str]:
    """The columns of a file that its form reads, by key; those of the id come first."""
    used: dict[str, str] = {}
    for group in form.needs:
        found = [key for key in group if key in columns]
        if group == SLICE_IDS:
            found = found[:1]
        used |= {key: columns[key] for key in found}
    if form.name == "PhysioNet CT-ICH" and "nohemorrhage" in columns:
        used["nohemorrhage"] = columns["nohemorrhage"]
    return used


def _extra_columns(
    form: LabelForm, names: Sequence[str], known: set[str]
) -> dict[str, list[str]]:
    """The columns that may be extra classes, by the name of the class.

    In the form of CQ500 a class has a column for each reader.
    """
    found: dict[str, list[str]] = {}
    if form.name == "long":
        return found
    for name in names:
        class_name = name.strip().lower()
        if form.level == "patient":
            class_name = re.sub(r"^r[1-3]\W+", "", class_name)
        key = re.sub(r"[^a-z0-9]+", "_", class_name).strip("_")
        is_sane = re.fullmatch(r"[a-z]\w*", key) and len(name) <= MAX_NAME_SHOWN
        if name not in known and is_sane and not NO_EXTRA.fullmatch(_key(name)):
            found.setdefault(key, []).append(name)
    max_columns = len(READERS) if form.level == "patient" else 1
    # Of two columns with the same name nobody can tell which one counts.
    return {key: found[key] for key in found if len(found[key]) <= max_columns}


def _extra_values(
    rows: pa.Table, columns: Mapping[str, Sequence[str]]
) -> dict[str, npt.NDArray[np.int8]]:
    """The labels of extra classes by name, each of shape (R,)."""
    extra: dict[str, npt.NDArray[np.int8]] = {}
    for key, names in columns.items():
        values = [_flags(rows[name]) for name in names]
        flags = [each for each in values if each is not None]
        if len(extra) < MAX_EXTRA and len(flags) == len(names):
            extra[key] = np.asarray(_majority(flags))
    return extra


def _flags(column: pa.ChunkedArray) -> npt.NDArray[np.int8] | None:
    """The labels in a column of bytes, shape (R,); None if it has other values."""
    if _is_other(column.slice(0, 1024).unique()):  # which rules most columns out
        return None
    encoded = column.dictionary_encode().combine_chunks()
    if _is_other(encoded.dictionary):
        return None
    numbers = np.array(_numbers(encoded.dictionary), dtype=np.int8)
    return numbers[encoded.indices.to_numpy()] if (numbers >= 0).any() else None


def _is_other(values: pa.Array) -> bool:
    """Whether distinct values are other ones than 0, 1 and missing."""
    return len(values) > MAX_SPELLINGS or -2 in _numbers(values)


def _numbers(values: pa.Array) -> list[int]:
    texts = [value.decode("latin-1") for value in values.to_pylist()]
    return [VALUES.get(text.strip().lower(), -2) for text in texts]


@dataclass(frozen=True, slots=True)
class _Cells:
    """The values of a file, before rows of one id are put together."""

    ids: npt.NDArray[np.object_]
    """Shape (N,), each id once."""

    cell_C: npt.NDArray[np.int32]
    """Shape (C,): V times the number of the id, plus the number of the label."""

    value_C: npt.NDArray[np.int8]
    """Shape (C,): 0, 1, or -1 (missing)."""

    num_duplicates: int

    names: tuple[str, ...] = CLASSES
    """The V labels: the six classes, and then the extra ones."""


def _long_cells(path: Path, rows: pa.Table) -> _Cells:
    """The cells of rows such as ``ID_0123_subdural,1``."""
    whole_ids, labels = rows.columns
    is_pair_R = pc.match_substring(whole_ids, "_").to_numpy()
    _refuse(path, "ID is not `slice_class`", "row(s)", whole_ids, ~is_pair_R)
    parts = []
    for chunk in whole_ids.chunks:  # one at a time, because the lists are large
        split = pc.split_pattern(chunk, "_", max_splits=1, reverse=True)
        parts.append([pc.list_element(split, n) for n in range(2)])
    ids, id_R = _numbered(path, pa.chunked_array(part[0] for part in parts))
    class_names = pa.chunked_array(part[1] for part in parts)
    del parts
    numbers = {name: CLASSES.index(known) for name, known in CLASS_NAMES.items()}
    class_R = _mapped(class_names, numbers)
    _refuse(path, "the class in ID is unknown", "row(s)", whole_ids, class_R == -2)
    value_R = _mapped(labels, VALUES)
    _refuse(path, "Label is not 0 or 1", "row(s)", whole_ids, value_R == -2)
    cell_R = id_R * np.int32(len(CLASSES)) + class_R

    has_row_C = np.zeros(len(ids) * len(CLASSES), dtype=np.bool_)
    has_row_C[cell_R] = True
    has_row_NK = has_row_C.reshape(-1, len(CLASSES))
    # A file may lack a class, but then for all slices; others are cut off.
    is_cut_N = (has_row_NK != has_row_NK.any(axis=0)).any(axis=1)
    _refuse(path, "a class that others have has no row", "slice(s)", ids, is_cut_N)
    return _Cells(ids, cell_R, value_R, len(cell_R) - int(has_row_C.sum()))


def _wide_cells(
    path: Path,
    form: LabelForm,
    rows: pa.Table,
    extra: Mapping[str, npt.NDArray[np.int8]],
) -> _Cells:
    """The cells of rows with a column for each class."""
    id_column, values_RK = rows.column(0), np.full((len(rows), 6), -1, dtype=np.int8)
    if form.level == "slice number":
        whole = [pc.replace_substring_regex(c, r"\.0$", "") for c in rows.columns[:2]]
        id_column = pc.binary_join_element_wise(*whole, "/")

    def values_of(key: str) -> npt.NDArray[np.int8]:
        value_R = _mapped(rows[key], VALUES)
        _refuse(path, f"{key} is not 0 or 1", "row(s)", id_column, value_R == -2)
        return value_R

    for k, name in enumerate(CLASSES):
        if name in rows.column_names:
            values_RK[:, k] = values_of(name)
        elif form.level == "patient":
            values_RK[:, k] = _majority(
                [
                    values_of(f"{reader}{ABBREVIATIONS[k]}")
                    for reader in READERS
                    if f"{reader}{ABBREVIATIONS[k]}" in rows.column_names
                ]
            )
    if "nohemorrhage" in rows.column_names and "any" not in rows.column_names:
        opposite = np.array([1, 0, -1], dtype=np.int8)
        values_RK[:, 0] = opposite[values_of("nohemorrhage")]
    ids, id_R = _numbered(path, id_column)
    names, values_RV = (*CLASSES, *extra), np.column_stack([values_RK, *extra.values()])
    number_V = np.arange(len(names), dtype=np.int32)
    cell_RV = id_R[:, np.newaxis] * np.int32(len(names)) + number_V
    num_duplicates = len(rows) - len(ids)
    return _Cells(ids, cell_RV.ravel(), values_RV.ravel(), num_duplicates, names)


def _majority(reads: Sequence[npt.NDArray[np.int8]]) -> npt.NDArray[np.int8] | int:
    """What more than half of the readers say; -1 (missing) where they do not agree."""
    if not reads:
        return -1
    reads_QR = np.stack(reads)
    is_one_R = (reads_QR == 1).sum(axis=0) > len(reads) / 2
    is_zero_R = (reads_QR == 0).sum(axis=0) > len(reads) / 2
    return np.where(is_one_R, 1, np.where(is_zero_R, 0, -1)).astype(np.int8)


def _table_of(
    path: Path, form: LabelForm, cells: _Cells, num_rows: int, left_out: Sequence[str]
) -> LabelTable:
    num_labels = len(cells.names)
    is_one_C, is_zero_C = (
        np.zeros(len(cells.ids) * num_labels, dtype=np.bool_) for _ in range(2)
    )
    is_one_C[cells.cell_C[cells.value_C == 1]] = True
    is_zero_C[cells.cell_C[cells.value_C == 0]] = True
    both = np.flatnonzero(is_one_C & is_zero_C)
    if both.size:
        shown = [
            f"{cells.ids[c // num_labels]} {cells.names[c % num_labels]}"
            for c in both[:NUM_SHOWN]
        ]
        raise LabelError(
            f"{path}: rows disagree on {both.size:,} label(s), both 0 and 1, first "
            f"{', '.join(shown)}; correct the file"
        )
    labels_C = np.where(is_one_C, np.float32(1), np.float32(np.nan))
    labels_C[is_zero_C] = 0
    labels_NV = labels_C.reshape(-1, num_labels)
    labels_NK = with_any(labels_NV[:, : len(CLASSES)])
    # Readers may agree on a bleed and not on its type.
    if form.level == "slice number":
        is_number = pc.match_substring_regex(pa.array(cells.ids), r"/\d{1,9}$")
        wrong_N = ~is_number.to_numpy(zero_copy_only=False)
        wrong_N &= ~np.isnan(labels_NV).all(axis=1)
        _refuse(path, "SliceNumber is no number", "slice(s)", cells.ids, wrong_N)
    if form.level != "patient":
        problem = "`any` is not the OR of the five subtypes"
        _refuse(
            path, problem, f"{form.level}(s)", cells.ids, contradicts_any(labels_NK)
        )
    is_known_NK = ~np.isnan(labels_NK)
    is_known_N = is_known_NK.any(axis=1) | ~np.isnan(labels_NV).all(axis=1)
    if not is_known_N.any():
        raise LabelError(f"{path} has no labelled row")
    classes = [CLASSES[k] for k in np.flatnonzero(is_known_NK.any(axis=0))]
    repeated = f"{cells.num_duplicates:,} repeated, " if cells.num_duplicates else ""
    extra = cells.names[len(CLASSES) :]
    carried = f"; extra classes {', '.join(extra)}" if extra else ""
    return LabelTable(
        ids=cells.ids[is_known_N],
        labels_NK=labels_NK[is_known_N],
        num_duplicates=cells.num_duplicates,
        extra={
            name: labels_NV[is_known_N, len(CLASSES) + number]
            for number, name in enumerate(extra)
        },
        level=form.level,
        description=f"labels: form {form.name}, joined by {form.level}, {num_rows:,} "
        f"rows, {repeated}classes {', '.join(classes) or 'none'}{carried}; "
        f"columns left out: {shown_names(left_out) or 'none'}",
    )


def with_any(labels_NK: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Give a missing `any` where all five subtypes are known: their OR.

    Args:
        labels_NK: 0, 1 or NaN, shape (N, 6).
    """
    # The maximum of numbers with a NaN is NaN.
    any_N = np.where(
        np.isnan(labels_NK[:, 0]), labels_NK[:, 1:].max(axis=1), labels_NK[:, 0]
    )
    return np.column_stack([any_N, labels_NK[:, 1:]])


def contradicts_any(labels_NK: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Whether the known `any` of each row cannot be the OR of the subtypes.

    Args:
        labels_NK: 0, 1 or NaN, shape (N, 6).

    Returns:
        Shape (N,).
    """
    is_any_N, is_one_NK = labels_NK[:, 0] == 1, labels_NK[:, 1:] == 1
    all_zero_N = (labels_NK[:, 1:] == 0).all(axis=1)
    wrong: npt.NDArray[np.bool_] = (labels_NK[:, 0] == 0) & is_one_NK.any(axis=1)
    return wrong | (is_any_N & all_zero_N)


def _numbered(
    path: Path, texts: pa.ChunkedArray
) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.int32]]:
    """Each id once, shape (N,), and the number of the id of each row, shape (R,)."""
    encoded = texts.dictionary_encode().combine_chunks()
    ids = pc.utf8_trim_whitespace(encoded.dictionary)
    number_R = encoded.indices
    if pc.any(pc.ends_with(ids, ".dcm", ignore_case=True)).as_py():
        shorter = pc.replace_substring_regex(ids, r"(?i)\.dcm$", "")
        merged = shorter.dictionary_encode()
        ids, number_R = merged.dictionary, merged.indices.take(number_R)
    ids_N = ids.to_numpy(zero_copy_only=False)
    _refuse(path, "the id is empty", "id(s)", ids_N, ids_N == "")
    return ids_N, number_R.to_numpy()


def _mapped(texts: pa.ChunkedArray, known: Mapping[str, int]) -> npt.NDArray[np.int8]:
    """The number of each text, without case and spaces around it; -2 if not known."""
    encoded = texts.dictionary_encode().combine_chunks()
    distinct = pc.utf8_lower(pc.utf8_trim_whitespace(encoded.dictionary))
    found = pc.fill_null(pc.index_in(distinct, pa.array(known)), len(known))
    numbers = np.array([*known.values(), -2], dtype=np.int8)
    mapped: npt.NDArray[np.int8] = numbers[found.to_numpy()][encoded.indices.to_numpy()]
    return mapped


def _refuse(path: Path, problem: str, unit: str, ids: Any, bad: npt.ArrayLike) -> None:
    """Raise a `LabelError` with the count and the first offenders, if any is bad."""
    where = np.flatnonzero(bad)
    if where.size == 0:
        return
    shown = ", ".join(str(ids[int(k)]) for k in where[:NUM_SHOWN])
    raise LabelError(
        f"{path}: {problem} in {where.size:,} {unit}, first {shown}; correct the file"
    )
