"""Evaluation of a predictions file, written next to it as `metrics.json`.

ichfast never reads that file. Its last field is its checksum, which
`ichfast.system.checksums.check_document` compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ichfast.errors import PredictionError
from ichfast.evaluation.evaluation import Evaluation, evaluate
from ichfast.evaluation.leaks import check_leaks
from ichfast.evaluation.predictions import read_predictions
from ichfast.evaluation.subgroups import Subgroup, evaluate_subgroups, read_groups
from ichfast.system.checksums import with_checksum
from ichfast.system.files import output_path

METRICS_FILE = "metrics.json"
"""Name of the file with every figure, next to the predictions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEvaluation:
    """The evaluation of a predictions file."""

    predictions: str
    """Name of the file."""
    leaks: dict[str, int]
    """Counts of `evaluation.leaks.check_leaks`."""
    evaluation: Evaluation
    subgroups: dict[str, list[Subgroup]]
    """By column of the store."""

    def to_json(self) -> dict[str, Any]:
        """Return numbers, strings, None and dicts, the headline figures first."""
        return {
            **self.evaluation.to_json(),
            "subgroups": {
                column: [asdict(group) for group in groups]
                for column, groups in self.subgroups.items()
            },
            "leaks": self.leaks,
            "predictions": self.predictions,
        }


def evaluate_file(
    path: Path,
    *,
    replicates: int,
    allow_leak: bool,
    level: str | None = None,
    by: Sequence[str] = (),
    store: Path | None = None,
) -> FileEvaluation:
    """Evaluate a predictions file, and write every figure next to it, atomically.

    Args:
        path: a file that `evaluation.predictions.read_predictions` reads.
        replicates: bootstrap replicates for the intervals; 0 for no intervals.
        allow_leak: accept patients that the model was trained on, or may have been.
        level: a level to evaluate, as in `evaluate`; None for the usual ones.
        by: columns of the store, some of `store.groups.GROUP_COLUMNS`, of which each
            group is evaluated too, at the first level.
        store: the store that the predicted slices are in; only for `by`.

    Raises:
        PredictionError: no such file, no label at that level, patients that the run
            trained on without `allow_leak`, an unknown column, slices that are not in
            the store, or a folder that cannot be written.
        StoreError: the store cannot be read.
    """
    table = read_predictions(path)
    groups = read_groups(table, store, by) if store else {}
    leaks = check_leaks(table, allow=allow_leak)
    evaluation = evaluate(table, replicates=replicates, level=level)
    result = FileEvaluation(
        predictions=path.name,
        leaks=leaks,
        evaluation=evaluation,
        subgroups={
            column: evaluate_subgroups(
                table, each, level=evaluation.first_name, replicates=replicates
            )
            for column, each in groups.items()
        },
    )
    out = path.with_name(METRICS_FILE)
    advice = "; copy the predictions to a folder that can be written"
    with output_path(out, PredictionError, advice) as temporary:
        temporary.write_text(with_checksum(result.to_json()), "utf-8")
    return result
