"""A store of many patients with few small slices, and labels that fit a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ichfast.evaluation.logits import logit, sigmoid
from ichfast.evaluation.predictions import probs_NK
from ichfast.labels import CLASSES
from ichfast.prepare.pseudonyms import stored_id
from tests.conftest import draw_slice
from tests.store.slice_store import write_slices

NUM_PATIENTS, SLICES_EACH, SIDE = 24, 6, 64


def write_patients(
    path: Path, *, labelled: bool = True, name: str = "P", key: bytes | None = None
) -> Path:
    """Write a store of `NUM_PATIENTS` patients, with random labels or without any.

    Args:
        path: the store's folder, which must not exist.
        labelled: whether slices have labels.
        name: beginning of the patients' ids, and of all others.
        key: hashes the ids of slices.
    """
    rng = np.random.default_rng(11)
    rows: list[dict[str, Any]] = [
        {"patient": f"{name}{p:02d}", "study": f"{name}S{p}", "series": f"{name}R{p}"}
        | {"instance_number": z, "position_mm": 5.0 * z, "labelled": labelled}
        | {
            "slice_id": stored_id(key, f"ID_{name}{p}_{z}"),
            "rows": SIDE,
            "columns": SIDE,
        }
        for p in range(NUM_PATIENTS)
        for z in range(SLICES_EACH)
    ]
    slices = [draw_slice(rng, SIDE, SIDE) for _ in rows]
    labels_NK = rng.integers(0, 2, (len(rows), len(CLASSES)))
    labels_NK[:, 0] = labels_NK[:, 1:].max(axis=1)
    write_slices(path, slices, rows, labels_NK, plan={"listing": name})
    return path


def write_labels(path: Path, table: pd.DataFrame) -> Path:
    """Write labels drawn from what a run predicts, for calibration to find.

    The true logits are half of the predicted ones, less 0.5. Subtypes only: `any` is
    the OR of them.

    Args:
        path: the csv.
        table: predictions, which are not calibrated.
    """
    rng = np.random.default_rng(5)
    true_NK = sigmoid(0.5 * logit(probs_NK(table)) - 0.5)
    labels = pd.DataFrame(
        (rng.random(true_NK.shape) < true_NK).astype(int), columns=list(CLASSES)
    )
    labels["any"] = labels[list(CLASSES[1:])].max(axis=1)
    labels.insert(0, "slice_id", table["slice_id"].to_numpy())
    labels.to_csv(path, index=False)
    return path
