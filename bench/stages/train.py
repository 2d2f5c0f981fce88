"""Training from the loader, against the same steps on batches that are already loaded.

The ratio of the two is the share of the model's speed that the loader leaves. The rate
of the loader alone and the share of time spent waiting for it are measured too. On a
CPU loader and model use the same cores, so that the cost of the loader cannot be
hidden. The peer is timm's step on the same model and batches. On a GPU the memory of
each is measured as well.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch

from bench.harness.measure import Clocked, Contender, Meter, Record
from bench.harness.steps import (
    SteppedTrainer,
    load_resident,
    make_recipe,
    make_run_loader,
    make_trainer,
)
from bench.harness.workload import Workload
from bench.peers import peers_of
from bench.peers.timm_step import TimmTrainer
from ichfast.loading.loader import DaliLoader
from ichfast.recipes.recipe import Recipe
from ichfast.runs.run import build_run_model
from ichfast.store.store import Store

STAGE = "train"


def measure(workload: Workload, meter: Meter) -> list[Record]:
    """Measure training of each arch, slices per second.

    Args:
        workload: What is measured.
        meter: Makes the records.
    """
    records = []
    with workload.open_store() as store:
        for arch in workload.archs:
            records += _measure_arch(store, arch, workload, meter)
    return records


def _measure_arch(
    store: Store, arch: str, workload: Workload, meter: Meter
) -> list[Record]:
    recipe = make_recipe(
        arch, workload.size, workload.train_batch_size, workload.device
    )
    labelled_N = np.flatnonzero(~np.isnan(store.labels_NK()).any(axis=1))
    slices_N = np.resize(labelled_N, workload.num_steps * workload.train_batch_size)
    trainer = make_trainer(recipe, workload.num_steps, workload.device)
    case = f"{arch} at {workload.size}"
    waited: list[float] = []
    with make_run_loader(
        store, slices_N, recipe, workload.device, to_train=True
    ) as loader:
        contenders = _make_contenders(trainer, loader, recipe, workload, waited)
        peaks_mib: dict[str, list[float]] = {each.name: [] for each in contenders}
        if workload.device != "cpu":
            contenders = [
                watch_memory(each, peaks_mib[each.name]) for each in contenders
            ]
        settings = {
            "recipe": recipe.name,
            "arch": arch,
            "size": workload.size,
            "level": loader.level,
            "batch_size": workload.train_batch_size,
            "steps": workload.num_steps,
            "windows": list(recipe.data.windows),
            "amp": str(trainer.stepper.amp.dtype).removeprefix("torch."),
        }
        common: dict[str, Any] = {"stage": STAGE, "settings": settings}
        records = meter.compare(
            contenders, case=case, unit="slices", cache="hot", **common
        )
        name = "waiting for the loader"
        counted = waited[meter.warmup :]
        records.append(
            meter.note(counted, case=case, name=name, unit="%", cache="hot", **common)
        )
        return records + [
            meter.note(
                counted_mib,
                case=f"{case}, GPU memory",
                name=name,
                unit="MiB",
                cache="none",
                **common,
            )
            for name, peaks in peaks_mib.items()
            if (counted_mib := peaks[meter.warmup :])
        ]


def _make_contenders(
    trainer: SteppedTrainer,
    loader: DaliLoader,
    recipe: Recipe,
    workload: Workload,
    waited: list[float],
) -> list[Contender]:
    """Make all contenders; a turn from the loader appends its waiting to `waited`."""
    resident = load_resident(loader)

    def train_from_loader() -> int:
        num_slices = trainer.run_epoch(loader)
        waited.append(100 * trainer.wait_share)
        return num_slices

    limits = {
        "loader alone": lambda: sum(batch.num_slices for batch in loader),
        "resident batches": lambda: trainer.run_epoch(resident),
    }

    @cache  # made in its warm-up turn: if that fails, only the peer is left out
    def timm() -> TimmTrainer:
        return TimmTrainer(
            build_run_model(recipe, trainer.stepper.device),
            recipe.train.phases[0],
            trainer.stepper.amp,
            ema_decay=recipe.train.ema_decay,
        )

    return [
        Contender(name="from the loader", role="ichfast", run=train_from_loader),
        *(Contender(name=name, role="limit", run=run) for name, run in limits.items()),
        *(
            Contender(
                name=name,
                role="peer",
                before=timm,
                run=lambda: timm().run_epoch(resident.batches),
            )
            for name in peers_of(STAGE, workload.peers)
        ),
    ]


def watch_memory(contender: Contender, peaks_mib: list[float]) -> Contender:
    """Append the peak of the GPU memory of tensors to a list in each turn, MiB.

    It includes the memory that other contenders keep, the same for all. Torch counts
    on the host: this neither waits for the GPU nor slows it.

    Args:
        contender: Measured in the same turns.
        peaks_mib: Grows by a number in each turn.
    """

    def run() -> int | Clocked:
        done = contender.run()
        peaks_mib.append(torch.cuda.max_memory_allocated() / 2**20)
        return done

    def before() -> None:
        contender.before()
        torch.cuda.reset_peak_memory_stats()

    return replace(contender, run=run, before=before)
