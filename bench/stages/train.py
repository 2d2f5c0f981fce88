"""Training from the loader, against the same steps on batches that lie ready.

The ratio of the two is what the loader leaves of the model's speed. On a CPU both
compute on the same cores, so what the loader costs cannot be hidden.
"""

from __future__ import annotations

import numpy as np

from bench.measure import Contender, Meter, Record
from bench.steps import load_resident, make_recipe, make_run_loader, make_trainer
from bench.workload import Workload
from ichfast.store import Store

STAGE = "train"


def measure(workload: Workload, meter: Meter) -> list[Record]:
    """Measure training of each arch, slices a second."""
    records = []
    with workload.open_store() as store:
        for arch in workload.archs:
            records += _measure_arch(store, arch, workload, meter)
    return records


def _measure_arch(
    store: Store, arch: str, workload: Workload, meter: Meter
) -> list[Record]:
    recipe = make_recipe(arch, workload.size, workload.batch_size, workload.device)
    labelled_N = np.flatnonzero(~np.isnan(store.labels_NK()).any(axis=1))
    slices_N = np.resize(labelled_N, workload.num_steps * workload.batch_size)
    trainer = make_trainer(recipe, workload.num_steps, workload.device)
    with make_run_loader(
        store, slices_N, recipe, workload.device, to_train=True
    ) as loader:
        resident = load_resident(loader)
        return meter.compare(
            [
                Contender(
                    name="from the loader",
                    role="ichfast",
                    run=lambda: trainer.run_epoch(loader),
                ),
                Contender(
                    name="resident batches",
                    role="limit",
                    run=lambda: trainer.run_epoch(resident),
                ),
            ],
            stage=STAGE,
            case=f"{arch} at {workload.size}",
            unit="slices",
            cache="hot",
            settings={
                "recipe": recipe.name,
                "arch": arch,
                "size": workload.size,
                "level": loader.level,
                "batch_size": workload.batch_size,
                "steps": workload.num_steps,
                "windows": list(recipe.data.windows),
                "amp": str(trainer.stepper.amp.dtype).removeprefix("torch."),
            },
        )
