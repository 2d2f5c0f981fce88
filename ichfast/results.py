"""What a trained run comes to: figures of its predictions, and its page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from ichfast.activations import activations_of
from ichfast.errors import PredictionError
from ichfast.evaluation import Evaluation, evaluate
from ichfast.history import read_history
from ichfast.leaks import check_leaks
from ichfast.loading.config import choose_level
from ichfast.predictions import read_predictions
from ichfast.report import ReportData, write_report
from ichfast.settings import to_dict
from ichfast.store.store import Store
from ichfast.system.files import write_text_atomically
from ichfast.trained import open_run

METRICS_FILE = "metrics.json"
"""Beside the predictions: every figure."""

LEAK_NOTICE = (
    "Folds were dealt by slice: patients are on both sides, so every figure looks "
    "better than it would on patients it has not seen."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What a predictions file is worth."""

    predictions: str
    """Name of the file."""
    leaks: dict[str, int]
    """As `leaks.check_leaks` counts them."""
    evaluation: Evaluation

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings, None and dicts; the headline figures first."""
        return {
            **self.evaluation.to_json(),
            "leaks": self.leaks,
            "predictions": self.predictions,
        }


def judge_file(path: Path, *, replicates: int, allow_leak: bool) -> Judgement:
    """Judge a predictions file, and write every figure beside it, atomically.

    Args:
        path: as `predictions.read_predictions` takes it.
        replicates: of the bootstrap behind each interval; 0 for no intervals.
        allow_leak: judge patients, too, that the run trained on.

    Raises:
        PredictionError: no such file, nothing to judge in it, patients that the run
            trained on and are not allowed, or a folder that cannot be written.
    """
    table = read_predictions(path)
    judgement = Judgement(
        predictions=path.name,
        leaks=check_leaks(table, allow=allow_leak),
        evaluation=evaluate(table, replicates=replicates),
    )
    out = path.with_name(METRICS_FILE)
    try:
        write_text_atomically(out, json.dumps(judgement.to_json(), indent=2) + "\n")
    except OSError as error:
        raise PredictionError(
            f"cannot write {out}: {error.strerror}; copy the predictions to a folder "
            "that can be written"
        ) from error
    return judgement


def report_run(
    run_dir: Path,
    table: pd.DataFrame,
    out: Path,
    *,
    device: torch.device,
    sensitivity: float = 0.95,
    show_ids: bool = False,
) -> None:
    """Write a run's page.

    Args:
        run_dir: a run's folder.
        table: its predictions, on the store it trained on.
        out: the page.
        device: where to compute activation maps.
        sensitivity: of the operating points, in (0, 1].
        show_ids: write slice, study and patient ids into the page.

    Raises:
        IchfastError: no run, no good checkpoint, no store, predictions without labels
            or of slices that the store does not hold.
    """
    run = open_run(run_dir)
    record, recipe = run.record, run.record.recipe
    model = run.load_model(device)
    with Store(record.store) as store:
        position_of = pd.Index(store.table["slice_id"].astype(str))
        _check_same_slices(table, position_of, store)
        level = choose_level(store, recipe.data)

        def slice_of(slice_id: str) -> npt.NDArray[np.uint16]:
            return store.slice_HW(int(position_of.get_loc(slice_id)), level)

        def maps_of(slice_ids: Sequence[str]) -> npt.NDArray[np.float32]:
            return activations_of(slice_ids, model, store, record, device)

        write_report(
            out,
            ReportData(
                title=f"{recipe.name}: {recipe.model.arch} at {recipe.data.size} px",
                notices=[LEAK_NOTICE] if recipe.folds.kind == "slice" else [],
                history=read_history(run_dir),
                predictions=table,
                slice_of=slice_of,
                activations_of=maps_of,
                sensitivity=sensitivity,
                recipe=to_dict(recipe),
                environment=record.environment,
                data={**store.header.counts, **record.counts},
                show_ids=show_ids,
            ),
        )


def _check_same_slices(
    table: pd.DataFrame, position_of: pd.Index[str], store: Store
) -> None:
    num_other = int((~table["slice_id"].astype(str).isin(position_of)).sum())
    if num_other:
        raise PredictionError(
            f"{num_other:,} of {len(table):,} predicted slices are not in "
            f"{store.path}, which the run trained on; a page shows predictions of "
            "that store"
        )
