"""A run: a recipe applied to a store, and the folder it leaves.

    runs/NAME/
      run.json             settings, normalisation, store, counts, environment
      metrics.csv          one row an epoch
      last.pt, best.pt     checkpoints: where it stands, the best epoch
      tensorboard/         the same scalars for TensorBoard
      report.html          made by `ichfast report`

This module wires the others together; it decides nothing by itself.

Shape letters: N slices, K classes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from ichfast.amp import choose_amp
from ichfast.augment import AugmentConfig
from ichfast.checkpoint import LAST, load_checkpoint
from ichfast.environment import describe_environment
from ichfast.errors import CheckpointError, ModelError, RecipeError
from ichfast.files import atomic_path, write_text_atomically
from ichfast.loader import DaliLoader, make_loader
from ichfast.metrics import prevalence_loss
from ichfast.models import build_model
from ichfast.normalization import measure_normalization
from ichfast.pipeline import Normalization
from ichfast.recipe import ModelConfig, Recipe
from ichfast.recipes import RECIPES
from ichfast.settings import from_dict, to_dict
from ichfast.splits import Split, split_slices
from ichfast.store import Store
from ichfast.train import History, Trainer

logger = logging.getLogger(__name__)

RECORD = "run.json"
METRICS = "metrics.csv"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """What `run.json` says."""

    recipe: Recipe
    normalization: Normalization
    store: str
    """The store's folder, as it was given."""

    store_plan: dict[str, str]
    """What the store was made from, as digests: to know it again."""

    counts: dict[str, int]
    """Slices and patients that trained and validated."""

    environment: dict[str, Any]


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


def default_run_dir(recipe: Recipe) -> Path:
    """Where a run goes unless told otherwise: runs/RECIPE, and what is not its own."""
    own = RECIPES[recipe.name]()
    size, arch = recipe.data.size, recipe.model.arch
    name = recipe.name
    if (arch, size) != (own.model.arch, own.data.size) or recipe.name == "fast":
        name += f"-{arch}-{size}"
    if recipe.folds.fold:
        name += f"-fold{recipe.folds.fold}"
    return Path("runs") / name


def train_run(
    store_path: Path,
    recipe: Recipe,
    run_dir: Path,
    *,
    device: torch.device,
    resume: bool = False,
    limit: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainReport:
    """Train a recipe on a store.

    Args:
        store_path: a prepared store with labels.
        recipe: the settings.
        run_dir: the run's folder; made here.
        device: where to compute.
        resume: continue the run in `run_dir`.
        limit: train on so many slices only, and validate on a quarter as many.
        should_stop: asked after each step.

    Raises:
        IchfastError: whatever the parts refuse; see their modules.
    """
    _check_run_dir(run_dir, resume=resume)
    with Store(store_path) as store:
        split = split_slices(store, recipe.folds, limit=limit)
        recipe = _fit_batch(recipe, len(split.train_N))
        normalization = measure_normalization(store, split.train_N, recipe.data)
        record = RunRecord(
            recipe=recipe,
            normalization=normalization,
            store=str(store_path),
            store_plan=dict(store.header.plan),
            counts=split.counts(store),
            environment=describe_environment(),
        )
        if resume:
            _check_same_run(read_record(run_dir), record, run_dir)
        model = build_run_model(recipe, device)
        run_dir.mkdir(parents=True, exist_ok=True)
        write_record(run_dir, record)
        trainer = Trainer(
            model,
            recipe.train,
            amp=choose_amp(recipe.train.amp, device),
            run_dir=run_dir,
            name_slices=_names_from(store),
            should_stop=should_stop,
        )
        if resume:
            trainer.restore(load_checkpoint(run_dir / LAST))
        history = _fit(trainer, store, split, record, run_dir, device)
        labels_NK = store.labels_NK()[split.valid_N].astype(np.float64)
    best = min(history, key=lambda row: row["valid_loss"])
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


def _check_run_dir(run_dir: Path, *, resume: bool) -> None:
    if resume and not (run_dir / LAST).is_file():
        raise CheckpointError(
            f"nothing to resume in {run_dir}: it has no {LAST}; leave out --resume"
        )
    if not resume and (run_dir / LAST).exists():
        raise CheckpointError(
            f"{run_dir} holds a run already; continue it with --resume, "
            "or name another folder with --out"
        )


def _fit_batch(recipe: Recipe, num_train: int) -> Recipe:
    if num_train >= recipe.data.batch_size:
        return recipe
    logger.warning(
        "only %d slices to train on: batch size %d becomes %d",
        num_train,
        recipe.data.batch_size,
        num_train,
    )
    return replace(recipe, data=replace(recipe.data, batch_size=num_train))


def _check_same_run(begun: RunRecord, wanted: RunRecord, run_dir: Path) -> None:
    for what in ("recipe", "store_plan", "counts"):
        if getattr(begun, what) != getattr(wanted, what):
            raise RecipeError(
                f"{run_dir} was begun with another {what.replace('_', ' ')}; resume it "
                "with the same options, or start anew with --out"
            )


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
    trainer: Trainer,
    store: Store,
    split: Split,
    record: RunRecord,
    run_dir: Path,
    device: torch.device,
) -> History:
    recipe = record.recipe

    def loader(slices_N: Any, augment: AugmentConfig | None) -> DaliLoader:
        return make_loader(
            store,
            slices_N,
            recipe.data,
            normalization=record.normalization,
            augment=augment,
            shuffle=augment is not None,
            seed=recipe.train.seed,
            device=device.type,
        )

    with (
        loader(split.train_N, recipe.augment) as train_loader,
        loader(split.valid_N, None) as valid_loader,
        SummaryWriter(run_dir / "tensorboard") as board,
    ):
        logger.info("train: %r", train_loader)
        logger.info("valid: %r", valid_loader)

        def note(history: History) -> None:
            with atomic_path(run_dir / METRICS) as temporary:
                pd.DataFrame(history).to_csv(temporary, index=False)
            row = history[-1]
            for name, value in row.items():
                board.add_scalar(name, value, row["epoch"])
            logger.info(
                "epoch %d: train loss %.5f, valid loss %.5f, weighted log loss %.5f, "
                "accuracy %.4f, %.0f slices/s, %.0f %% waiting for data",
                row["epoch"] + 1,
                row["train_loss"],
                row["valid_loss"],
                row["valid_weighted_log_loss"],
                row["valid_accuracy"],
                row["slices_per_s"],
                100 * row["wait_share"],
            )

        return trainer.fit(train_loader, valid_loader, on_epoch=note)


def read_history(run_dir: Path) -> pd.DataFrame:
    """Read a run's `metrics.csv`: one row an epoch.

    Raises:
        CheckpointError: no epoch is finished yet, or the file is damaged.
    """
    path = run_dir / METRICS
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read: no epoch finished, or it is damaged; "
            "train at least one epoch"
        ) from error


def write_record(run_dir: Path, record: RunRecord) -> None:
    """Write a run's `run.json`, atomically."""
    text = json.dumps({**asdict(record), "recipe": to_dict(record.recipe)}, indent=2)
    write_text_atomically(run_dir / RECORD, text + "\n")


def read_record(run_dir: Path) -> RunRecord:
    """Read a run's `run.json`.

    Raises:
        CheckpointError: no run there.
        RecipeError: it was damaged or written by another version.
    """
    path = run_dir / RECORD
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no run in {run_dir} (no {RECORD}); make one with `ichfast train`"
        ) from error
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise RecipeError(f"{path} is damaged: expected settings, found {found!r:.40}")
    return from_dict(RunRecord, found)
