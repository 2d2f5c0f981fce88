"""What a trained run comes to: figures of its predictions, and its page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ichfast.errors import PredictionError
from ichfast.evaluation import Evaluation, evaluate
from ichfast.files import write_text_atomically
from ichfast.history import read_history
from ichfast.leaks import check_leaks
from ichfast.predictions import read_predictions
from ichfast.report import ReportData, write_report
from ichfast.runrecord import read_record
from ichfast.settings import to_dict
from ichfast.store import Store

METRICS_FILE = "metrics.json"
"""Beside the predictions: every figure."""


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
    run_dir: Path, table: pd.DataFrame, out: Path, *, show_ids: bool = False
) -> None:
    """Write a run's page.

    Args:
        run_dir: a run's folder.
        table: its predictions, on the store it trained on.
        out: the page.
        show_ids: write slice, study and patient ids into the page.

    Raises:
        IchfastError: no run, no store, predictions without labels or of slices that
            the store does not hold.
    """
    record = read_record(run_dir)
    with Store(record.store) as store:
        position_of = pd.Index(store.table["slice_id"].astype(str))
        _check_same_slices(table, position_of, store)

        def slice_of(slice_id: str) -> npt.NDArray[np.uint16]:
            return store.slice_HW(int(position_of.get_loc(slice_id)))

        recipe = record.recipe
        write_report(
            out,
            ReportData(
                title=f"{recipe.name}: {recipe.model.arch} at {recipe.data.size} px",
                history=read_history(run_dir),
                predictions=table,
                slice_of=slice_of,
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
