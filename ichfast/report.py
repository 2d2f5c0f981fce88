"""The report of a run: one HTML page that needs nothing but itself.

1. Pictures are data URIs. The page asks the network for nothing, and its own
   security policy forbids it to.
2. Whatever comes from outside (ids, settings, titles) is escaped.
3. No slice, study, series or patient id is in the page unless `show_ids`;
   slices have rank numbers instead.
4. The file is written whole or not at all.

Shape letters: N labelled slices, K classes, H rows, W columns.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from ichfast import figures, pictures
from ichfast.errors import IchfastError
from ichfast.evaluation import Evaluation, evaluate, labelled_rows
from ichfast.files import write_text_atomically
from ichfast.labels import CLASSES
from ichfast.metrics import slice_log_loss_N
from ichfast.predictions import labels_NK as labels_of
from ichfast.predictions import probs_NK as probs_of
from ichfast.scoretable import format_score
from ichfast.windows import PRESETS

CASES_A_GROUP = 6
"""Slices shown of each kind: each has three pictures of up to 120 KB."""

CASE_WINDOWS = {"brain": 512, "subdural": 256, "bone": 256}
"""The windows of a slice's pictures, and the longest side of each in pixels."""


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """What a report tells of."""

    title: str
    history: pd.DataFrame
    """One row an epoch: epoch, phase, train_loss, valid_loss,
    valid_weighted_log_loss, valid_accuracy, learning_rate, slices_per_s, seconds,
    wait_share. Without rows, the page has no curves."""

    predictions: pd.DataFrame
    """Columns as in `ichfast.predictions`; some slice must have labels."""

    slice_of: Callable[[str], npt.NDArray[np.uint16]]
    """Gives the stored pixels (H, W) of a slice id."""

    recipe: Mapping[str, Any]
    environment: Mapping[str, Any]
    data: Mapping[str, Any]
    """Counts: slices, series, patients, rejected and so on."""

    show_ids: bool = False
    """Write slice, study and patient ids beside the pictures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A chart as data URIs, for light and for dark paper."""

    caption: str
    light: str
    dark: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One slice as the page shows it."""

    rank: int
    loss: float
    pictures: dict[str, str]
    """Data URIs by window name."""
    answers: list[tuple[str, float, bool]]
    """By class: its name, the probability, whether it is labelled."""
    ids: str
    """Empty unless ids are shown."""


def write_report(out: Path, report: ReportData) -> None:
    """Write the report of a run as one self-contained HTML page, atomically.

    Args:
        out: the page, usually ``report.html``. Replaced if it exists.
        report: what to tell.

    Raises:
        PredictionError: the predictions cannot be judged, as in `evaluation.evaluate`.
        StoreError: a slice cannot be fetched.
        IchfastError: the page cannot be written.
    """
    labelled = labelled_rows(report.predictions)
    evaluation = evaluate(report.predictions)
    page = _template().render(
        title=report.title,
        evaluation=evaluation,
        auc_any=evaluation.slice.classes["any"].auc,
        best_epoch=_best_epoch(report.history),
        history=report.history,
        result_charts=_result_charts(evaluation, labelled),
        training_charts=_training_charts(report.history),
        groups=list(_case_groups(labelled, report)),
        windows={name: PRESETS[name] for name in CASE_WINDOWS},
        folds=_fold_rows(labelled),
        facts={
            "Data": _flat(report.data, number_format=","),
            "Recipe": _flat(report.recipe),
            "Environment": _flat(report.environment),
        },
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(out, page)
    except OSError as error:
        raise IchfastError(f"cannot write {out}: {error.strerror}") from error


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = format_score
    return environment.get_template("report.html.jinja")


def _best_epoch(history: pd.DataFrame) -> int | None:
    """The row, counted from 1, of the least weighted validation loss."""
    losses = history["valid_weighted_log_loss"].dropna()
    if losses.empty:
        return None
    return int(history.index.get_indexer(pd.Index([losses.idxmin()]))[0]) + 1


def _result_charts(evaluation: Evaluation, labelled: pd.DataFrame) -> list[Chart]:
    judged = (probs_of(labelled), labels_of(labelled))
    return [
        _chart(
            "What each class costs, beside what predicting its prevalence costs.",
            figures.loss_bars,
            evaluation,
        ),
        _chart("ROC curve of each class.", figures.roc_curves, *judged),
        _chart(
            "Precision over sensitivity of each class.",
            figures.precision_recall_curves,
            *judged,
        ),
        _chart(
            "Calibration. Bars are 95% intervals of any; bins of fewer than "
            f"{figures.MIN_BIN_COUNT} slices are left out.",
            figures.calibration_curves,
            *judged,
        ),
    ]


def _training_charts(history: pd.DataFrame) -> list[Chart]:
    if history.empty:
        return []
    return [
        _chart(caption, draw, history)
        for caption, draw in (
            (
                "Loss by epoch. Dotted: the recipe's next phase begins.",
                figures.loss_curves,
            ),
            (
                "Share of right answers at 0.5, and the learning rate.",
                figures.schedule_curves,
            ),
            (
                "Training speed, and the share of time lost waiting for slices.",
                figures.speed_curves,
            ),
        )
    ]


def _chart(caption: str, draw: Callable[..., Figure], *drawn: Any) -> Chart:
    light, dark = (
        _data_uri(pictures.figure_png(draw(*drawn, theme)))
        for theme in (figures.LIGHT, figures.DARK)
    )
    return Chart(caption=caption, light=light, dark=dark)


def _case_groups(
    labelled: pd.DataFrame, report: ReportData
) -> Iterator[tuple[str, str, list[Case]]]:
    """Give heading, explanation and slices of each group that is not empty.

    A study gives at most one slice to a group, else neighbours would fill it.
    """
    loss_N = slice_log_loss_N(probs_of(labelled), labels_of(labelled))
    ranked = labelled.assign(loss=loss_N).sort_values("loss", kind="stable")
    positive = ranked[ranked["label_any"] == 1]
    negative = ranked[ranked["label_any"] == 0]
    worst = _one_a_study(positive.iloc[::-1])
    best = _one_a_study(positive[~positive["slice_id"].isin(worst["slice_id"])])
    groups = (
        ("Worst with hemorrhage", "Labelled positive, the highest loss first.", worst),
        (
            "Worst without hemorrhage",
            "Labelled negative, the highest loss first.",
            _one_a_study(negative.iloc[::-1]),
        ),
        ("Best with hemorrhage", "Labelled positive, the lowest loss first.", best),
    )
    for heading, explanation, rows in groups:
        if len(rows):
            yield heading, explanation, _cases(rows, report)


def _one_a_study(ranked: pd.DataFrame) -> pd.DataFrame:
    return ranked.drop_duplicates("study").head(CASES_A_GROUP)


def _cases(rows: pd.DataFrame, report: ReportData) -> list[Case]:
    probs_NK, is_labelled_NK = probs_of(rows), labels_of(rows) == 1
    keys = rows[["slice_id", "study", "patient"]].astype(str).to_numpy()
    cases = []
    for n, (slice_id, study, patient) in enumerate(keys):
        stored_HW = report.slice_of(slice_id)
        ids = f"slice {slice_id}, study {study}, patient {patient}"
        cases.append(
            Case(
                rank=n + 1,
                loss=float(rows["loss"].iloc[n]),
                pictures={
                    name: _data_uri(
                        pictures.slice_png(stored_HW, PRESETS[name], max_side=side)
                    )
                    for name, side in CASE_WINDOWS.items()
                },
                answers=list(zip(CLASSES, probs_NK[n], is_labelled_NK[n], strict=True)),
                ids=ids if report.show_ids else "",
            )
        )
    return cases


def _fold_rows(labelled: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            "fold": fold,
            "slices": len(rows),
            "studies": rows["study"].nunique(dropna=False),
            "patients": rows["patient"].nunique(dropna=False),
            "positives": int(rows["label_any"].sum()),
        }
        for fold, rows in labelled.groupby("fold")
    ]


def _flat(settings: Mapping[str, Any], *, number_format: str = "") -> dict[str, str]:
    """Nested settings as one level of dotted names and printable values."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            inner = _flat(value, number_format=number_format)
            flat |= {f"{name}.{key}": text for key, text in inner.items()}
        elif isinstance(value, (list, tuple)):
            flat[name] = ", ".join(map(str, value))
        else:
            is_count = type(value) is int
            flat[name] = format(value, number_format) if is_count else str(value)
    return flat


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
