"""The report of a run as one self-contained HTML page.

1. Pictures are data URIs. The page asks the network for nothing, has no script, and
   its own security policy forbids both.
2. All text from outside (ids, settings, titles) is escaped.
3. No slice, study, series or patient id is on the page unless `show_ids` is set; slices
   are numbered instead.
4. The file is written whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from ichfast.errors import IchfastError
from ichfast.evaluation.bootstrap import REPLICATES
from ichfast.evaluation.calibration import Calibration
from ichfast.evaluation.calibration_table import (
    CLASS_HEADINGS,
    THRESHOLD_HEADINGS,
    class_cells,
    threshold_cells,
    why_unfitted,
)
from ichfast.evaluation.cases import choose_cases
from ichfast.evaluation.evaluation import Evaluation
from ichfast.evaluation.levels import PLURALS
from ichfast.evaluation.predictions import labels_NK as labels_of
from ichfast.evaluation.results import compute_results
from ichfast.evaluation.scoretable import (
    PAGE_COLUMNS,
    SUBGROUP_HEADINGS,
    format_interval,
    format_percent,
    format_score,
    subgroup_cells,
)
from ichfast.evaluation.study_cases import choose_studies
from ichfast.evaluation.subgroups import evaluate_subgroups
from ichfast.labels import CLASSES
from ichfast.report.cards import (
    CARD_SIDE,
    CARD_WINDOWS,
    ActivationsOf,
    SliceOf,
    make_cards,
)
from ichfast.report.charts.captions import (
    curve_charts,
    disagreement_charts,
    reliability_charts,
    result_charts,
    subgroup_charts,
    training_charts,
)
from ichfast.report.studies import FIELD, make_study_groups
from ichfast.store.groups import Groups
from ichfast.store.tables import patients_N
from ichfast.system.files import output_path
from ichfast.windows import PRESETS


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """The contents of a report."""

    title: str
    notices: Sequence[str] = ()
    """Sentences that a reader must know before the figures."""

    history: pd.DataFrame
    """One row an epoch, with the columns of `training.history`. Without rows, the page
    has no curves."""

    predictions: pd.DataFrame
    """Columns as in `ichfast.evaluation.predictions`; some slice or study must have
    labels."""

    groups: Mapping[str, Groups] = field(default_factory=dict)
    """For each column of the store, the group of each row of `predictions`, as
    `ichfast.evaluation.subgroups.groups_of` gives it."""

    slice_of: SliceOf
    activations_of: ActivationsOf
    sensitivity: float = 0.95
    """Share of the positive slices of a class that its operating point finds."""

    calibration: Calibration | None = None
    """The calibration of the run, of which the page has a section."""

    recipe: Mapping[str, Any]
    environment: Mapping[str, Any]
    data: Mapping[str, Any]
    """Counts of the store and the run: slices, series, patients, rejected files."""

    show_ids: bool = False
    """Whether slice, study and patient ids are written below the pictures."""


def write_report(out: Path, report: ReportData) -> None:
    """Write the report of a run as one self-contained HTML page, atomically.

    Args:
        out: the page, usually ``report.html``. Replaced if it exists.
        report: the contents.

    Raises:
        PredictionError: predictions that `evaluation.evaluation.evaluate` refuses, or
            a sensitivity outside (0, 1].
        StoreError: a slice cannot be read.
        IchfastError: the page cannot be written.
    """
    results = compute_results(report.predictions, sensitivity=report.sensitivity)
    subgroups = {
        column: evaluate_subgroups(
            report.predictions,
            groups,
            level=results.evaluation.first_name,
            replicates=REPLICATES,
        )
        for column, groups in report.groups.items()
    }
    studies = choose_studies(report.predictions, sensitivity=report.sensitivity)
    evaluation = results.evaluation
    of_any = results.evaluation.first.classes["any"]
    page = _template().render(
        title=report.title,
        notices=_notices(report, evaluation),
        results=results,
        evaluation=evaluation,
        plurals=PLURALS,
        sensitivity=report.sensitivity,
        replicates=REPLICATES,
        best_epoch=_best_epoch(report.history),
        history=report.history,
        result_charts=result_charts(results),
        curve_charts=curve_charts(results),
        disagreement_charts=disagreement_charts(results),
        training_charts=training_charts(report.history),
        subgroups=subgroups,
        subgroup_charts=subgroup_charts(subgroups, of_any.auc if of_any else None),
        subgroup_headings=SUBGROUP_HEADINGS,
        calibration=report.calibration,
        reliability_charts=reliability_charts(report.calibration),
        class_headings=CLASS_HEADINGS,
        threshold_headings=THRESHOLD_HEADINGS,
        groups=make_cards(
            choose_cases(results.rows),
            results.points,
            slice_of=report.slice_of,
            activations_of=report.activations_of,
        ),
        studies=studies,
        study_groups=make_study_groups(
            studies, slice_of=report.slice_of, has_head=evaluation.has_head
        )
        if studies
        else [],
        study_warning=evaluation.warning_of("study") if studies else "",
        field=FIELD,
        show_ids=report.show_ids,
        windows={name: PRESETS[name] for name in CARD_WINDOWS},
        card_side=CARD_SIDE,
        class_names=CLASSES,
        columns=PAGE_COLUMNS,
        folds=_fold_rows(results.rows),
        facts={
            "Data": _flat(report.data, number_format=","),
            "Recipe": _flat(report.recipe),
            "Environment": _flat(report.environment),
        },
    )
    with output_path(out, IchfastError) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _notices(report: ReportData, evaluation: Evaluation) -> list[str]:
    """What a reader must know, with the warning of the level of the page."""
    warning = evaluation.warning_of(evaluation.first_name)
    return [*report.notices, *([f"Warning: {warning}."] if warning else [])]


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = format_score
    environment.filters["percent"] = format_percent
    environment.filters["interval"] = format_interval
    environment.filters["subgroup_cells"] = subgroup_cells
    environment.filters["class_cells"] = class_cells
    environment.filters["threshold_cells"] = threshold_cells
    environment.filters["why_unfitted"] = why_unfitted
    return environment.get_template("page.html.jinja")


def _best_epoch(history: pd.DataFrame) -> int | None:
    """The epoch, counted from 1, with the lowest weighted validation loss."""
    losses = history["valid_weighted_log_loss"].dropna()
    if losses.empty:
        return None
    return int(history.index.get_indexer(pd.Index([losses.idxmin()]))[0]) + 1


def _fold_rows(labelled: pd.DataFrame) -> list[dict[str, Any]]:
    """Counts of each fold; ``labels`` are positives and known labels of each class."""
    return [
        {
            "fold": fold,
            "slices": len(rows),
            "studies": rows["study"].nunique(dropna=False),
            "patients": len(set(patients_N(rows))),
            "labels": [
                (int((labels_N == 1).sum()), int((~np.isnan(labels_N)).sum()))
                for labels_N in labels_of(rows).T
            ],
        }
        for fold, rows in labelled.groupby("fold")
    ]


def _flat(settings: Mapping[str, Any], *, number_format: str = "") -> dict[str, str]:
    """Flatten nested settings to dotted names and printable values."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        nested = _nested(value)
        if nested is not None:
            inner = _flat(nested, number_format=number_format)
            flat |= {f"{name}.{key}": text for key, text in inner.items()}
        elif isinstance(value, (list, tuple)):
            flat[name] = ", ".join(map(str, value))
        else:
            is_count = type(value) is int
            flat[name] = format(value, number_format) if is_count else str(value)
    return flat


def _nested(value: Any) -> Mapping[str, Any] | None:
    """The settings within a setting, by name; in a list, by index."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
        return {str(place): inner for place, inner in enumerate(value)}
    return None
