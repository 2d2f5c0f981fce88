"""The history of a run: one row per epoch, and the best of them.

Rows are dicts with the `COLUMNS`. `train_loss` is the mean over the epoch,
`train_loss_smooth` fastai's moving average at its end, as in the tables of the
reference.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from ichfast.errors import CheckpointError, first_line
from ichfast.system.checksums import output_with_checksum, read_with_checksum

METRICS = "metrics.csv"
"""File of the history, in a run's folder."""

COLUMNS = (
    *("epoch", "phase", "train_loss", "train_loss_smooth"),
    *("valid_loss", "valid_weighted_log_loss", "valid_accuracy"),
    *("learning_rate", "slices_per_s", "seconds", "wait_share"),
)
"""Columns of a history; all are numbers."""

History = list[dict[str, Any]]
"""Rows, in the order of the epochs."""


def best_row(history: History, by: str) -> dict[str, Any]:
    """The row of the best epoch.

    Args:
        history: at least one row.
        by: column; its lowest value is best, and the first of equal ones.
    """
    return min(history, key=lambda row: row[by])


def epochs_since_best(history: History, by: str) -> int:
    """Epochs after the best one.

    Args:
        history: may be empty, which gives 0.
        by: column; its lowest value is best, and the first of equal ones.
    """
    return history[-1]["epoch"] - best_row(history, by)["epoch"] if history else 0


def write_history(run_dir: Path, history: History, *, advice: str) -> None:
    """Write a run's `metrics.csv`, atomically, with its checksum.

    Args:
        run_dir: the run's folder; exists.
        history: all rows so far.
        advice: what to do when it cannot be written, for the error.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written.
    """
    path = run_dir / METRICS
    with output_with_checksum(path, CheckpointError, f"; {advice}") as temporary:
        pd.DataFrame(history).to_csv(temporary, index=False)


def read_history(run_dir: Path) -> pd.DataFrame:
    """Read a run's `metrics.csv`: one row per epoch, at least one.

    Raises:
        CheckpointError: no epoch is finished, or the file is damaged.
    """
    path = run_dir / METRICS
    if not path.is_file():
        raise CheckpointError(f"no {path}: no epoch is finished; train at least one")
    try:
        rows = pd.read_csv(BytesIO(read_with_checksum(path)))
        _check_columns(rows)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {first_line(error)}; `ichfast train --resume` "
            "writes it again"
        ) from error
    return rows


def has_history(run_dir: Path) -> bool:
    """Whether a run has a `metrics.csv`, intact or damaged: an epoch is finished."""
    return (run_dir / METRICS).exists()


def is_history(rows: object) -> bool:
    """Whether the content of a checkpoint is a history."""
    return isinstance(rows, list) and all(
        isinstance(row, dict)
        and all(type(row.get(name)) in (int, float) for name in COLUMNS)
        for row in rows
    )


def _check_columns(rows: pd.DataFrame) -> None:
    if rows.empty:
        raise ValueError("it has no epoch")
    for name in COLUMNS:
        if name not in rows:
            raise ValueError(f"it has no column {name}")
        if not is_numeric_dtype(rows[name]) or is_bool_dtype(rows[name]):
            raise ValueError(f"the column {name} holds values other than numbers")
