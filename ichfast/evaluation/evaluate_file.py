"""A predictions file to its figures, written beside it as `metrics.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ichfast.errors import PredictionError
from ichfast.evaluation.evaluation import Evaluation, evaluate
from ichfast.evaluation.leaks import check_leaks
from ichfast.evaluation.predictions import read_predictions
from ichfast.system.files import output_path

METRICS_FILE = "metrics.json"
"""Beside the predictions: every figure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What a predictions file is worth."""

    predictions: str
    """Name of the file."""
    leaks: dict[str, int]
    """As `evaluation.leaks.check_leaks` counts them."""
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
        path: as `evaluation.predictions.read_predictions` takes it.
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
    advice = "; copy the predictions to a folder that can be written"
    with output_path(out, PredictionError, advice) as temporary:
        temporary.write_text(json.dumps(judgement.to_json(), indent=2) + "\n")
    return judgement
