"""An evaluation as a table: text for the terminal, columns for the page of a run.

A figure of `evaluation.evaluation.ClassScores` is shown where it has a line in
`TEXT_ROWS` or `PAGE_COLUMNS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ichfast.evaluation.bootstrap import Interval
from ichfast.evaluation.evaluation import ClassScores, Evaluation, LevelScores
from ichfast.evaluation.levels import PLURALS
from ichfast.evaluation.subgroups import Subgroup
from ichfast.labels import CLASSES


def format_score(score: float | None, decimals: int = 4) -> str:
    """Write a score with fixed decimals.

    Args:
        score: None, an undefined score, becomes a dash.
        decimals: digits after the point.
    """
    return "-" if score is None else f"{score:.{decimals}f}"


def format_percent(share: float | None) -> str:
    """Write a share as a percentage; a dash where it is undefined."""
    return "-" if share is None else f"{100 * share:.1f}%"


def format_interval(interval: Interval | None, decimals: int = 4) -> str:
    """Write an interval as low to high.

    Args:
        interval: None, an undefined interval, becomes a dash.
        decimals: digits after the point.
    """
    if interval is None:
        return "-"
    return " to ".join(format_score(end, decimals) for end in interval)


TEXT_ROWS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("labelled", "count", "{:,}".format),
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
"""Heading, field of `ClassScores` and format of each row. Rows for its interval and its
``prevalence_...`` field follow where there are any. A class without labels has dashes.
"""


@dataclass(frozen=True, slots=True)
class PageColumn:
    """A column of the page's table of classes."""

    heading: tuple[str, ...]
    """The lines of the heading."""
    field: str
    """A field of `ClassScores`."""
    decimals: int = 4
    below: str = ""
    """What stands in parentheses below the figure: the name of a field of
    `ClassScores`, ``interval``, or nothing."""

    def cell(
        self, scores: ClassScores, intervals: Mapping[str, Interval | None]
    ) -> tuple[str, str]:
        """The figure, and what stands below it.

        Args:
            scores: of the class.
            intervals: of the class, by name of the figure.
        """
        value = getattr(scores, self.field)
        text = f"{value:,}" if isinstance(value, int) else self._format(value)
        if self.below == "interval":
            return text, format_interval(intervals.get(self.field), 3)
        if self.below == "prevalence":
            return text, format_percent(scores.prevalence)
        return text, self._format(getattr(scores, self.below)) if self.below else ""

    def _format(self, score: float | None) -> str:
        return format_score(score, self.decimals)


PAGE_COLUMNS = (
    PageColumn(("With a", "label"), "count"),
    PageColumn(("Positive slices", "(prevalence)"), "positives", below="prevalence"),
    PageColumn(("Log loss", "(of prevalence)"), "log_loss", 4, "prevalence_log_loss"),
    PageColumn(("AUC", "(95% interval)"), "auc", below="interval"),
    PageColumn(
        ("Average precision", "(95% interval)"), "average_precision", below="interval"
    ),
    PageColumn(("Sensitivity at", "90% specificity"), "sensitivity_at_90", 3),
    PageColumn(("Sensitivity at", "95% specificity"), "sensitivity_at_95", 3),
    PageColumn(("Brier score", "(of prevalence)"), "brier", 4, "prevalence_brier"),
    PageColumn(("Calibration", "error"), "calibration_error"),
)


def format_evaluation(evaluation: Evaluation) -> str:
    """Write an evaluation as text, with what the prevalence scores beside it."""
    first = evaluation.first
    counts, *others = (
        f"{level.count:,} {PLURALS[name]}" for name, level in evaluation.levels.items()
    )
    if others:
        *some, last = others
        counts += f" of {', '.join(some)} and {last}" if some else f" of {last}"
    if evaluation.unlabelled:
        counts += f"; {evaluation.unlabelled:,} more have no label and are left out"
    lines = [counts]
    if without := first.unlabelled_classes:
        lines.append(
            f"no label of {', '.join(without)}: loss and accuracy are of the others"
        )
    if evaluation.has_head:
        lines.append("a series has the probability that a head gives it")
    replicates = evaluation.bootstrap["replicates"]
    if replicates:
        lines.append(f"95% intervals: {replicates:,} bootstrap replicates of patients")
    lines += [f"warning: {text}" for text in evaluation.warnings]
    lines += ["", _row("", "model", "prevalence", "ratio")]
    for name, level in evaluation.levels.items():
        lines += _loss_rows(name, level)
    accuracies = (first.accuracy, first.prevalence_accuracy)
    lines.append(_row("accuracy", *map(format_score, accuracies)))
    for name, level in evaluation.levels.items():
        lines.append("")
        if warning := evaluation.warning_of(name):
            lines.append(f"warning: {warning}")
        lines += _class_rows(name, level)
    return "\n".join(lines)


SUBGROUP_HEADINGS = (
    *("count", "patients", "positives", "weighted log loss", "AUC of any"),
    *("average precision", "sens. at 90% spec."),
)
"""Headings of `subgroup_cells`."""


def subgroup_cells(group: Subgroup) -> tuple[list[str], list[tuple[str, str]]]:
    """The counts of a group, and its figures, each with its interval.

    Args:
        group: without figures, the second list is empty.
    """
    counts = [f"{n:,}" for n in (group.count, group.patients, group.positives)]
    if group.scores is None:
        return counts, []
    scores = group.scores.classes["any"]
    assert scores is not None, "a group with figures has labels of any"
    loss = group.scores.weighted_log_loss
    figures = [(format_score(loss), group.scores.weighted_log_loss_interval)]
    for name in ("auc", "average_precision", "sensitivity_at_90"):
        value, interval = getattr(scores, name), scores.intervals.get(name)
        figures.append((format_score(value), interval))
    return counts, [(text, _short_interval(interval)) for text, interval in figures]


def format_subgroups(column: str, groups: Sequence[Subgroup]) -> str:
    """Write the groups of a column as text.

    Args:
        column: of the store.
        groups: its groups.
    """
    rows = [[f"by {column}", *SUBGROUP_HEADINGS]]
    for group in groups:
        counts, figures = subgroup_cells(group)
        shown = [f"{text} ({interval})" for text, interval in figures]
        rows.append([group.name, *counts, *(shown or [f"none: {group.reason}"])])
    widths = [max(len(row[at]) for row in rows if at < len(row)) for at in range(8)]
    is_left = (True, False, False, False, True, True, True, True)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(row, widths, is_left, strict=False)
        ).rstrip()
        for row in rows
    )


def _loss_rows(name: str, scores: LevelScores) -> Iterator[str]:
    losses = (scores.weighted_log_loss, scores.prevalence_loss, scores.ratio)
    yield _row(f"loss by {name}", *map(format_score, losses))
    if scores.weighted_log_loss_interval:
        yield _row(_INTERVAL, _short_interval(scores.weighted_log_loss_interval))


def _class_rows(name: str, scores: LevelScores) -> Iterator[str]:
    classes = list(scores.classes.values())
    yield _row(f"by {name}", *CLASSES)
    for heading, field, form in TEXT_ROWS:
        yield _row(heading, *_cells(classes, field, form))
        if any(one and field in one.intervals for one in classes):
            shown = [one.intervals[field] if one else None for one in classes]
            yield _row(_INTERVAL, *map(_short_interval, shown))
        if f"prevalence_{field}" in ClassScores.__dataclass_fields__:
            yield _row("  of prevalence", *_cells(classes, f"prevalence_{field}", form))


def _cells(
    classes: Iterable[ClassScores | None], field: str, form: Callable[[Any], str]
) -> list[str]:
    return ["-" if one is None else form(getattr(one, field)) for one in classes]


_INTERVAL = "  95% interval"


def _short_interval(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval[0]:.3f}-{interval[1]:.3f}"


def _row(label: str, *cells: str) -> str:
    widths = [max(len(name) + 2, 13) for name in CLASSES]
    padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False))
    return f"{label:<19}" + "".join(padded)
