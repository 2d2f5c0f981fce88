"""Comparison of runs with what the reference and other teams published.

The table continues the reference's summary table. An unknown value is None, and a dash
in the text. Results of other teams are on other slices, and stand apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd

from ichfast.errors import PredictionError
from ichfast.recipes.recipe import Recipe
from ichfast.recipes.reference import PUBLISHED
from ichfast.recipes.resolve import RECIPES
from ichfast.recipes.team_results import TEAM_RESULTS, VALIDATION, TeamResult
from ichfast.runs.record import RunRecord, read_record
from ichfast.series.record import (
    BACKBONES,
    SeriesRecord,
    is_series_run,
    read_series_record,
)
from ichfast.system.files import output_path
from ichfast.system.spreadsheet import escape_formula
from ichfast.training.history import has_history, read_history


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One experiment: a run, or one that somebody published."""

    name: str
    published_by: str = ""
    """``reference``, ``another team``, or empty for a run of ours."""
    measured_on: str = VALIDATION
    """The slices of accuracy, losses and AUC."""
    network: str
    addition: str
    """Additions to plain training on one window."""
    size: int | None
    """Side of the model's input, in pixels."""
    folds: str
    """``patient``; or ``slice``, which validates on patients that it trained on. With
    ``seen`` if the first weights may have been trained on patients that validate.
    Empty for other teams."""
    accuracy: float | None
    """Accuracy at 0.5 on the validation slices, in the best epoch."""
    train_loss_smooth: float | None
    """fastai's moving average of the training loss at the end of the best epoch, which
    is what the reference published; a run's `metrics.csv` names it so."""
    valid_loss: float | None
    """Unweighted validation loss of the best epoch."""
    weighted_loss: float | None = None
    """The same, any counting 2 of 7, as in the competition. The reference does not give
    it."""
    auc_any: float | None = None
    """Area under the ROC curve of any by slice; only of a team that gives no loss."""
    leaderboard: float | None
    """Score of the reference on the public stage-1 leaderboard."""
    leaderboard_tta: float | None
    """The same with test-time augmentation."""
    epochs: int | None
    """Finished epochs; for the reference, planned ones."""
    images_per_s: float | None
    """Training speed in slices/s; for the reference see
    `recipes.reference.Published`."""
    gpu_minutes: float | None
    """Minutes of training, for the reference with validation; None without a GPU."""

    @property
    def is_ours(self) -> bool:
        """Whether it is a run."""
        return not self.published_by


def compare_runs(paths: Sequence[Path]) -> list[Row]:
    """List the experiments of the reference and other teams, then some runs.

    Args:
        paths: folders of runs, which need not be finished.

    Raises:
        CheckpointError: a folder that is no run, or a damaged `metrics.csv`.
        RecipeError: a damaged record of a run.
    """
    published = [*map(_reference_row, PUBLISHED), *map(_team_row, TEAM_RESULTS)]
    return [*published, *map(_run_row, paths)]


def _team_row(result: TeamResult) -> Row:
    return Row(
        **asdict(result),
        published_by="another team",
        folds="",
        accuracy=None,
        train_loss_smooth=None,
        valid_loss=None,
        leaderboard=None,
        leaderboard_tta=None,
        epochs=None,
        images_per_s=None,
        gpu_minutes=None,
    )


def _reference_row(name: str) -> Row:
    published, recipe = PUBLISHED[name], RECIPES[name]()
    return Row(
        name=name,
        published_by="reference",
        network=recipe.model.arch,
        addition=_addition(recipe, {}),
        size=recipe.data.size,
        folds=recipe.folds.unit,
        accuracy=published.accuracy,
        train_loss_smooth=published.train_loss,
        valid_loss=published.valid_loss,
        leaderboard=published.leaderboard,
        leaderboard_tta=published.leaderboard_tta,
        epochs=sum(phase.epochs for phase in recipe.train.phases),
        images_per_s=published.images_per_s,
        gpu_minutes=published.gpu_minutes,
    )


def _run_row(path: Path) -> Row:
    if is_series_run(path):
        return _series_row(path)
    record = read_record(path)
    recipe = record.recipe
    history = read_history(path) if has_history(path) else pd.DataFrame()
    best = None if history.empty else history.iloc[int(history["valid_loss"].argmin())]
    return Row(
        name=path.resolve().name,
        network=recipe.model.arch,
        addition=_addition(recipe, record.counts.train_labels),
        size=recipe.data.size,
        folds=recipe.folds.unit
        + (", seen" if record.counts.valid_patients_seen else ""),
        accuracy=None if best is None else float(best["valid_accuracy"]),
        train_loss_smooth=(None if best is None else float(best["train_loss_smooth"])),
        valid_loss=None if best is None else float(best["valid_loss"]),
        weighted_loss=(
            None if best is None else float(best["valid_weighted_log_loss"])
        ),
        leaderboard=None,
        leaderboard_tta=None,
        epochs=len(history),
        images_per_s=(
            None if best is None else float(history["slices_per_s"].median())
        ),
        gpu_minutes=_gpu_minutes(record, history),
    )


def _series_row(path: Path) -> Row:
    """The head of a series run, without the blend, in its best epoch."""
    record = read_series_record(path)
    head, first = record.series, record.features[0]
    backbone = read_record(path / BACKBONES / "0").recipe
    history = read_history(path) if has_history(path) else pd.DataFrame()
    weighted = history.get("valid_weighted_log_loss")
    best = None if weighted is None else history.iloc[int(weighted.argmin())]
    return Row(
        name=path.resolve().name,
        network=f"{head.kind} over {first.arch}",
        addition=f"series head, {'+'.join(first.windows)}",
        size=first.size,
        folds=backbone.folds.unit
        + (", seen" if record.counts.valid_patients_seen else ""),
        accuracy=None if best is None else float(best["valid_accuracy"]),
        train_loss_smooth=(None if best is None else float(best["train_loss_smooth"])),
        valid_loss=None if best is None else float(best["valid_loss"]),
        weighted_loss=None if weighted is None else float(weighted.min()),
        leaderboard=None,
        leaderboard_tta=None,
        epochs=len(history),
        images_per_s=None,  # it reads features
        gpu_minutes=_gpu_minutes(record, history),
    )


def _gpu_minutes(
    record: RunRecord | SeriesRecord, history: pd.DataFrame
) -> float | None:
    if history.empty or not record.environment.gpus:
        return None
    return float(history["seconds"].sum() / 60)


def _addition(recipe: Recipe, train_labels: Mapping[str, int]) -> str:
    """Additions of a recipe, in the order in which they act on a slice.

    Args:
        recipe: of the run.
        train_labels: known labels by class; classes without any are named.
    """
    unlabelled = [name for name, count in train_labels.items() if not count]
    data, augment, train = recipe.data, recipe.augment, recipe.train
    weights = Path(recipe.model.weights)
    additions = {
        f"weights of {weights.parent.name or weights.name}": bool(recipe.model.weights),
        "ImageNet": recipe.model.pretrained != "no",
        f"{data.slab_depth} slices": data.neighbours > 0,
        "+".join(data.windows): len(data.windows) > 1,
        "cutout": augment.cutout_probability > 0,
        "mixup": any(phase.mixup_alpha for phase in train.phases),
        "any x 2": train.any_weight == 2.0,
        "EMA": train.ema_decay > 0,
        f"no labels of {'+'.join(unlabelled)}": bool(unlabelled),
    }
    return ", ".join(name for name, is_there in additions.items() if is_there)


_COLUMNS = (
    ("name", "name", "{}"),
    ("network", "network", "{}"),
    ("addition", "addition", "{}"),
    ("size", "size", "{}"),
    ("folds", "folds", "{}"),
    ("accuracy", "accuracy", "{:.4f}"),
    ("smooth train loss", "train_loss_smooth", "{:.5f}"),
    ("valid loss", "valid_loss", "{:.5f}"),
    ("weighted", "weighted_loss", "{:.5f}"),
    ("LB", "leaderboard", "{:.3f}"),
    ("LB TTA", "leaderboard_tta", "{:.3f}"),
    ("epochs", "epochs", "{}"),
    ("images/s", "images_per_s", "{:.0f}"),
    ("GPU-min", "gpu_minutes", "{:.0f}"),
)
"""Heading, field and format of each column of the text."""

_TEAM_COLUMNS = (
    *_COLUMNS[:4],
    ("weighted", "weighted_loss", "{:.5f}"),
    ("AUC of any", "auc_any", "{:.4f}"),
    ("measured on", "measured_on", "{}"),
)
"""The same for the results of other teams."""

_NUM_TEXT_COLUMNS = 3
"""The first columns, which are aligned left."""


def format_comparison(rows: Sequence[Row]) -> str:
    """Write the rows as text.

    Those of the reference and ours are one table, with a line between; those of other
    teams follow in their own.
    """
    teams = [row for row in rows if row.published_by == "another team"]
    others = [row for row in rows if row not in teams]
    lines = _lines(others, _COLUMNS)
    num_published = sum(not row.is_ours for row in others)
    lines.insert(num_published + 1, "-" * max(map(len, lines)))
    lines += [
        "",
        "Above the line: what the reference published. Slice folds put patients on",
        "both sides, so losses compare only within one kind of folds, and only on",
        "the same slices. Smooth train loss: fastai's moving average at the end of",
        "the epoch, train_loss_smooth in metrics.csv. Weighted: any counts 2 of 7.",
    ]
    if teams:
        lines += [
            "",
            "What other teams published, on other slices than those above:",
            "",
            *_lines(teams, _TEAM_COLUMNS),
        ]
    return "\n".join(lines)


def _lines(rows: Sequence[Row], columns: Sequence[tuple[str, str, str]]) -> list[str]:
    """The rows as lines of text, with the headings first."""
    cells = [[heading for heading, _, _ in columns]]
    cells += [_cells(row, columns) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < _NUM_TEXT_COLUMNS else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


def _cells(row: Row, columns: Sequence[tuple[str, str, str]]) -> list[str]:
    values = ((getattr(row, name), form) for _, name, form in columns)
    return ["-" if v in (None, "") else form.format(v) for v, form in values]


def write_comparison(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as csv, atomically; an unknown value is empty.

    Args:
        rows: the experiments.
        path: the csv. Replaced if it exists.

    Raises:
        PredictionError: the file cannot be written.
    """
    table = pd.DataFrame(map(asdict, rows), columns=[each.name for each in fields(Row)])
    table = table.astype({"size": "Int64", "epochs": "Int64"})  # may be missing
    # A run is named by its folder.
    table["name"] = table["name"].map(escape_formula)
    with output_path(path, PredictionError) as temporary:
        table.to_csv(temporary, index=False)
