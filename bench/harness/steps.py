"""The trainer's own loop, driven a few steps at a time.

`Trainer`'s loop is measured with everything it does in a step. It gets its batches
either from the loader or from a list of batches that are already on the device.

Shape letters: N slices, B slices of a batch.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ichfast.loading.batch import Batch, Loader
from ichfast.loading.config import measure_normalization
from ichfast.loading.loader import DaliLoader, make_loader
from ichfast.models.precision import choose_amp
from ichfast.recipes.recipe import Recipe
from ichfast.recipes.resolve import resolve_recipe
from ichfast.runs.run import build_run_model
from ichfast.store.store import Store
from ichfast.training.step import Stepper
from ichfast.training.trainer import Trainer

MANY_EPOCHS = 10_000
"""Epochs of the schedule, which needs an end: more than a benchmark trains."""


class ResidentBatches:
    """A `loading.batch.Loader` of batches that are loaded already."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = list(batches)

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def num_slices(self) -> int:
        """Slices in one epoch."""
        return sum(batch.num_slices for batch in self.batches)

    def epoch(self, epoch: int, *, first_batch: int = 0) -> Iterator[Batch]:
        """Give the same batches in each epoch."""
        del epoch
        yield from self.batches[first_batch:]

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


class SteppedTrainer(Trainer):
    """A trainer that trains one epoch at a time, on request."""

    wait_share = 0.0
    """Share of the last epoch that was spent waiting for a batch."""

    def begin(self, num_batches: int) -> None:
        """Make the optimizer and the schedule of the first phase."""
        phase = self.phases[0]
        self.stepper.start_phase(phase, phase.epochs * num_batches)

    def run_epoch(self, loader: Loader) -> int:
        """Train on an epoch of a loader; returns the number of slices."""
        with contextlib.redirect_stderr(io.StringIO()):  # hides its progress
            self.wait_share = self.train_epoch(loader, 0)["wait_share"]
        return loader.num_slices


def make_recipe(arch: str, size: int, batch_size: int, device: str) -> Recipe:
    """Resolve the recipe `fast` for a benchmark: no weights, any patients together.

    Args:
        arch: The backbone.
        size: Side of the model's input, pixels.
        batch_size: Slices in a batch.
        device: ``cuda`` or ``cpu``.
    """
    return resolve_recipe(
        "fast",
        arch=arch,
        size=size,
        device_type=device,
        assignments=[
            "model.pretrained=no",
            f"data.batch_size={batch_size}",
            f"train.epochs={MANY_EPOCHS}",
            "folds.kind=slice",
        ],
    )


def make_trainer(recipe: Recipe, num_batches: int, device: str) -> SteppedTrainer:
    """Make a trainer of a recipe's model, ready to step.

    Args:
        recipe: Of `make_recipe`.
        num_batches: Steps in an epoch.
        device: ``cuda`` or ``cpu``.
    """
    torch_device = torch.device(device)
    trainer = SteppedTrainer(
        Stepper(
            build_run_model(recipe, torch_device),
            recipe.train,
            amp=choose_amp(recipe.train.amp, torch_device),
        ),
        run_dir=Path(),  # nothing is saved
        name_slices=lambda indices_B: list(map(str, indices_B.tolist())),
        saved_with={},
    )
    trainer.begin(num_batches)
    return trainer


def make_run_loader(
    store: Store,
    slices_N: npt.NDArray[np.int64],
    recipe: Recipe,
    device: str,
    *,
    to_train: bool,
) -> DaliLoader:
    """Make the loader that a run of the recipe would use.

    Args:
        store: Holds the slices.
        slices_N: Store positions of the slices.
        recipe: Of `make_recipe`.
        device: ``cuda`` or ``cpu``.
        to_train: Shuffle and augment; False to validate.
    """
    return make_loader(
        store,
        slices_N,
        recipe.data,
        normalization=measure_normalization(store, slices_N, recipe.data),
        augment=recipe.augment if to_train else None,
        shuffle=to_train,
        device=device,
    )


def load_resident(loader: Loader) -> ResidentBatches:
    """Load an epoch's batches and keep them on the device."""
    return ResidentBatches(list(loader.epoch(0)))
