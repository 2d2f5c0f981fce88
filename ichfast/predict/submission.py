"""The competition's submission file, written from a predictions table.

1. Columns ``ID,Label``; an ID is ``<slice id>_<class>``; six rows a slice.
2. Rows have the order of the sample submission, whose slices must be exactly the
   predicted ones. Without a sample they have the order of the table, and the classes
   that of `labels.CLASSES`.
3. A label is a probability with ten decimals, clipped away from 0 and 1.
4. An id that a spreadsheet would run as a formula is refused. It cannot be escaped,
   since Kaggle compares ids letter by letter; no id of the competition is one.
5. Wrong predictions are refused, with counts and first examples. The file is written
   whole or not at all.

Shape letters: N slices, K classes, R rows of the file (6 N).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from ichfast.errors import SubmissionError, first_line
from ichfast.evaluation.predictions import probs_NK as probs_of
from ichfast.labels import CLASSES
from ichfast.system.files import output_path
from ichfast.system.spreadsheet import FORMULA_STARTS

DEFAULT_CLIP = 1e-6
"""Probabilities are kept this far from 0 and 1, as the better teams of the competition
did: a certain and wrong one then costs 13.8 nats, not the 34.5 of Kaggle's own clip."""

NUM_EXAMPLES = 3
"""Number of examples in an error message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SubmissionReport:
    """What `write_submission` wrote."""

    slices: int
    rows: int
    """Six for each slice."""
    clipped: int
    """Number of probabilities nearer to 0 or 1 than the clip."""
    order: str
    """What the order of the rows comes from: ``sample`` or ``table``."""


def write_submission(
    table: pd.DataFrame,
    out: Path,
    *,
    sample: Path | None,
    clip: float = DEFAULT_CLIP,
) -> SubmissionReport:
    """Check a predictions table and write it as a submission, atomically.

    Args:
        table: a predictions table, columns as in `ichfast.evaluation.predictions`.
        out: the csv file. Replaced if it exists.
        sample: the competition's sample submission, or None.
        clip: probabilities are clipped to [clip, 1 - clip]. At least 1e-10, so that
            ten decimals can show it, and below 0.5.

    Raises:
        SubmissionError: no slices, a slice id that is missing, repeated or begins like
            a formula, values that are no
            probabilities, a damaged sample or one with other slices than the table, a
            clip out of range, or a file that cannot be written.
    """
    if not 1e-10 <= clip < 0.5:
        raise SubmissionError(f"clip must be from 1e-10 to below 0.5, got {clip:g}")
    probs_NK = _checked_probs(table)
    slice_ids = pd.Index(table["slice_id"])
    if sample is None:
        slice_R = np.repeat(np.arange(len(table)), len(CLASSES))
        class_R = np.tile(np.arange(len(CLASSES)), len(table))
        class_names = np.array(CLASSES)
        row_ids = [
            f"{slice_id}_{name}" for slice_id in slice_ids for name in class_names
        ]
    else:
        row_ids, slice_R, class_R = _sample_order(sample, slice_ids)
    probs_R = probs_NK[slice_R, class_R]
    clipped_R = np.clip(probs_R, clip, 1.0 - clip)
    _write_rows(out, row_ids, clipped_R)
    return SubmissionReport(
        slices=len(table),
        rows=len(row_ids),
        clipped=int(np.count_nonzero(clipped_R != probs_R)),
        order="table" if sample is None else "sample",
    )


def _checked_probs(table: pd.DataFrame) -> npt.NDArray[np.float64]:
    slice_ids = table["slice_id"]
    if table.empty:
        raise SubmissionError("the predictions hold no slices: nothing to submit")
    num_missing = int((slice_ids.isna() | (slice_ids == "")).sum())
    if num_missing:
        raise SubmissionError(f"{num_missing:,} predictions have no slice id")
    formulas = slice_ids[slice_ids.astype(str).str.startswith(FORMULA_STARTS)]
    if len(formulas):
        raise SubmissionError(
            f"{len(formulas):,} slice id(s) begin like a formula, such as "
            f"{formulas.iloc[0]!r:.40}, which a spreadsheet that opens the file would "
            "run; ids of the competition do not, so predict its slices"
        )
    doubled = slice_ids[slice_ids.duplicated()]
    if len(doubled):
        raise SubmissionError(
            f"{doubled.nunique():,} slices are predicted more than once, such as "
            f"{_examples(doubled)}; a submission holds each slice once"
        )
    probs_NK = probs_of(table)
    is_wrong_NK = ~((probs_NK >= 0) & (probs_NK <= 1))  # also catches NaN
    if is_wrong_NK.any():
        examples = ", ".join(
            f"{slice_ids.iloc[n]}_{CLASSES[k]} = {probs_NK[n, k]:g}"
            for n, k in np.argwhere(is_wrong_NK)[:NUM_EXAMPLES]
        )
        raise SubmissionError(
            f"{np.count_nonzero(is_wrong_NK):,} of {probs_NK.size:,} predictions are "
            f"not probabilities in [0, 1], such as {examples}; "
            "are they logits, or did the model return NaN?"
        )
    return probs_NK


def _sample_order(
    sample: Path, slice_ids: pd.Index[str]
) -> tuple[list[str], npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the row ids of the sample, and the table row and class of each."""
    row_ids = _read_sample(sample)
    parts = row_ids.str.rpartition("_")
    class_R = pd.Index(CLASSES).get_indexer(pd.Index(parts[2]))
    if (class_R < 0).any():
        unknown = row_ids[class_R < 0]
        raise SubmissionError(
            f"{sample} is not a sample submission: {len(unknown):,} of "
            f"{len(row_ids):,} ids do not end in _any ... _subdural, such as "
            f"{_examples(unknown)}"
        )
    doubled = row_ids[row_ids.duplicated()]
    if len(doubled):
        raise SubmissionError(
            f"{sample} is not a sample submission: {len(doubled):,} ids occur more "
            f"than once, such as {_examples(doubled)}"
        )
    rows_of_slice = parts[0].value_counts(sort=False)
    incomplete = rows_of_slice.index[rows_of_slice != len(CLASSES)]
    if len(incomplete):
        raise SubmissionError(
            f"{sample} is not a sample submission: {len(incomplete):,} slices lack "
            f"some of the six classes, such as {_examples(incomplete)}"
        )
    missing = rows_of_slice.index.difference(slice_ids, sort=False)
    extra = slice_ids.difference(rows_of_slice.index, sort=False)
    if len(missing) or len(extra):
        raise SubmissionError(
            f"predictions and {sample} differ: {len(missing):,} of "
            f"{len(rows_of_slice):,} slices are not predicted{_such_as(missing)}; "
            f"{len(extra):,} predicted slices are not in it{_such_as(extra)}; "
            "predict exactly the slices of the test set"
        )
    return list(row_ids), slice_ids.get_indexer(pd.Index(parts[0])), class_R


def _read_sample(sample: Path) -> pd.Series[str]:
    try:
        table = pd.read_csv(sample, dtype=str, keep_default_na=False)
    except OSError as error:
        raise SubmissionError(f"cannot read {sample}: {error.strerror}") from error
    except ValueError as error:
        reason = first_line(error)
        raise SubmissionError(f"{sample} is not a csv file: {reason}") from error
    if list(table.columns) != ["ID", "Label"] or table.empty:
        found = ",".join(map(str, table.columns[:6]))
        raise SubmissionError(
            f"{sample} is not a sample submission: found {len(table):,} rows with the "
            f"columns {found}, expected ID,Label"
        )
    return table["ID"]


def _write_rows(
    out: Path, row_ids: list[str], probs_R: npt.NDArray[np.float64]
) -> None:
    with (
        output_path(out, SubmissionError) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["ID", "Label"])
        writer.writerows(
            (row_id, f"{prob:.10f}")
            for row_id, prob in zip(row_ids, probs_R.tolist(), strict=True)
        )


def _examples(ids: pd.Index[str] | pd.Series[str]) -> str:
    return ", ".join(map(str, ids[:NUM_EXAMPLES]))


def _such_as(ids: pd.Index[str]) -> str:
    return f" (such as {_examples(ids)})" if len(ids) else ""
