"""The RSNA label csv as an (N, 6) array in one fixed class order.

Two forms are read, as ``.csv``, ``.csv.gz``, ``.csv.bz2`` or ``.csv.xz``:

    long    ``ID,Label`` with ``ID_xxxxxxxxx_subtype`` in ID, the form of Kaggle
    wide    one row per slice: its id, and a column for each of the six classes

Promises:

1. Identical rows count once; the number of dropped rows is reported.
2. Rows that contradict each other, unknown classes, values other than 0 and 1,
   slices with fewer than six classes, and an `any` that is not the OR of the
   other five are errors that name the first offenders. Nothing is guessed.

Shape letters: N slices, K classes, R rows of the csv.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from ichfast.errors import LabelError, first_line
from ichfast.system.untrusted import max_unpacked_bytes

CLASSES = (
    "any",
    "epidural",
    "intraparenchymal",
    "intraventricular",
    "subarachnoid",
    "subdural",
)
"""The six classes, in the order of every array with a K axis."""

WIDE_ID_COLUMNS = ("slice_id", "sop_instance_uid", "SOPInstanceUID", "ID", "image")
"""Column names for the slice id of a wide csv; the first that is there counts."""

MAX_HEADER_BYTES = 2**20
"""Upper limit of a csv's first line, bytes. A longer line is no label csv's."""

NUM_SHOWN = 3
"""Number of offenders that an error names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelTable:
    """The labels of a csv."""

    slice_ids: npt.NDArray[np.object_]
    """Shape (N,), each slice id once, in the csv's order."""

    labels_NK: npt.NDArray[np.uint8]
    """Shape (N, 6), 0 or 1, classes in `CLASSES` order."""

    num_duplicates: int
    """Rows dropped because they repeat an earlier row."""


def read_labels(path: Path) -> LabelTable:
    """Read a label csv, long or wide.

    The full Kaggle csv, 4,045,572 rows, takes 2 s and half a GiB.

    Args:
        path: a csv file, plain or compressed.

    Raises:
        LabelError: the csv is missing, cannot be read, has no labels, or breaks a rule
            of this module's docstring.
    """
    table = _read_csv(path)
    names = table.column_names
    for name in ("Label", *WIDE_ID_COLUMNS, *CLASSES):
        if names.count(name) > 1:
            raise LabelError(f"{path} has more than one column {name}; correct the csv")
    if {"ID", "Label"} <= set(names):
        return _from_long(path, table["ID"], table["Label"])
    if set(CLASSES) <= set(names):
        return _from_wide(path, table)
    raise LabelError(
        f"{path} is not a label csv: expected the columns ID and Label, or a slice id "
        f"and {', '.join(CLASSES)}; found {', '.join(names[:12])}"
    )


def _read_csv(path: Path) -> pa.Table:
    openers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
    opener = openers.get(path.suffix, Path.open)
    try:
        with opener(path, "rb") as stream:
            if opener is Path.open:
                return _parse_csv(stream)
            max_bytes = max_unpacked_bytes(path.stat().st_size)
            content = stream.read(max_bytes + 1)
            if len(content) > max_bytes:
                raise ValueError(f"it would unpack to more than {max_bytes:,} bytes")
            return _parse_csv(io.BytesIO(content))
    except FileNotFoundError as error:
        raise LabelError(f"no label csv at {path}") from error
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        reason = first_line(error)
        raise LabelError(f"cannot read the label csv {path}: {reason}") from error


def _parse_csv(stream: IO[bytes]) -> pa.Table:
    # All columns are read as text, so that an error can show "2" or "yes" unchanged.
    # The header is parsed alone: Arrow reads ahead in a thread, so a first reader of
    # the whole stream could take rows from the second.
    header = io.BytesIO(stream.readline(MAX_HEADER_BYTES))
    names = pa_csv.open_csv(header).schema.names
    stream.seek(0)
    as_text = pa_csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
    )
    return pa_csv.read_csv(stream, convert_options=as_text)


def _from_long(path: Path, ids: pa.ChunkedArray, labels: pa.ChunkedArray) -> LabelTable:
    if len(ids) == 0:
        raise LabelError(f"{path} has no row")
    parts = pc.split_pattern(ids, "_", max_splits=1, reverse=True)
    lengths_R = pc.list_value_length(parts).to_numpy()
    _refuse(path, "ID is not `slice_class`", ids, lengths_R != 2)
    class_R = _index_in(pc.list_element(parts, 1), CLASSES)
    _refuse(path, "the class in ID is unknown", ids, class_R < 0)
    label_R = _index_in(labels, ("0", "1"))
    _refuse(path, "Label is not 0 or 1", ids, label_R < 0)

    encoded = pc.list_element(parts, 0).combine_chunks().dictionary_encode()
    del parts  # frees half a GiB for the full csv
    slice_ids = encoded.dictionary.to_numpy(zero_copy_only=False)
    cell_R = encoded.indices.to_numpy() * np.int32(len(CLASSES)) + class_R

    num_ones_C = np.bincount(cell_R[label_R == 1], minlength=slice_ids.size * 6)
    num_rows_C = np.bincount(cell_R, minlength=slice_ids.size * 6)
    contradicts_C = (num_ones_C > 0) & (num_ones_C < num_rows_C)
    _refuse(path, "Label is both 0 and 1", ids, contradicts_C[cell_R])
    complete_N = (num_rows_C.reshape(-1, len(CLASSES)) > 0).all(axis=1)
    _refuse(path, "fewer than six classes for the slice", slice_ids, ~complete_N)

    labels_NK = (num_ones_C > 0).astype(np.uint8).reshape(-1, len(CLASSES))
    _check_any(path, slice_ids, labels_NK)
    return LabelTable(
        slice_ids=slice_ids,
        labels_NK=labels_NK,
        num_duplicates=int((num_rows_C - 1).clip(min=0).sum()),
    )


def _from_wide(path: Path, table: pa.Table) -> LabelTable:
    id_column = next((n for n in WIDE_ID_COLUMNS if n in table.column_names), None)
    if id_column is None:
        raise LabelError(
            f"{path} names no slice: expected a column called "
            f"{', '.join(WIDE_ID_COLUMNS)}; found {', '.join(table.column_names[:12])}"
        )
    # A row whose labels are all empty is an unlabelled slice.
    labelled = pc.not_equal(
        pc.binary_join_element_wise(*(table[name] for name in CLASSES), ""), ""
    )
    table = table.filter(labelled)
    if len(table) == 0:
        raise LabelError(f"{path} has no labelled row")
    ids = table[id_column]
    labels_RK = np.stack([_index_in(table[n], ("0", "1")) for n in CLASSES], axis=1)
    _refuse(path, "a class is not 0 or 1", ids, (labels_RK < 0).any(axis=1))

    encoded = ids.combine_chunks().dictionary_encode()
    slice_ids = encoded.dictionary.to_numpy(zero_copy_only=False)
    slice_R = encoded.indices.to_numpy()
    labels_NK = np.zeros((slice_ids.size, len(CLASSES)), dtype=np.uint8)
    labels_NK[slice_R] = labels_RK
    contradicts_R = (labels_NK[slice_R] != labels_RK).any(axis=1)
    _refuse(path, "two rows of the slice disagree", ids, contradicts_R)
    _check_any(path, slice_ids, labels_NK)
    return LabelTable(
        slice_ids=slice_ids,
        labels_NK=labels_NK,
        num_duplicates=len(ids) - slice_ids.size,
    )


def _index_in(texts: pa.ChunkedArray, known: Sequence[str]) -> npt.NDArray[np.int8]:
    """The position of each text in `known`; -1 for an unknown text."""
    found = pc.index_in(texts, value_set=pa.array(known))
    positions: npt.NDArray[np.int8] = pc.fill_null(found, -1).to_numpy().astype(np.int8)
    return positions


def _check_any(
    path: Path,
    slice_ids: npt.NDArray[np.object_],
    labels_NK: npt.NDArray[np.uint8],
) -> None:
    disagrees_N = labels_NK[:, 0] != labels_NK[:, 1:].max(axis=1)
    _refuse(path, "`any` is not the OR of the five subtypes", slice_ids, disagrees_N)


def _refuse(path: Path, problem: str, ids: Any, bad: npt.ArrayLike) -> None:
    """Raise a `LabelError` with the count and the first offenders, if any is bad."""
    where = np.flatnonzero(bad)
    if where.size == 0:
        return
    shown = ", ".join(str(ids[int(k)]) for k in where[:NUM_SHOWN])
    raise LabelError(
        f"{path}: {problem} in {where.size:,} row(s), first {shown}; correct the csv"
    )
