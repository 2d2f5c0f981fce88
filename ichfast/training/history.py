"""The history of a run: one row an epoch, and which of them is the best.

Rows are dicts of epoch, phase, train_loss, valid_loss, valid_weighted_log_loss,
valid_accuracy, learning_rate, slices_per_s, seconds and wait_share.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from ichfast.errors import CheckpointError
from ichfast.system.files import atomic_path

METRICS = "metrics.csv"

History = list[dict[str, Any]]
"""Rows in the order of epochs."""


def best_row(history: History, by: str) -> dict[str, Any]:
    """The first epoch with the lowest value of the column `by`."""
    return min(history, key=lambda row: row[by])


def epochs_since_best(history: History, by: str) -> int:
    """Epochs that came after the best one; 0 for an empty history."""
    return history[-1]["epoch"] - best_row(history, by)["epoch"] if history else 0


def write_history(run_dir: Path, history: History) -> None:
    """Write a run's `metrics.csv`, atomically."""
    with atomic_path(run_dir / METRICS) as temporary:
        pd.DataFrame(history).to_csv(temporary, index=False)


def read_history(run_dir: Path) -> pd.DataFrame:
    """Read a run's `metrics.csv`: one row an epoch.

    Raises:
        CheckpointError: no epoch is finished yet, or the file is damaged.
    """
    path = run_dir / METRICS
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read: no epoch finished, or it is damaged; "
            "train at least one epoch"
        ) from error
