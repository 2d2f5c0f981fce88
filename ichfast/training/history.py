"""The history of a run: one row per epoch, and the best of them.

Rows are dicts of epoch, phase, train_loss, train_loss_smooth, valid_loss,
valid_weighted_log_loss, valid_accuracy, learning_rate, slices_per_s, seconds and
wait_share. `train_loss` is the mean over the epoch, `train_loss_smooth` fastai's moving
average at its end, as in the tables of the reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from ichfast.errors import CheckpointError
from ichfast.system.files import atomic_path

METRICS = "metrics.csv"
"""File of the history, in a run's folder."""

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


def write_history(run_dir: Path, history: History) -> None:
    """Write a run's `metrics.csv`, atomically.

    Args:
        run_dir: the run's folder; exists.
        history: all rows so far.
    """
    with atomic_path(run_dir / METRICS) as temporary:
        pd.DataFrame(history).to_csv(temporary, index=False)


def read_history(run_dir: Path) -> pd.DataFrame:
    """Read a run's `metrics.csv`: one row per epoch.

    Raises:
        CheckpointError: no epoch is finished, or the file is damaged.
    """
    path = run_dir / METRICS
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read: no epoch finished, or it is damaged; "
            "train at least one epoch"
        ) from error
