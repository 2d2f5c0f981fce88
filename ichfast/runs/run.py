"""A run: a recipe applied to a store, and the folder it leaves.

    runs/NAME/
      run.json             settings, normalization, store, counts, environment
      metrics.csv          one row per epoch
      last.pt, best.pt     checkpoints: the newest, and that of the best epoch
      last.previous.pt     the checkpoint before last.pt, in case that is damaged
      tensorboard/         the metrics, and some augmented slices
      folds.csv, only.csv        the ids in the files of folds.file and --only
      trace.json, profile.txt    with --profile: where the time of a step goes
      .lock                      held while a process trains here; stays
      report.html          made by `ichfast report`

This module only connects the others.

Shape letters: N slices, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ichfast.errors import ModelError, RecipeError, TrainError
from ichfast.evaluation.metrics import prevalence_loss
from ichfast.loading.loader import make_loader
from ichfast.loading.sampler import BalancedSampler, Sampler, make_sampler
from ichfast.loading.splits import Split, in_run_folder, split_slices
from ichfast.models.build import build_model, check_input, synchronize_batch_norm
from ichfast.models.config import is_timm
from ichfast.models.precision import choose_amp
from ichfast.recipes.recipe import Recipe
from ichfast.runs.callbacks import Callback, RunStart, reporting
from ichfast.runs.folder import (
    begin_folder,
    check_resumable,
    check_same_run,
    check_unused,
    only_training,
)
from ichfast.runs.patients import (
    NOBODY,
    TrainingPatients,
    patients_of_slices,
    patients_of_weights,
)
from ichfast.runs.record import (
    RunRecord,
    make_record,
    read_record,
    trained_settings,
    write_record,
)
from ichfast.runs.tensorboard import TensorBoard
from ichfast.store.store import Store
from ichfast.store.tables import patients_N
from ichfast.system.ranks import Ranks, was_restarted
from ichfast.training.checkpoint import (
    PATIENTS,
    SETTINGS,
    has_last,
    load_last,
)
from ichfast.training.history import History, best_row
from ichfast.training.profiler import Profile, Spans
from ichfast.training.step import Stepper
from ichfast.training.trainer import Trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainReport:
    """The result of a training run: its best epoch, and its speed."""

    run: str
    """The run's folder."""

    epochs: int
    """Epochs that were trained."""

    best_epoch: int
    """From 0."""

    valid_loss: float
    valid_weighted_log_loss: float
    prevalence_weighted_log_loss: float
    """Weighted log loss of predicting the class prevalences, on the same slices."""

    valid_accuracy: float
    slices_per_s: float
    """Median over the epochs, of all ranks together."""

    device: str
    """``cpu`` or ``cuda``."""


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
    callbacks: Sequence[Callback] = (),
) -> TrainReport:
    """Train a recipe on a store.

    Args:
        store_path: a prepared store with labels.
        recipe: the settings.
        run_dir: the run's folder, made if it is missing; the same on all ranks.
        device: where to compute.
        ranks: the processes that train together.
        resume: continue the run in `run_dir`. A job that torchrun or Slurm has
            restarted continues in any case.
        profile: measure where the time of a step goes.
        limit: number of slices to train on; a quarter as many validate. None: all.
        should_stop: called after each step; True saves and ends the run.
        callbacks: what the run reports its epochs to, beside its own files. What they
            raise ends the run.

    Raises:
        CheckpointError: nothing to resume, a run that would be overwritten, or a
            checkpoint that cannot be read or written.
        FoldError: the store has no labels, or cannot be split so.
        LoaderError: the batch size or the sampling does not fit the labels.
        InterruptionError: `should_stop` returned True; the run can be resumed.
        ModelError: the weights to start from cannot be had, or do not fit.
        RecipeError: another recipe, store or split than the run to resume has, or
            mixup with labels of studies or series.
        StoreError: no store, or a damaged one.
        TrainError: too few slices, a loss that is not finite, or a folder that
            cannot be written or in which another process trains.

    Example:
        >>> from pathlib import Path
        >>> import ichfast, torch
        >>> recipe = ichfast.resolve_recipe(
        ...     "fast",
        ...     arch="efficientnet-b0",
        ...     size=32,
        ...     device_type="cpu",
        ...     assignments=(
        ...         "train.epochs=1", "model.pretrained=no", "folds.num_folds=2"
        ...     ),
        ... )
        >>> report = ichfast.train_run(
        ...     Path("ichfast-store"),
        ...     recipe,
        ...     Path("runs/example"),
        ...     device=torch.device("cpu"),
        ...     limit=16,
        ... )
        >>> report.epochs
        1
    """
    (was_started_again,) = ranks.agree([was_restarted()])
    resume = resume or (was_started_again and has_last(run_dir))
    if resume:
        check_resumable(run_dir)  # before the folder is made
    with Store(store_path) as store, only_training(run_dir, ranks):
        if not resume:
            check_unused(run_dir)
        folds = in_run_folder(recipe.folds, run_dir, only_missing=True)
        split = split_slices(store, folds if resume else recipe.folds, limit=limit)
        recipe = _with_folds_of_file(recipe, split)
        _check_mixup(recipe, split)
        recipe = _fit_blocks(recipe, split)
        recipe = _fit_batch(recipe, _train_sampler(recipe, store, split), ranks)
        _check_batch_norm(recipe, device, ranks)
        begun = _patients_of_start(recipe)
        num_seen = _count_seen(begun, store, split)
        record = make_record(recipe, store, split, num_seen=num_seen)
        checkpoint = load_last(run_dir) if resume else None
        if checkpoint:
            before = read_record(run_dir, settings=checkpoint[SETTINGS])
            check_same_run(before, record, run_dir)
            record = replace(record, calibration=before.calibration)
        # Of folds by slice, patients are listed all the same.
        unit = "study" if recipe.folds.unit == "study" else "patient"
        trained = patients_of_slices(store, split.train_N, unit=unit)
        spans = Profile(device, run_dir) if profile and ranks.writes else None
        stepper = _make_stepper(recipe, device, ranks, spans)
        if ranks.writes:
            begin_folder(run_dir, record, split.files)
        trainer = Trainer(
            stepper,
            run_dir=run_dir,
            name_slices=_names_from(store),
            saved_with={
                SETTINGS: trained_settings(record),
                PATIENTS: (begun | trained).to_text(),
            },
            should_stop=should_stop,
        )
        if checkpoint:
            trainer.restore(checkpoint)
            if ranks.writes and not trainer.is_finished:
                # It is of a best epoch that may be replaced.
                write_record(run_dir, replace(record, calibration=None))
        history = _fit(trainer, store, split, record, run_dir, callbacks)
        valid_bags = split.bags.within(split.valid_N)
        labels_NK = np.concatenate(
            [store.labels_NK()[split.valid_N], valid_bags.labels_DK]
        ).astype(np.float64)
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


def _patients_of_start(recipe: Recipe) -> TrainingPatients:
    """The patients on which the weights were trained that a run starts from."""
    if recipe.model.weights:
        return patients_of_weights(_weights_file(recipe))
    return NOBODY


def _with_folds_of_file(recipe: Recipe, split: Split) -> Recipe:
    """The recipe with the number of folds in its file, if it has one."""
    if "file" not in split.files:
        return recipe
    if split.num_left_out:
        logger.warning(
            "%d slices with labels have no fold in %s and take no part",
            split.num_left_out,
            recipe.folds.file,
        )
    num_folds = len(set(split.files["file"].folds) - {-1})
    return replace(recipe, folds=replace(recipe.folds, num_folds=num_folds))


def _count_seen(begun: TrainingPatients, store: Store, split: Split) -> int:
    """Count the patients who validate although the first weights may have seen them."""
    if begun == NOBODY:
        return 0
    is_seen_N = begun.trained_on_N(store) != 0
    seen_M = split.valid_N[is_seen_N[split.valid_N]]
    num_seen = len(set(patients_N(store.table)[seen_M]))
    if num_seen:
        logger.warning(
            "%d patient(s) validate on whom the weights that this run starts from were "
            "trained, or may have been: validation looks better than on new patients",
            num_seen,
        )
    return num_seen


def _check_mixup(recipe: Recipe, split: Split) -> None:
    if len(split.bags) and any(phase.mixup_alpha for phase in recipe.train.phases):
        raise RecipeError(
            "mixup blends slices of different studies, and this store has labels of "
            "studies or series; --set train.phases.0.mixup_alpha=0 in each phase"
        )


def _fit_blocks(recipe: Recipe, split: Split) -> Recipe:
    """Shrink the batch to whole blocks, if there are bags to train on."""
    batch_size, block = recipe.data.batch_size, recipe.data.bag_slices
    fitting = batch_size // block * block
    if fitting in (0, batch_size) or not len(split.bags.within(split.train_N)):
        return recipe
    logger.warning(
        "labels of studies or series train in blocks of %d slices (data.bag_slices): "
        "batch size %d becomes %d",
        block,
        batch_size,
        fitting,
    )
    return replace(recipe, data=replace(recipe.data, batch_size=fitting))


def _train_sampler(recipe: Recipe, store: Store, split: Split) -> Sampler:
    """What draws an epoch from the training part, on one rank."""
    sampler = make_sampler(
        recipe.data.sampling,
        store,
        split.train_N,
        bag_slices=recipe.data.bag_slices,
        batch_size=recipe.data.batch_size,
        shuffle=True,
    )
    if isinstance(sampler, BalancedSampler) and sampler.num_unknown:
        logger.warning(
            "balanced sampling leaves out %d of %d slices, whose label any is missing",
            sampler.num_unknown,
            len(split.train_N),
        )
    return sampler


def _fit_batch(recipe: Recipe, sampler: Sampler, ranks: Ranks) -> Recipe:
    """Shrink the batch if there are too few slices for one step."""
    num_parts = ranks.world_size * recipe.train.accumulate
    num_train = sampler.num_drawn
    fitting = num_train // num_parts // sampler.block_slices * sampler.block_slices
    batch_size = min(recipe.data.batch_size, fitting)
    if batch_size == recipe.data.batch_size:
        return recipe
    if batch_size == 0:
        raise TrainError(
            f"{num_train} slice(s) to train on are fewer than the {num_parts} batches "
            "of one step; start fewer ranks, or lower --set train.accumulate=N"
        )
    logger.warning(
        "only %d slices to train on: batch size %d becomes %d",
        num_train,
        recipe.data.batch_size,
        batch_size,
    )
    return replace(recipe, data=replace(recipe.data, batch_size=batch_size))


def _check_batch_norm(recipe: Recipe, device: torch.device, ranks: Ranks) -> None:
    """Refuse a batch whose statistics would be those of one slice."""
    batch_size = recipe.data.batch_size
    is_joined = device.type == "cuda" and recipe.train.synchronizes_batch_norm(
        batch_size
    )
    if batch_size * (ranks.world_size if is_joined else 1) == 1:
        raise TrainError(
            "batch norm needs two slices or more in a batch, and this run has one; "
            "train on more slices, or --set data.batch_size=2"
        )


def _make_stepper(
    recipe: Recipe, device: torch.device, ranks: Ranks, spans: Spans | None
) -> Stepper:
    model = build_run_model(recipe, device)
    batch_size = recipe.data.batch_size
    if ranks.world_size > 1 and recipe.train.synchronizes_batch_norm(batch_size):
        model = _join_batch_norm(model, device)
    amp = choose_amp(recipe.train.amp, device)
    return Stepper(model, recipe.train, amp=amp, ranks=ranks, spans=spans)


def _join_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    if device.type == "cuda":
        return synchronize_batch_norm(model)
    logger.warning(
        "each rank computes batch norm's statistics alone: torch can synchronize them "
        "on GPUs only, so this run differs from one with a single rank"
    )
    return model


def build_run_model(recipe: Recipe, device: torch.device) -> nn.Module:
    """Build a recipe's model with the weights it starts from.

    Args:
        recipe: its seed decides random weights.
        device: where the model goes.

    Raises:
        ModelError: the weights cannot be had, or do not fit, or the backbone takes no
            images of the recipe's sizes.
    """
    torch.manual_seed(recipe.train.seed)
    weights = _weights_file(recipe) if recipe.model.weights else None
    if weights is not None or recipe.model.pretrained == "no":
        model = _build(recipe, weights=weights)
    else:
        model = _build_pretrained(recipe)
    arch, data = recipe.model.arch, recipe.data
    if is_timm(arch) and data.grow_from is not None:
        check_input(model, arch, in_chans=data.num_channels, size=data.grow_from)
    return model.to(device)


def _build(
    recipe: Recipe, *, pretrained: bool = False, weights: Path | None = None
) -> nn.Module:
    return build_model(
        recipe.model.arch,
        in_chans=recipe.data.num_channels,
        size=recipe.data.size,
        head=recipe.model.head,
        pretrained=pretrained,
        weights=weights,
    )


def _weights_file(recipe: Recipe) -> Path:
    weights = Path(recipe.model.weights)
    if not weights.is_file():
        raise ModelError(
            f"{recipe.name} starts from {weights}, which is not there; "
            "train that run first, or give --weights FILE"
        )
    return weights


def _build_pretrained(recipe: Recipe) -> nn.Module:
    try:
        return _build(recipe, pretrained=True)
    except ModelError as error:
        if recipe.model.pretrained == "yes":
            raise
        logger.warning(
            "%s; starting from random weights, with which the recipe's published "
            "results cannot be reached",
            error,
        )
    return _build(recipe)


def _names_from(store: Store) -> Callable[[Tensor], list[str]]:
    def names(indices_B: Tensor) -> list[str]:
        return store.table["slice_id"].iloc[indices_B.numpy()].astype(str).tolist()

    return names


def _fit(
    trainer: Trainer,
    store: Store,
    split: Split,
    record: RunRecord,
    run_dir: Path,
    callbacks: Sequence[Callback],
) -> History:
    recipe, ranks = record.recipe, trainer.stepper.ranks
    loader = partial(
        make_loader,
        store,
        config=recipe.data,
        normalization=record.normalization,
        seed=recipe.train.seed,
        ranks=ranks,
        device=trainer.stepper.device,
    )
    with (
        loader(split.train_N, augment=recipe.augment, shuffle=True) as train_loader,
        loader(split.valid_N) as valid_loader,
        ExitStack() as stack,
    ):
        logger.info("train: %r", train_loader)
        logger.info("valid: %r", valid_loader)
        stack.callback(trainer.stepper.spans.close)

        def grow(epoch: int) -> None:
            size = recipe.data.size_in_epoch(epoch, trainer.num_epochs)
            train_loader.set_size(size)

        fit = partial(
            trainer.fit,
            train_loader,
            valid_loader,
            valid_bags=split.bags.within(split.valid_N),
            before_epoch=grow,
        )
        if not ranks.writes:
            return fit()
        start = RunStart(
            run_dir=run_dir,
            recipe=recipe,
            num_epochs=trainer.num_epochs,
            history=[dict(row) for row in trainer.history],
            train_loader=train_loader,
        )
        callbacks = (TensorBoard(run_dir), *callbacks)
        return fit(on_epoch=stack.enter_context(reporting(start, callbacks)))
