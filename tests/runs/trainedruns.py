"""Folders of runs as if they had trained, with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ichfast.loading.splits import split_slices
from ichfast.models.build import build_model
from ichfast.recipes.recipe import Recipe
from ichfast.recipes.resolve import resolve_recipe
from ichfast.runs.folder import begin_folder
from ichfast.runs.patients import patients_of_slices
from ichfast.runs.record import make_record, trained_settings
from ichfast.store.store import Store
from ichfast.training.checkpoint import BEST, PATIENTS, SETTINGS, save_checkpoint
from ichfast.training.history import write_history
from tests.conftest import TINY_ARCH

TINY_HEAD_GAIN, HEAD_GAIN = 400.0, 44_000.0
"""Factors of the head's random weights, so that slices get different logits: that of
`TINY_ARCH`, and of the others."""


def tiny_recipe(*assignments: str, size: int = 32, arch: str = TINY_ARCH) -> Recipe:
    """A small network on few pixels, two folds."""
    return resolve_recipe(
        "fast",
        arch=arch,
        size=size,
        device_type="cpu",
        assignments=["data.batch_size=8", "folds.num_folds=2", *assignments],
    )


def write_run(
    path: Path,
    store_path: Path,
    *assignments: str,
    size: int = 32,
    seed: int = 0,
    arch: str = TINY_ARCH,
) -> Path:
    """Write a run's folder as if it had trained two epochs on a store."""
    recipe = tiny_recipe(*assignments, size=size, arch=arch)
    with Store(store_path) as store:
        split = split_slices(store, recipe.folds)
        record = make_record(recipe, store, split)
        patients = patients_of_slices(store, split.train_N)
    path.mkdir(parents=True)
    begin_folder(path, record, split.files)
    history = [_epoch(epoch, loss) for epoch, loss in enumerate((0.5, 0.4))]
    write_history(path, history, advice="")
    content = {
        "model": _weights(recipe, seed),
        SETTINGS: trained_settings(record),
        PATIENTS: patients.to_text(),
    }
    save_checkpoint(path / BEST, content)
    return path


def _weights(recipe: Recipe, seed: int) -> dict[str, torch.Tensor]:
    """Random weights whose logits differ from slice to slice."""
    torch.manual_seed(seed)
    model = build_model(
        recipe.model.arch, in_chans=recipe.data.num_channels, head=recipe.model.head
    )
    *_, head = model.children()
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        is_tiny = recipe.model.arch == TINY_ARCH
        head.weight.mul_(TINY_HEAD_GAIN if is_tiny else HEAD_GAIN)
        head.bias.zero_()
    return model.state_dict()


def write_folds(
    folder: Path, store_path: Path, *assignments: str, folds: Sequence[int] = (0, 1)
) -> list[Path]:
    """Write one run per fold."""
    return [
        write_run(
            folder / f"fold{k}", store_path, f"folds.fold={k}", *assignments, seed=k
        )
        for k in folds
    ]


def _epoch(epoch: int, loss: float) -> dict[str, float]:
    return {
        "epoch": epoch,
        "train_loss": loss,
        "train_loss_smooth": loss - 0.001,
        "valid_loss": loss,
        "valid_weighted_log_loss": loss + 0.01,
        "valid_accuracy": 0.9,
        "learning_rate": 1e-3,
        "slices_per_s": 10.0 + epoch,
        "seconds": 30.0,
        "wait_share": 0.1,
        "phase": 0,
    }
