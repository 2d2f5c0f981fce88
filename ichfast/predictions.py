"""The predictions table: one row a slice, written by predict, read by the rest.

Columns, in this order:

    slice_id, series, study, patient   as in the store
    position_mm                        along the series' normal
    fold                               the slice's fold, -1 where it has none
    any ... subdural                   six probabilities in `labels.CLASSES` order
    label_any ... label_subdural       six labels, 0 or 1; missing where unlabelled

The file's suffix decides its form: ``.parquet`` or ``.csv``.

Shape letters: N slices, K classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from ichfast.errors import PredictionError
from ichfast.files import atomic_path
from ichfast.labels import CLASSES

KEY_COLUMNS = ("slice_id", "series", "study", "patient", "position_mm", "fold")
LABEL_COLUMNS = tuple(f"label_{name}" for name in CLASSES)
COLUMNS = (*KEY_COLUMNS, *CLASSES, *LABEL_COLUMNS)


def write_predictions(path: Path, table: pd.DataFrame) -> None:
    """Write a predictions table, atomically.

    Args:
        path: ends in ``.parquet`` or ``.csv``. Replaced if it exists.
        table: has the columns of this module's docstring.

    Raises:
        PredictionError: another suffix, or a folder that cannot be written.
    """
    check_suffix(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            if path.suffix == ".parquet":
                table.to_parquet(temporary, index=False)
            else:
                table.to_csv(temporary, index=False, float_format="%.9g")
    except OSError as error:
        raise PredictionError(f"cannot write {path}: {error.strerror}") from error


def read_predictions(path: Path) -> pd.DataFrame:
    """Read a predictions table.

    Raises:
        PredictionError: no such file, not a table, or columns missing.
    """
    check_suffix(path)
    if not path.is_file():
        raise PredictionError(
            f"no predictions at {path}; make them with `ichfast predict RUN {path}`"
        )
    table: pd.DataFrame
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            table = pd.read_csv(path, dtype=dict.fromkeys(KEY_COLUMNS[:4], str))
    except (OSError, ValueError) as error:
        raise PredictionError(f"{path} is damaged or not a table: {error}") from error
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise PredictionError(
            f"{path} lacks the columns {', '.join(missing)}; "
            "write it with `ichfast predict`"
        )
    known: pd.DataFrame = table[list(COLUMNS)]
    return known


def probs_NK(table: pd.DataFrame) -> npt.NDArray[np.float64]:
    """The six probabilities, shape (N, 6), float64."""
    probs: npt.NDArray[np.float64] = table[list(CLASSES)].to_numpy(np.float64)
    return probs


def labels_NK(table: pd.DataFrame) -> npt.NDArray[np.float64]:
    """The six labels, shape (N, 6), float64, NaN where the slice has none."""
    columns = table[list(LABEL_COLUMNS)]
    labels: npt.NDArray[np.float64] = columns.to_numpy(np.float64, na_value=np.nan)
    return labels


def check_suffix(path: Path) -> None:
    """Refuse a predictions path whose suffix names no form.

    Raises:
        PredictionError: the suffix is not ``.parquet`` or ``.csv``.
    """
    if path.suffix not in (".parquet", ".csv"):
        raise PredictionError(
            f"predictions are written as .parquet or .csv, got {path.name!r}"
        )
