"""The trainer's own loop, driven a few steps at a time.

What is measured is `Trainer`'s loop with everything it does in a step, fed once by
the loader and once by batches that lie ready on the device.

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
"""More than a benchmark takes; the schedule needs an end."""


class ResidentBatches:
    """A `loading.batch.Loader` of batches that were loaded before."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = list(batches)

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def num_slices(self) -> int:
        """Slices in one epoch."""
        return sum(len(batch) for batch in self.batches)

    def epoch(self, epoch: int, *, first_batch: int = 0) -> Iterator[Batch]:
        """The same batches in each epoch."""
        del epoch
        yield from self.batches[first_batch:]

    def close(self) -> None:
        """Nothing to release."""


class SteppedTrainer(Trainer):
    """A trainer that takes the steps of one epoch whenever it is told."""

    wait_share = 0.0
    """Of the time of the last epoch, what was waiting for a batch."""

    def begin(self, num_batches: int) -> None:
        """Make the optimizer and the schedule of the first phase."""
        phase = self.phases[0]
        self.stepper.start_phase(phase, phase.epochs * num_batches)

    def run_epoch(self, loader: Loader) -> int:
        """Train on all that a loader gives; returns the slices."""
        with contextlib.redirect_stderr(io.StringIO()):  # its progress, beside ours
            self.wait_share = self.train_epoch(loader, 0)["wait_share"]
        return loader.num_slices


def make_recipe(arch: str, size: int, batch_size: int, device: str) -> Recipe:
    """`fast`, for so many slices of any patients in a batch."""
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
    """A trainer of a recipe's model, ready to step."""
    torch_device = torch.device(device)
    trainer = SteppedTrainer(
        Stepper(
            build_run_model(recipe, torch_device),
            recipe.train,
            amp=choose_amp(recipe.train.amp, torch_device),
        ),
        run_dir=Path(),  # nothing is saved
        name_slices=lambda indices_B: list(map(str, indices_B.tolist())),
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
    """The loader that a run of the recipe would train from, or validate with."""
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
