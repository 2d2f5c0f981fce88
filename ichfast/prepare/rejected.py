"""The files that a run leaves out: a summary by reject code, and a csv of them.

A store has the csv of its own files (`ichfast.store.tables`). Where no store is made or
kept, the csv lies beside its path or beside the predictions. It is replaced by the
next run, and removed by one that leaves out nothing or makes a store.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ichfast.errors import IchfastError
from ichfast.store.tables import REJECTED_HEADER, rejected_csv
from ichfast.system.files import beside, output_path, remove_file


def rejected_path(path: Path) -> Path:
    """The csv of left-out files beside a path: for ``a``, ``a.rejected.csv``."""
    return beside(path, ".rejected.csv")


def format_rejected(rejected: pd.DataFrame) -> str:
    """Format the number of files by reject code, each with its first detail.

    Args:
        rejected: columns reason and detail. Details have no patient data, except that
            those of duplicates may have names of files, which are not shown.
    """
    return ", ".join(
        f"{len(details):,} {code}"
        + (f" ({details.iloc[0]})" if code != "duplicate-conflict" else "")
        for code, details in rejected.groupby("reason")["detail"]
    )


def write_rejected_beside(
    path: Path, rejected: pd.DataFrame, error_type: type[IchfastError]
) -> bool:
    """Write the csv of left-out files, or remove that of an earlier run if all is well.

    A file of that name that is no such csv stays as it is.

    Args:
        path: of `rejected_path`.
        rejected: columns path, reason, detail; may be empty.
        error_type: raised when the csv cannot be written.

    Returns:
        Whether the csv lists these files.

    Raises:
        IchfastError: of `error_type`.
    """
    if not _is_replaceable(path):
        return False
    if rejected.empty:
        remove_file(path)
        return False
    with output_path(path, error_type) as temporary:
        temporary.write_text(rejected_csv(rejected), encoding="utf-8")
    return True


def _is_replaceable(path: Path) -> bool:
    """Whether there is no file, or one that an earlier run wrote."""
    if not path.exists():
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(REJECTED_HEADER)) == REJECTED_HEADER.encode()
