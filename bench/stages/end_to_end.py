"""`ichfast train` as a whole, against its arithmetic alone.

A run of one epoch opens the store, splits it into folds, measures the normalisation,
builds the model and two DALI pipelines, trains, validates, and writes TensorBoard
events and two checkpoints. The limit takes the same training steps and validates the
same slices, from batches that are already loaded, with a model that is already built.
In so small an epoch the fixed costs look large; in a real one they vanish.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace

import torch

from bench.harness.measure import Contender, Meter, Record
from bench.harness.steps import (
    ResidentBatches,
    load_resident,
    make_recipe,
    make_run_loader,
    make_trainer,
)
from bench.harness.workload import Workload
from ichfast.loading.splits import split_slices
from ichfast.recipes.recipe import Recipe
from ichfast.runs.run import train_run
from ichfast.store.store import Store
from ichfast.training.inference import predict_logits

STAGE = "end_to_end"


def measure(workload: Workload, meter: Meter) -> list[Record]:
    """Measure one whole run of the first arch, slices per second.

    Args:
        workload: What is measured.
        meter: Makes the records.
    """
    arch, device = workload.archs[0], workload.device
    recipe = make_recipe(arch, workload.size, workload.train_batch_size, device)
    one_epoch = replace(recipe, train=replace(recipe.train, epochs=1))
    num_train = workload.num_steps * workload.train_batch_size
    with workload.open_store() as store:
        path = store.path
        training, validation = _load_batches(store, recipe, num_train, device)
    num_slices = training.num_slices + validation.num_slices
    trainer = make_trainer(recipe, len(training), device)

    def run() -> int:
        with contextlib.redirect_stderr(io.StringIO()):  # hides its progress
            run_dir = workload.scratch_dir / "run"
            train_run(
                path, one_epoch, run_dir, device=torch.device(device), limit=num_train
            )
        return num_slices

    def compute() -> int:
        trainer.run_epoch(training)
        predict_logits(trainer.stepper.averaged_model, validation, trainer.stepper.amp)
        return num_slices

    settings = {
        "recipe": recipe.name,
        "arch": arch,
        "size": workload.size,
        "batch_size": workload.train_batch_size,
        "train_slices": training.num_slices,
        "valid_slices": validation.num_slices,
        "amp": str(trainer.stepper.amp.dtype).removeprefix("torch."),
    }
    ours = Contender(
        name="ichfast train",
        role="ichfast",
        run=run,
        before=lambda: workload.scratch("run"),
    )
    return meter.compare(
        [ours, Contender(name="arithmetic alone", role="limit", run=compute)],
        stage=STAGE,
        case=f"{arch} at {workload.size}",
        unit="slices",
        cache="hot",
        settings=settings,
    )


def _load_batches(
    store: Store, recipe: Recipe, num_train: int, device: str
) -> tuple[ResidentBatches, ResidentBatches]:
    """Load the batches that the run trains from and validates with."""
    split = split_slices(store, recipe.folds, limit=num_train)
    loaded = []
    for slices_N, to_train in ((split.train_N, True), (split.valid_N, False)):
        with make_run_loader(
            store, slices_N, recipe, device, to_train=to_train
        ) as loader:
            loaded.append(load_resident(loader))
    return loaded[0], loaded[1]
