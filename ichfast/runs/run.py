"""A run: a recipe applied to a store, and the folder it leaves.

    runs/NAME/
      run.json             settings, normalisation, store, counts, environment
      metrics.csv          one row an epoch
      last.pt, best.pt     checkpoints: where it stands, the best epoch
      last.previous.pt     where it stood before, should last.pt be damaged
      tensorboard/         the same scalars, and augmented slices, for TensorBoard
      trace.json, profile.txt    with --profile: where a step's time goes
      report.html          made by `ichfast report`

This module wires the others together; it decides nothing by itself.

Shape letters: N slices, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ichfast.augment.config import AugmentConfig
from ichfast.errors import ModelError, TrainError
from ichfast.evaluation.metrics import prevalence_loss
from ichfast.loading.config import measure_normalization
from ichfast.loading.loader import DaliLoader, make_loader
from ichfast.loading.sampler import make_sampler
from ichfast.loading.splits import Split, split_slices
from ichfast.models.build import ModelConfig, build_model, synchronize_batch_norm
from ichfast.models.precision import choose_amp
from ichfast.recipes.recipe import Recipe
from ichfast.runs.folder import (
    RunRecord,
    begin_folder,
    check_run_dir,
    check_same_run,
    read_record,
)
from ichfast.runs.log import RunLog
from ichfast.store.store import Store
from ichfast.system.environment import describe_environment
from ichfast.system.ranks import Ranks, was_restarted
from ichfast.training.checkpoint import has_last, load_last
from ichfast.training.history import History, best_row, write_history
from ichfast.training.profiler import Profile, Spans
from ichfast.training.step import Stepper
from ichfast.training.trainer import Trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainReport:
    """What a training run came to."""

    run: str
    epochs: int
    best_epoch: int
    valid_loss: float
    valid_weighted_log_loss: float
    prevalence_weighted_log_loss: float
    """What the class prevalences alone score on the same slices."""

    valid_accuracy: float
    slices_per_s: float
    device: str


def train_run(  # noqa: PLR0913 - all but four are keywords with a default
    store_path: Path,
    recipe: Recipe,
    run_dir: Path,
    *,
    device: torch.device,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    resume: bool = False,
    profile: bool = False,
    limit: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainReport:
    """Train a recipe on a store.

    Args:
        store_path: a prepared store with labels.
        recipe: the settings.
        run_dir: the run's folder; made here. All ranks see the same one.
        device: where to compute.
        ranks: who trains together.
        resume: continue the run in `run_dir`. A job that torchrun or Slurm had to
            start again continues in any case.
        profile: look at where a step's time goes.
        limit: train on so many slices only, and validate on a quarter as many.
        should_stop: asked after each step.

    Raises:
        IchfastError: whatever the parts refuse; see their modules.
    """
    (restarted,) = ranks.agree([was_restarted()])
    resume = resume or (restarted and has_last(run_dir))
    check_run_dir(run_dir, resume=resume)
    with Store(store_path) as store:
        split = split_slices(store, recipe.folds, limit=limit)
        sampler = make_sampler(
            recipe.data.sampling, store, split.train_N, batch_size=1, shuffle=True
        )
        recipe = _fit_batch(recipe, sampler.num_drawn, ranks)
        record = RunRecord(
            recipe=recipe,
            normalization=measure_normalization(store, split.train_N, recipe.data),
            store=str(store_path),
            store_plan=dict(store.header.plan),
            counts=split.counts(store),
            environment=describe_environment(),
        )
        if resume:
            check_same_run(read_record(run_dir), record, run_dir)
        model = build_run_model(recipe, device)
        if ranks.world_size > 1 and recipe.train.sync_batch_norm:
            model = _join_batch_norm(model, device)
        if ranks.writes:
            begin_folder(run_dir, record)
        trainer = Trainer(
            Stepper(
                model,
                recipe.train,
                amp=choose_amp(recipe.train.amp, device),
                ranks=ranks,
                spans=Profile(device, run_dir)
                if profile and ranks.writes
                else Spans(device),
            ),
            run_dir=run_dir,
            name_slices=_names_from(store),
            should_stop=should_stop,
        )
        if resume:
            trainer.restore(load_last(run_dir))
        history = _fit(trainer, store, split, record, run_dir)
        labels_NK = store.labels_NK()[split.valid_N].astype(np.float64)
    best = best_row(history, recipe.train.best_by)
    return TrainReport(
        run=str(run_dir),
        epochs=len(history),
        best_epoch=best["epoch"],
        valid_loss=best["valid_loss"],
        valid_weighted_log_loss=best["valid_weighted_log_loss"],
        prevalence_weighted_log_loss=prevalence_loss(labels_NK),
        valid_accuracy=best["valid_accuracy"],
        slices_per_s=float(np.median([row["slices_per_s"] for row in history])),
        device=device.type,
    )


def _fit_batch(recipe: Recipe, num_train: int, ranks: Ranks) -> Recipe:
    """Shrink the batch if there are not slices enough for one step."""
    num_parts = ranks.world_size * recipe.train.accumulate
    batch_size = min(recipe.data.batch_size, num_train // num_parts)
    if batch_size == recipe.data.batch_size:
        return recipe
    if batch_size == 0:
        raise TrainError(
            f"{num_train} slice(s) to train on are less than the {num_parts} batches "
            "of one step; start fewer ranks, or lower --set train.accumulate=N"
        )
    logger.warning(
        "only %d slices to train on: batch size %d becomes %d",
        num_train,
        recipe.data.batch_size,
        batch_size,
    )
    return replace(recipe, data=replace(recipe.data, batch_size=batch_size))


def _join_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    if device.type == "cuda":
        return synchronize_batch_norm(model)
    logger.warning(
        "batch norm takes its statistics on each rank alone: torch can join them on "
        "GPUs only, so that this run differs from one with a single rank"
    )
    return model


def build_run_model(recipe: Recipe, device: torch.device) -> nn.Module:
    """Build a recipe's model with the weights it starts from, on its device.

    Raises:
        ModelError: the weights cannot be had, or do not fit.
    """
    torch.manual_seed(recipe.train.seed)
    settings = recipe.model
    in_chans = recipe.data.num_channels
    weights = Path(settings.weights) if settings.weights else None
    if weights is not None and not weights.is_file():
        raise ModelError(
            f"{recipe.name} starts from {weights}, which is not there; "
            "train that run first, or give --weights FILE"
        )
    if weights is not None or settings.pretrained == "no":
        model = build_model(
            settings.arch, in_chans=in_chans, head=settings.head, weights=weights
        )
    else:
        model = _build_pretrained(settings, in_chans)
    return model.to(device)


def _build_pretrained(settings: ModelConfig, in_chans: int) -> nn.Module:
    try:
        return build_model(
            settings.arch, in_chans=in_chans, head=settings.head, pretrained=True
        )
    except ModelError as error:
        if settings.pretrained == "yes":
            raise
        logger.warning(
            "%s; starting from random weights, with which the recipe's published "
            "results cannot be reached",
            error,
        )
    return build_model(settings.arch, in_chans=in_chans, head=settings.head)


def _names_from(store: Store) -> Callable[[Tensor], list[str]]:
    def names(indices_B: Tensor) -> list[str]:
        return store.table["slice_id"].iloc[indices_B.numpy()].astype(str).tolist()

    return names


def _fit(
    trainer: Trainer, store: Store, split: Split, record: RunRecord, run_dir: Path
) -> History:
    recipe, ranks = record.recipe, trainer.ranks

    def loader(
        slices_N: npt.NDArray[np.int64], augment: AugmentConfig | None
    ) -> DaliLoader:
        return make_loader(
            store,
            slices_N,
            recipe.data,
            normalization=record.normalization,
            augment=augment,
            shuffle=augment is not None,
            seed=recipe.train.seed,
            ranks=ranks,
            device=trainer.stepper.device.type,
        )

    with (
        loader(split.train_N, recipe.augment) as train_loader,
        loader(split.valid_N, None) as valid_loader,
        ExitStack() as stack,
    ):
        logger.info("train: %r", train_loader)
        logger.info("valid: %r", valid_loader)
        stack.callback(trainer.stepper.spans.close)
        num_epochs = sum(phase.epochs for phase in trainer.phases)

        def grow(epoch: int) -> None:
            train_loader.set_size(recipe.data.size_in_epoch(epoch, num_epochs))

        if not ranks.writes:
            return trainer.fit(train_loader, valid_loader, before_epoch=grow)
        log = stack.enter_context(RunLog(run_dir))
        if trainer.history:
            write_history(run_dir, trainer.history)
        else:
            log.picture(train_loader, num_epochs)
        return trainer.fit(
            train_loader, valid_loader, before_epoch=grow, on_epoch=log.note
        )
