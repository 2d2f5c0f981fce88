"""An evaluation as a text table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ichfast.evaluation.bootstrap import Interval
from ichfast.evaluation.evaluation import ClassScores, Evaluation, LevelScores
from ichfast.labels import CLASSES

LEVELS = ("slice", "study", "patient")


def format_evaluation(evaluation: Evaluation) -> str:
    """The evaluation as a text table, with what the prevalence scores beside it."""
    level = evaluation.slice
    counts = (
        f"{level.count:,} slices of {evaluation.study.count:,} studies and "
        f"{evaluation.patient.count:,} patients"
    )
    if evaluation.unlabelled:
        counts += f"; {evaluation.unlabelled:,} more have no labels and are left out"
    replicates = evaluation.bootstrap["replicates"]
    lines = [counts]
    if replicates:
        lines.append(f"95% intervals: {replicates:,} bootstrap replicates of patients")
    lines += ["", _row("", "model", "prevalence", "ratio")]
    for name in LEVELS:
        lines += _loss_rows(name, getattr(evaluation, name))
    accuracies = (level.accuracy, level.prevalence_accuracy)
    lines.append(_row("accuracy", *map(format_score, accuracies)))
    for name in LEVELS:
        lines += ["", *_class_rows(name, getattr(evaluation, name))]
    return "\n".join(lines)


def format_score(score: float | None, decimals: int = 4) -> str:
    """A score with fixed decimals; a dash where it is undefined."""
    return "-" if score is None else f"{score:.{decimals}f}"


def _loss_rows(name: str, scores: LevelScores) -> Iterator[str]:
    losses = (scores.weighted_log_loss, scores.prevalence_loss, scores.ratio)
    yield _row(f"loss by {name}", *map(format_score, losses))
    if scores.weighted_log_loss_interval:
        yield _row(_INTERVAL, _format_interval(scores.weighted_log_loss_interval))


def _class_rows(name: str, scores: LevelScores) -> Iterator[str]:
    classes = scores.classes.values()
    yield _row(f"by {name}", *CLASSES)
    for label, field, form in _FIGURES:
        yield _row(label, *(form(getattr(one, field)) for one in classes))
        if any(field in one.intervals for one in classes):
            yield _row(_INTERVAL, *(_interval_of(one, field) for one in classes))
        if f"prevalence_{field}" in ClassScores.__dataclass_fields__:
            constants = (getattr(one, f"prevalence_{field}") for one in classes)
            yield _row("  of prevalence", *map(form, constants))


def _interval_of(scores: ClassScores, field: str) -> str:
    return _format_interval(scores.intervals[field])


def _format_interval(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval[0]:.3f}-{interval[1]:.3f}"


def _row(label: str, *cells: str) -> str:
    widths = [max(len(name) + 2, 13) for name in CLASSES]
    padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False))
    return f"{label:<19}" + "".join(padded)


_INTERVAL = "  95% interval"

_FIGURES: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("positives", "positives", "{:,}".format),
    ("prevalence", "prevalence", format_score),
    ("log loss", "log_loss", format_score),
    ("Brier score", "brier", format_score),
    ("AUC", "auc", format_score),
    ("average precision", "average_precision", format_score),
    ("sens. at 90% spec.", "sensitivity_at_90", format_score),
    ("sens. at 95% spec.", "sensitivity_at_95", format_score),
    ("calibration error", "calibration_error", format_score),
)
