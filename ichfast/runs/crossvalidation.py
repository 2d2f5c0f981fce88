"""Cross-validation: train the folds of a recipe, one after another."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from ichfast.loading.id_files import fold_numbers
from ichfast.loading.splits import ID_FILES
from ichfast.recipes.recipe import Recipe
from ichfast.runs.folder import only_training
from ichfast.runs.run import TrainReport
from ichfast.system.ranks import Ranks
from ichfast.training.checkpoint import has_last

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossValidationReport:
    """The result of all folds: means over the best epochs of the folds."""

    run: str
    """Folder that holds the folds' folders."""

    folds: tuple[TrainReport, ...]
    """The result of each fold, in order."""

    valid_loss: float
    valid_weighted_log_loss: float
    deviation_weighted_log_loss: float
    """Standard deviation of the weighted log loss over the folds."""

    prevalence_weighted_log_loss: float
    """Weighted log loss of predicting the class prevalences."""

    valid_accuracy: float


class TrainFold(Protocol):
    """A function that trains one fold: `train_run` with a store and a device."""

    def __call__(self, recipe: Recipe, run_dir: Path, *, resume: bool) -> TrainReport:
        """Train the fold of a recipe.

        Args:
            recipe: the settings; its `folds.fold` validates.
            run_dir: the run's folder.
            resume: continue the run in `run_dir`.
        """


def train_folds(
    recipe: Recipe,
    out_dir: Path,
    train_fold: TrainFold,
    *,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    resume: bool = False,
) -> CrossValidationReport:
    """Train every fold of a recipe, into `out_dir`/fold-0 and so on.

    Args:
        recipe: the settings; its `folds.fold` is ignored.
        out_dir: where the folders of the runs go.
        train_fold: trains one fold.
        ranks: the processes that train together.
        resume: continue the fold that was interrupted; a finished fold stays as it
            is.

    Raises:
        IchfastError: `train_fold` raised it.
        TrainError: another process trains in `out_dir`, or it cannot be written.
    """
    with only_training(out_dir, ranks):
        reports = _train_each(recipe, out_dir, train_fold, resume=resume)
    report = _summarize(out_dir, reports)
    logger.info(
        "%d folds: weighted log loss %.5f +- %.5f (prevalence alone %.5f), accuracy "
        "%.4f",
        len(reports),
        report.valid_weighted_log_loss,
        report.deviation_weighted_log_loss,
        report.prevalence_weighted_log_loss,
        report.valid_accuracy,
    )
    return report


def _fold_numbers(recipe: Recipe, out_dir: Path) -> Sequence[int]:
    """The folds to train; those of a file, or of its copy if the file is gone."""
    if not recipe.folds.file:
        return range(recipe.folds.num_folds)
    file, copies = Path(recipe.folds.file), f"fold-*/{ID_FILES['file']}"
    if not file.exists():
        file = next(out_dir.glob(copies), file)
    return fold_numbers(file)


def _train_each(
    recipe: Recipe, out_dir: Path, train_fold: TrainFold, *, resume: bool
) -> list[TrainReport]:
    reports = []
    numbers = _fold_numbers(recipe, out_dir)
    for fold in numbers:
        run_dir = out_dir / f"fold-{fold}"
        logger.info("fold %d of %d: %s", fold, len(numbers), run_dir)
        reports.append(
            train_fold(
                replace(recipe, folds=replace(recipe.folds, fold=fold)),
                run_dir,
                resume=resume and has_last(run_dir),
            )
        )
    return reports


def _summarize(out_dir: Path, reports: list[TrainReport]) -> CrossValidationReport:
    def mean(name: str) -> float:
        return float(np.mean([getattr(report, name) for report in reports]))

    losses = [report.valid_weighted_log_loss for report in reports]
    return CrossValidationReport(
        run=str(out_dir),
        folds=tuple(reports),
        valid_loss=mean("valid_loss"),
        valid_weighted_log_loss=mean("valid_weighted_log_loss"),
        deviation_weighted_log_loss=float(np.std(losses, ddof=1)),
        prevalence_weighted_log_loss=mean("prevalence_weighted_log_loss"),
        valid_accuracy=mean("valid_accuracy"),
    )
