"""A series head for each fold, one after another."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ichfast.runs.folder import only_training
from ichfast.series.comparison import ModelComparison
from ichfast.series.config import SeriesConfig
from ichfast.series.features import read_features_header
from ichfast.series.run import SeriesReport, train_series
from ichfast.system.ranks import Ranks
from ichfast.training.checkpoint import has_last

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesFoldsReport:
    """The result of all folds: means over them, and each."""

    run: str
    """Folder that holds the folds' folders."""

    folds: tuple[SeriesReport, ...]
    prevalence: float
    slice_model: float
    smoothed: float
    head: float
    blended: float
    blended_crossfit: float


LOSSES = (
    *("prevalence", "slice_model", "smoothed"),
    *("head", "blended", "blended_crossfit"),
)
"""The figures of a report that are averaged."""


def train_series_folds(  # noqa: PLR0913 - all but three are keywords
    features_dir: Path,
    out_dir: Path,
    config: SeriesConfig,
    *,
    device: torch.device,
    store_path: Path | None = None,
    resume: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    show: Callable[[Path, ModelComparison], object] = lambda *_: None,
) -> SeriesFoldsReport:
    """Train a head for the fold of each run, into `out_dir`/fold-0 and so on.

    Args:
        features_dir: the features folder.
        out_dir: where the folders of the runs go.
        config: how the heads are built and trained.
        device: where to compute.
        store_path: the store of the features; None: where it was.
        resume: continue the fold that was interrupted; a finished fold stays as it is.
        should_stop: called after each batch; True ends the work, which can be resumed.
        show: called at the end of each run with its folder and its models.

    Raises:
        IchfastError: `train_series` raised it.
        TrainError: another process trains in `out_dir`, or it cannot be written.
    """
    folds = sorted(run.fold for run in read_features_header(features_dir).runs)
    reports = []
    with only_training(out_dir, Ranks()):
        for fold in folds:
            run_dir = out_dir / f"fold-{fold}"
            logger.info("fold %d of %d folds: %s", fold, len(folds), run_dir)
            report = train_series(
                features_dir,
                run_dir,
                config,
                device=device,
                fold=fold,
                store_path=store_path,
                resume=resume and has_last(run_dir),
                should_stop=should_stop,
                show=show,
            )
            reports.append(report)
    means = {
        name: float(np.mean([getattr(report, name) for report in reports]))
        for name in LOSSES
    }
    return SeriesFoldsReport(run=str(out_dir), folds=tuple(reports), **means)
