"""Runs beside the reference's published experiments: its summary table, continued.

What is not known is None, and a dash in the text. The reference published leaderboard
scores; of a run nobody here knows one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd

from ichfast.errors import CheckpointError, PredictionError
from ichfast.recipes.recipe import Recipe
from ichfast.recipes.reference import PUBLISHED
from ichfast.recipes.resolve import RECIPES
from ichfast.runs.record import RunRecord, read_record
from ichfast.system.files import atomic_path
from ichfast.training.history import read_history


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One experiment."""

    name: str
    network: str
    addition: str
    """What it adds to plain training on one window."""
    size: int
    """Pixels."""
    folds: str
    """``patient``, or ``slice``: validated on patients that it trained on."""
    accuracy: float | None
    """On the validation slices of the best epoch, at 0.5."""
    valid_loss: float | None
    """Unweighted, of the best epoch."""
    leaderboard: float | None
    """The public stage-1 leaderboard."""
    leaderboard_tta: float | None
    epochs: int
    """Finished; of the reference: planned."""
    images_per_s: float | None
    """Slices trained on a second; of the reference, see
    `recipes.reference.Published`."""
    gpu_minutes: float | None
    """Of training; of the reference with validation. None without a GPU."""
    is_ours: bool


def compare_runs(paths: Sequence[Path]) -> list[Row]:
    """Read some runs, and put the reference's experiments before them.

    Args:
        paths: runs' folders, finished or not.

    Raises:
        CheckpointError: a folder that is no run.
        RecipeError: a damaged run.
    """
    return [*map(_published_row, PUBLISHED), *map(_run_row, paths)]


def _published_row(name: str) -> Row:
    published, recipe = PUBLISHED[name], RECIPES[name]()
    return Row(
        name=name,
        network=recipe.model.arch,
        addition=_addition(recipe),
        size=recipe.data.size,
        folds=recipe.folds.kind,
        accuracy=published.accuracy,
        valid_loss=published.valid_loss,
        leaderboard=published.leaderboard,
        leaderboard_tta=published.leaderboard_tta,
        epochs=sum(phase.epochs for phase in recipe.train.phases),
        images_per_s=published.images_per_s,
        gpu_minutes=published.gpu_minutes,
        is_ours=False,
    )


def _run_row(path: Path) -> Row:
    record = read_record(path)
    recipe = record.recipe
    history = _history(path)
    best = None if history.empty else history.iloc[int(history["valid_loss"].argmin())]
    return Row(
        name=path.resolve().name,
        network=recipe.model.arch,
        addition=_addition(recipe),
        size=recipe.data.size,
        folds=recipe.folds.kind,
        accuracy=None if best is None else float(best["valid_accuracy"]),
        valid_loss=None if best is None else float(best["valid_loss"]),
        leaderboard=None,
        leaderboard_tta=None,
        epochs=len(history),
        images_per_s=(
            None if best is None else float(history["slices_per_s"].median())
        ),
        gpu_minutes=_gpu_minutes(record, history),
        is_ours=True,
    )


def _history(path: Path) -> pd.DataFrame:
    try:
        return read_history(path)
    except CheckpointError:  # no epoch finished yet
        return pd.DataFrame()


def _gpu_minutes(record: RunRecord, history: pd.DataFrame) -> float | None:
    if history.empty or not record.environment.get("gpus"):
        return None
    return float(history["seconds"].sum() / 60)


def _addition(recipe: Recipe) -> str:
    """What a recipe adds, in the order in which a slice meets it."""
    data, augment, train = recipe.data, recipe.augment, recipe.train
    weights = Path(recipe.model.weights)
    additions = {
        f"weights of {weights.parent.name or weights.name}": bool(recipe.model.weights),
        "ImageNet": recipe.model.pretrained != "no",
        "neighbours": data.neighbours,
        "+".join(data.windows): len(data.windows) > 1,
        "cutout": augment.cutout_probability > 0,
        "mixup": any(phase.mixup_alpha for phase in train.phases),
        "any x 2": train.any_weight == 2.0,
        "EMA": train.ema_decay > 0,
    }
    return ", ".join(name for name, is_there in additions.items() if is_there)


_COLUMNS = (
    ("name", "name", "{}"),
    ("network", "network", "{}"),
    ("addition", "addition", "{}"),
    ("size", "size", "{}"),
    ("folds", "folds", "{}"),
    ("accuracy", "accuracy", "{:.4f}"),
    ("valid loss", "valid_loss", "{:.5f}"),
    ("LB", "leaderboard", "{:.3f}"),
    ("LB TTA", "leaderboard_tta", "{:.3f}"),
    ("epochs", "epochs", "{}"),
    ("images/s", "images_per_s", "{:.0f}"),
    ("GPU-min", "gpu_minutes", "{:.0f}"),
)
"""Heading, field and form."""

_NUM_TEXT_COLUMNS = 3


def format_comparison(rows: Sequence[Row]) -> str:
    """The rows as a text table; a line parts the reference's from ours."""
    cells = [[heading for heading, _, _ in _COLUMNS], *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if index < _NUM_TEXT_COLUMNS else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    num_published = sum(not row.is_ours for row in rows)
    lines.insert(num_published + 1, "-" * max(map(len, lines)))
    return "\n".join(
        [
            *lines,
            "",
            "Above the line: what the reference published. Slice folds put patients on",
            "both sides, so losses compare only within one kind of folds, and only on",
            "the same slices.",
        ]
    )


def _cells(row: Row) -> list[str]:
    values = ((getattr(row, name), form) for _, name, form in _COLUMNS)
    return ["-" if v in (None, "") else form.format(v) for v, form in values]


def write_comparison(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as csv, atomically; what is not known is empty.

    Raises:
        PredictionError: the file cannot be written.
    """
    table = pd.DataFrame(map(asdict, rows), columns=[each.name for each in fields(Row)])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            table.to_csv(temporary, index=False)
    except OSError as error:
        raise PredictionError(f"cannot write {path}: {error.strerror}") from error
