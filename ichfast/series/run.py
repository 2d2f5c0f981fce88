"""A series run: a head trained on features, and the folder that it leaves.

A run is a function of features, settings and seed. Killed or stopped at any moment and
resumed, it ends with the weights and the history of an undisturbed run (bit for bit on
a CPU): an epoch that was not saved is trained again.

`ichfast.series.folder` tells what is in the folder. This module only connects the
others.

Shape letters: K classes.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ichfast.errors import InterruptionError, RecipeError
from ichfast.labels import CLASSES
from ichfast.recipes.settings import from_dict
from ichfast.runs.folder import (
    cannot_write,
    check_resumable,
    check_unused,
    only_training,
)
from ichfast.runs.record import Environment, first_change
from ichfast.runs.trained import find_store
from ichfast.series.comparison import ModelComparison, compare_models
from ichfast.series.config import SeriesConfig
from ichfast.series.features import Features
from ichfast.series.fit import BEST_BY, FittedHead, HeadTrainer
from ichfast.series.folder import copy_backbones, open_backbones
from ichfast.series.record import (
    RECORD,
    SeriesCounts,
    SeriesRecord,
    read_series_record,
    trained_settings,
    write_series_record,
)
from ichfast.series.split import choose_fold, split_series
from ichfast.store.store import Store
from ichfast.system.environment import describe_environment
from ichfast.system.files import remove_leftovers
from ichfast.system.ranks import Ranks
from ichfast.system.terminal import progress
from ichfast.training.checkpoint import (
    BEST,
    LAST,
    NEWEST,
    PATIENTS,
    SETTINGS,
    Fields,
    how_to_continue,
    is_state,
    load_checkpoint,
    load_last,
    save_checkpoint,
    save_last,
)
from ichfast.training.history import METRICS, is_history, write_history

SAVE_SECONDS = 60.0
"""Time between two checkpoints."""

RESUMED_FIELDS: Fields = {
    "best": is_state,
    "optimizer": lambda value: isinstance(value, dict),
    "history": is_history,
}
"""What a series run needs to continue."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesReport:
    """The result of a series run on the patients that validate.

    Figures are weighted log losses over the known labels.
    """

    run: str
    """The run's folder."""

    fold: int
    """The fold that validates."""

    epochs: int
    """Epochs that were trained."""

    best_epoch: int
    """From 0."""

    train_series: int
    valid_series: int
    valid_patients: int
    prevalence: float
    """Loss of predicting the class prevalences."""

    slice_model: float
    smoothed: float
    """Loss of the slice model, smoothed over z."""

    head: float
    blended: float
    """Loss of slice model and head, mixed as is best on these patients."""

    blended_crossfit: float
    """Loss of both, mixed for each patient as is best on all others."""

    blend: dict[str, float]
    """Share of the head, by class."""

    slices_per_s: float
    """Median over the epochs."""


def train_series(  # noqa: PLR0913 - all but three are keywords
    features_dir: Path,
    run_dir: Path,
    config: SeriesConfig,
    *,
    device: torch.device,
    fold: int | None = None,
    store_path: Path | None = None,
    resume: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    show: Callable[[Path, ModelComparison], object] = lambda *_: None,
) -> SeriesReport:
    """Train a series head on a features folder.

    Args:
        features_dir: the features folder.
        run_dir: the run's folder, made if it is missing.
        config: how the head is built and trained.
        device: where to compute.
        fold: the fold that validates, of one of the features' runs; None: the first.
        store_path: the store of the features; None: where it was.
        resume: continue the run in `run_dir`.
        should_stop: called after each batch; True ends the run, which can be resumed.
        show: called at the end with the run's folder and its models.

    Raises:
        CheckpointError: nothing to resume, a run that would be overwritten, a backbone
            that is not there, or a checkpoint that cannot be read or written.
        FoldError: no such fold, or the runs' folds do not fit the store or each other.
        InterruptionError: `should_stop` returned True; the run can be resumed.
        PredictionError: no features, or those of another store or checkpoint.
        RecipeError: other settings or features than the run to resume has.
        StoreError: no store, or a damaged one.
        TrainError: no labels, a loss that is not finite, or a folder that cannot be
            written or in which another process trains.
    """
    if resume:
        check_resumable(run_dir)
    features = Features.open(features_dir)
    header = features.header
    store_path = store_path or find_store(
        features_dir, header.store, header.store_digest
    )
    with Store(store_path) as store, only_training(run_dir, Ranks()):
        if not resume:
            check_unused(run_dir)
        features.check_store(store)
        fold = choose_fold(features, fold)
        if resume:
            begun = read_series_record(run_dir)
            wanted = replace(begun, series=config, features=header.runs, fold=fold)
            _check_same_run(begun, wanted, run_dir)
        _prepare_folder(run_dir, features)
        # Without a name for the backbones, whose weights take memory.
        split = split_series(
            features, store, open_backbones(run_dir, header.runs), fold
        )
        record = _make_record(config, features, store, fold, split.counts)
        trainer = HeadTrainer(split.train, split.valid, config, device)
        if resume:
            checkpoint = load_last(run_dir, load_resumed)
            before = read_series_record(run_dir, settings=checkpoint[SETTINGS])
            _check_same_run(before, record, run_dir)
            trainer.restore(checkpoint)
            record = replace(record, blend=before.blend, calibration=before.calibration)
        _write_record(run_dir, record)
        saved_with = {
            SETTINGS: trained_settings(record),
            PATIENTS: split.train_patients.to_text(),
        }
        fitted = _Session(trainer, run_dir, saved_with, should_stop).fit()
        compared = compare_models(fitted.head, features, split)
        save_checkpoint(run_dir / BEST, {"model": trainer.best_weights, **saved_with})
        record = replace(record, blend=tuple(compared.share_K.tolist()))
        _write_record(run_dir, record)
        show(run_dir, compared)
    return _report(run_dir, record, fitted, compared)


def _make_record(
    config: SeriesConfig,
    features: Features,
    store: Store,
    fold: int,
    counts: SeriesCounts,
) -> SeriesRecord:
    return SeriesRecord(
        series=config,
        features=features.header.runs,
        num_features=features.header.num_features,
        store=str(store.path.absolute()),
        store_digest=store.header.digest,
        fold=fold,
        counts=counts,
        environment=from_dict(Environment, describe_environment()),
    )


def _report(
    run_dir: Path, record: SeriesRecord, fitted: FittedHead, compared: ModelComparison
) -> SeriesReport:
    return SeriesReport(
        run=str(run_dir),
        fold=record.fold,
        epochs=len(fitted.history),
        best_epoch=fitted.best_epoch,
        train_series=record.counts.train_series,
        valid_series=record.counts.valid_series,
        valid_patients=record.counts.valid_patients,
        **compared.losses(),
        blend=dict(zip(CLASSES, record.blend, strict=True)),
        slices_per_s=float(np.median([row["slices_per_s"] for row in fitted.history])),
    )


def _prepare_folder(run_dir: Path, features: Features) -> None:
    try:
        for name in (NEWEST, BEST, RECORD, METRICS):
            remove_leftovers(run_dir / name)
        copy_backbones(run_dir, features.path, features.header.runs)
    except OSError as error:
        raise cannot_write(run_dir, error) from error


def _write_record(run_dir: Path, record: SeriesRecord) -> None:
    try:
        write_series_record(run_dir, record)
    except OSError as error:
        raise cannot_write(run_dir, error) from error


def load_resumed(path: Path) -> dict[str, Any]:
    """Read a checkpoint to resume: it has `RESUMED_FIELDS`.

    Raises:
        CheckpointError: it is missing, damaged, or no checkpoint of a series run.
    """
    return load_checkpoint(path, RESUMED_FIELDS)


def _check_same_run(begun: SeriesRecord, wanted: SeriesRecord, run_dir: Path) -> None:
    """Refuse to resume with other settings or features."""
    change = first_change(trained_settings(begun), trained_settings(wanted))
    if change is None:
        return
    raise RecipeError(
        f"{run_dir} was begun with other settings or features ({change[0]}, now "
        f"{change[1]}); resume it with the same, or start anew in another folder"
    )


class _Session:
    """Trains a run's epochs, and saves them.

    Args:
        trainer: at the run's position.
        run_dir: the run's folder.
        saved_with: further fields of each checkpoint.
        should_stop: called after each batch.
    """

    def __init__(
        self,
        trainer: HeadTrainer,
        run_dir: Path,
        saved_with: dict[str, Any],
        should_stop: Callable[[], bool],
    ) -> None:
        self._trainer, self._run_dir = trainer, run_dir
        self._saved_with, self._should_stop = saved_with, should_stop
        self._state = copy.deepcopy(trainer.state())
        self._saved_at = time.monotonic()

    def fit(self) -> FittedHead:
        """Train the epochs that are left.

        Raises:
            CheckpointError: a checkpoint cannot be written.
            InterruptionError: `should_stop` returned True.
            TrainError: the loss is not finite.
        """
        trainer = self._trainer
        self._save()
        num_left = trainer.num_epochs - len(trainer.history)
        total = num_left * trainer.num_slices
        with progress("train-series" if total else "", total, "slice") as bar:

            def finish_batch(num_slices: int) -> None:
                bar.update(num_slices)
                if self._should_stop():
                    self._stop()

            def finish_epoch() -> None:
                row = trainer.history[-1]
                bar.set_postfix_str(
                    f"epoch {row['epoch'] + 1}/{trainer.num_epochs}, loss "
                    f"{row['train_loss']:.4f}, valid {row[BEST_BY]:.4f}",
                    refresh=False,
                )
                self._finish_epoch()

            return trainer.fit(on_batch=finish_batch, on_epoch=finish_epoch)

    def _finish_epoch(self) -> None:
        # A copy, since the next epoch changes the weights.
        self._state = copy.deepcopy(self._trainer.state())
        is_last = len(self._trainer.history) == self._trainer.num_epochs
        if is_last or time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self._save()

    def _save(self) -> None:
        if history := self._state["history"]:
            advice = how_to_continue(self._run_dir)
            write_history(self._run_dir, history, advice=advice)
        save_last(self._run_dir, {**self._state, **self._saved_with})
        self._saved_at = time.monotonic()

    def _stop(self) -> None:
        self._save()
        raise InterruptionError(
            f"stopped after epoch {len(self._state['history'])} of "
            f"{self._trainer.num_epochs}; {self._run_dir / LAST} holds the place"
        )
