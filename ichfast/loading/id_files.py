"""Files of ids: own folds (``folds.file``), and lists of what takes part (``--only``).

1. A csv or parquet file (`ichfast.system.text_table`) with a column of ids: of slices,
   series, studies or patients, told by its name. Where there are several, the finest
   counts. A list may also be a text file with an id in each line and no header; then it
   is of the finest level that has one of its ids.
2. Ids are those of the store. Where the store has hashes, the file has them too.
3. `folds.file` also has a column `fold`, whose values are 0 to `MAX_FOLD`, or empty.
4. A run keeps a copy with only the ids and folds, and its digest, so the file itself is
   needed once.

Shape letters: N slices of a store.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from ichfast.errors import FoldError, first_line
from ichfast.labels import SLICE_IDS
from ichfast.store.store import Store
from ichfast.system.files import write_text_atomically
from ichfast.system.text_table import (
    NOT_A_TABLE,
    column_key,
    open_text_table,
    shown_names,
)

logger = logging.getLogger(__name__)

ID_KEYS: Mapping[str, tuple[str, ...]] = {
    "slice_id": SLICE_IDS,
    "series": ("seriesinstanceuid", "seriesid", "series"),
    "study": ("studyinstanceuid", "studyid", "study"),
    "patient": ("patientid", "patient"),
}
"""For each id column of a store, finest first: the keys of its names in a file."""

MAX_FOLD = 99
"""The largest number of a fold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IdFile:
    """The content of a file of ids, for a store."""

    column: str
    """The column of the store that has such ids."""

    ids: tuple[str, ...]
    """Those that are in the store, each once, in the file's order."""

    folds: tuple[int, ...] = ()
    """The fold of each, -1 for none; empty for a list without folds."""

    def position_N(self, store: Store) -> npt.NDArray[np.intp]:
        """The position in `ids` for each slice of a store, shape (N,), or -1."""
        return pd.Index(self.ids).get_indexer(store.table[self.column])

    def to_csv(self) -> str:
        """Format as a csv that `read_id_file` reads."""
        lines = [self.column, *map(_quoted, self.ids)]
        if self.folds:
            folds = ["fold", *map(str, self.folds)]
            lines = list(map(",".join, zip(lines, folds, strict=True)))
        return "\n".join([*lines, ""])

    @property
    def digest(self) -> str:
        """Identifies the ids and folds."""
        return hashlib.sha256(self.to_csv().encode()).hexdigest()[:16]


def read_id_file(path: Path, store: Store, *, has_folds: bool) -> IdFile:
    """Read a file of ids, and keep those that are in a store.

    Args:
        path: a csv, parquet or text file.
        store: the store that the ids are of.
        has_folds: whether it must have the column `fold`.

    Raises:
        FoldError: the file is missing, cannot be read, lacks a column, has an id twice
            with other folds or a value that is no fold, or none of its ids is in the
            store.
    """
    names, texts = _read_columns(path, has_folds=has_folds)
    ids = [re.sub(r"(?i)\.dcm$", "", text.strip()) for text in texts[0]]
    column = names[0] or _finest_level(store, ids)
    folds: dict[str, int] = {}
    fold_texts = texts[1] if has_folds else [""] * len(ids)
    for each, text in zip(ids, fold_texts, strict=True):
        fold = _fold_of(path, each, text)
        if folds.setdefault(each, fold) != fold:
            raise FoldError(
                f"{path} has {each} in the folds {folds[each]} and {fold}; correct it"
            )
    folds.pop("", None)
    found = IdFile(
        column=column,
        ids=tuple(folds),
        folds=tuple(folds.values()) if has_folds else (),
    )
    return _in_store(path, found, store)


def fold_numbers(path: Path) -> list[int]:
    """The folds in a file, rising.

    Raises:
        FoldError: the file cannot be read, or lacks the column or a fold.
    """
    _, texts = _read_columns(path, has_folds=True)
    folds = {_fold_of(path, "", text) for text in set(texts[1])} - {-1}
    if not folds:
        raise FoldError(f"{path} has no fold; give its column fold numbers from 0")
    return sorted(folds)


def write_id_file(path: Path, content: IdFile) -> None:
    """Write ids and folds as a csv, atomically.

    Args:
        path: replaced if it exists.
        content: what to write.
    """
    write_text_atomically(path, content.to_csv())


def _read_columns(
    path: Path, *, has_folds: bool
) -> tuple[list[str], list[Sequence[str]]]:
    """The store's names, and the texts, of the columns of ids and folds.

    The name of the column of ids is empty for a list without a header.
    """
    try:
        with open_text_table(path) as table:
            name_of = {column_key(name): name for name in table.readable}
            keys = [(column, key) for column, keys in ID_KEYS.items() for key in keys]
            wanted = [(column, name_of[key]) for column, key in keys if key in name_of]
            has_header = bool(wanted)
            if not wanted and not has_folds and len(table.names) == 1:
                wanted = [("", table.names[0])]
            if not wanted or (has_folds and "fold" not in name_of):
                raise FoldError(_lacking(path, table.names, has_folds=has_folds))
            wanted = wanted[:1] + ([("fold", name_of["fold"])] if has_folds else [])
            rows = table.read([name for _, name in wanted])
    except FileNotFoundError as error:
        raise FoldError(f"no file of ids at {path}") from error
    except NOT_A_TABLE as error:
        raise FoldError(f"cannot read {path}: {first_line(error)}") from error
    texts = [column.to_pylist() for column in rows.columns]
    if not has_header:
        texts[0] = [wanted[0][1], *texts[0]]
    return [column for column, _ in wanted], texts


def _lacking(path: Path, names: Sequence[str], *, has_folds: bool) -> str:
    return (
        f"{path} has the columns {shown_names(names) or 'none'}; it needs one of "
        "slice_id (SOPInstanceUID), "
        "series (SeriesInstanceUID), study (StudyInstanceUID) and patient (PatientID)"
        + (", and fold" if has_folds else "")
    )


def _fold_of(path: Path, name: str, text: str) -> int:
    text = text.strip().lower()
    if text in ("", "nan", "na", "null", "-1"):
        return -1
    number = re.fullmatch(r"(\d{1,3})(\.0)?", text)
    if number is None or int(number[1]) > MAX_FOLD:
        of = f" of {name}" if name else ""
        raise FoldError(
            f"{path}: the fold{of} is {text[:40]!r}; a fold is a number from 0 to "
            f"{MAX_FOLD}, or empty for slices that take no part"
        )
    return int(number[1])


def _finest_level(store: Store, ids: Sequence[str]) -> str:
    """The id column of a store that has one of these ids."""
    for column in ID_KEYS:
        if not set(ids).isdisjoint(store.table[column]):
            return column
    return "slice_id"


def _in_store(path: Path, found: IdFile, store: Store) -> IdFile:
    """The part of a file that is of a store; warns of the rest."""
    kind = found.column.removesuffix("_id")
    if not found.ids:
        raise FoldError(f"{path} has no id of a {kind}")
    there = np.unique(found.position_N(store))
    there = there[there >= 0]
    num_strangers = len(found.ids) - len(there)
    if num_strangers and len(there):
        logger.warning(
            "%d of %d ids in %s are of no %s in the store",
            num_strangers,
            len(found.ids),
            path,
            kind,
        )
    if len(there):
        return replace(
            found,
            ids=tuple(found.ids[k] for k in there),
            folds=tuple(found.folds[k] for k in there) if found.folds else (),
        )
    advice = (
        "check that it is of this store"
        if store.header.keep_ids
        else "the ids of the store are hashes, so the file must have these, as the "
        "predictions and slices.parquet do; or prepare the store with --keep-ids"
    )
    raise FoldError(
        f"none of the {len(found.ids):,} ids in {path} is of a {kind} of {store.path}: "
        f"the file has ids such as {found.ids[0]}, the store such as "
        f"{store.table[found.column].iloc[0] or '(empty)'}; {advice}"
    )


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if re.search(r'[",\n\r]', text) else text
