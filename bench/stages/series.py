"""Whole series: features of slices, the series head, and predicting with it.

* Features, against the same network that gives logits only and writes nothing.
* The series head in its large form: training, against the same steps on a batch that
  is ready; predicting, against its forward pass on one.
* ``ichfast predict`` with a series run, against the slice model alone. The slices are
  holes, and the network costs next to nothing, so that the rest can be seen.
* ``ichfast train-series`` on as many features as the competition has slices: seconds
  and memory.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bench.harness.measure import Contender, Meter, Record
from bench.harness.peak import watch_command
from bench.harness.steps import make_recipe
from bench.harness.workload import Workload, check_space
from bench.inputs.bigfeatures import (
    ARCH,
    NUM_FEATURES,
    SIDE,
    train_tiny_run,
    write_big_features,
)
from bench.stages.loader import pick_slices
from ichfast.labels import CLASSES
from ichfast.loading.loader import make_loader
from ichfast.models.precision import choose_amp
from ichfast.predict.ensemble import predict_runs
from ichfast.predict.extract import extract_features
from ichfast.predict.networks import ComputeConfig, NetworkTask, compute
from ichfast.runs.run import train_run
from ichfast.runs.trained import open_run
from ichfast.series.batches import SeriesArrays, SeriesBatches
from ichfast.series.config import SeriesConfig, resolve_series
from ichfast.series.fit import HeadTrainer, predict_series
from ichfast.series.head import SeriesHead, SeriesLogits
from ichfast.series.loss import series_loss
from ichfast.series.run import train_series
from ichfast.store.store import Store
from ichfast.system.ranks import Ranks
from ichfast.training.inference import predict_logits

STAGE = "series"

SLICES_A_SERIES = 36
"""Slices of a series of random features; the competition's have 34.6 on average."""

AIM_MIB = 5722.0
"""Aim for the memory of train-series: 6 GB, in MiB."""

DRY_TIMEOUT_S = 3600.0
"""Time after which train-series is killed, seconds."""

_CPU = torch.device("cpu")

DRY_SETTINGS = (
    *("series=small", "series.batch_size=256"),
    *("series.epochs=1", "series.min_steps=0"),
)
"""One epoch of a small head in large batches: all rows, and little arithmetic."""


def measure(workload: Workload, meter: Meter) -> list[Record]:
    """Measure features, the head, predicting, and training at full size.

    Args:
        workload: What is measured.
        meter: Makes the records.
    """
    return [
        *_measure_features(workload, meter),
        *_measure_head(workload, meter),
        *_measure_predict(workload, meter),
        *_measure_full_size(workload, meter),
    ]


def _measure_features(workload: Workload, meter: Meter) -> list[Record]:
    """Measure features and logits of the first arch, slices per second."""
    arch, device = workload.archs[0], torch.device(workload.device)
    recipe = make_recipe(arch, workload.size, workload.train_batch_size, device.type)
    recipe = replace(recipe, train=replace(recipe.train, epochs=1))
    run_dir = workload.scratch("run")
    with workload.open_store() as store:
        with _quiet():
            limit = 2 * workload.train_batch_size
            train_run(store.path, recipe, run_dir, device=device, limit=limit)
        run = open_run(run_dir)
        positions_N = np.unique(pick_slices(store, workload.num_computed))
        task = NetworkTask(run=run, positions_M=positions_N, with_features=True)
        model = run.load_model(device)
        batch_size = min(len(positions_N), workload.batch_size)
        data = replace(recipe.data, batch_size=batch_size)

        def extract() -> int:
            with (
                _quiet(),
                compute(
                    *([task], store, workload.scratch("features")),
                    config=ComputeConfig(batch_size=batch_size),
                    device=device,
                    ranks=Ranks(),
                ),
            ):
                return len(positions_N)

        def classify() -> int:
            with make_loader(
                *(store, positions_N, data),
                normalization=run.record.normalization,
                device=device.type,
            ) as loader:
                predict_logits(model, loader, choose_amp(recipe.train.amp, device))
            return len(positions_N)

        return meter.compare(
            [
                Contender(name="features", role="ichfast", run=extract),
                Contender(name="logits alone", role="limit", run=classify),
            ],
            stage=STAGE,
            case=f"features, {arch} at {workload.size}",
            unit="slices",
            cache="hot",
            settings={
                "arch": arch,
                "size": workload.size,
                "batch_size": batch_size,
                "slices": len(positions_N),
            },
        )


def _measure_head(workload: Workload, meter: Meter) -> list[Record]:
    """Measure the series head on random features, series per second."""
    arrays = _random_series(workload.num_head_series)
    config = replace(SeriesConfig(), batch_size=-(-len(arrays) // 2))
    device = torch.device(workload.device)
    trainer = HeadTrainer(arrays, arrays, config, device)
    ready = _ReadyBatch(arrays, config, device)

    def train() -> int:
        trainer.train_epoch(0)
        return len(arrays)

    def predict() -> int:
        predict_series(trainer.head, arrays)
        return len(arrays)

    settings = {
        "features": NUM_FEATURES,
        "slices_a_series": SLICES_A_SERIES,
        "batch_size": config.batch_size,
        "series": len(arrays),
    }
    return [
        record
        for case, ours, limit in (
            ("training", train, ready.train),
            ("predicting", predict, ready.predict),
        )
        for record in meter.compare(
            [
                Contender(name="series head", role="ichfast", run=ours),
                Contender(name="on a ready batch", role="limit", run=limit),
            ],
            stage=STAGE,
            case=f"series head, {case}",
            unit="series",
            cache="none",
            settings=settings,
        )
    ]


class _ReadyBatch:
    """A head that sees one batch twice, the same work as two batches.

    Args:
        arrays: Twice as many series as a batch has.
        config: Of the head.
        device: Where it computes.
    """

    def __init__(
        self, arrays: SeriesArrays, config: SeriesConfig, device: torch.device
    ) -> None:
        self._head = SeriesHead(NUM_FEATURES, config).to(device)
        batches = SeriesBatches(arrays, config, device)
        self._batch = batches.batch(np.arange(config.batch_size))
        self._optimizer = torch.optim.AdamW(self._head.parameters(), lr=config.lr)

    def train(self) -> int:
        """Take two steps; returns the number of series."""
        self._head.train()
        for _ in range(2):
            loss = series_loss(self._logits(), self._batch)
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self._head.parameters(), 1.0)
            self._optimizer.step()
        return 2 * len(self._batch.is_slice_BZ)

    @torch.inference_mode()
    def predict(self) -> int:
        """Take two forward passes; returns the number of series."""
        self._head.eval()
        for _ in range(2):
            self._logits()
        return 2 * len(self._batch.is_slice_BZ)

    def _logits(self) -> SeriesLogits:
        batch = self._batch
        return self._head(batch.features_BZD, batch.is_slice_BZ, batch.position_BZ)


def _random_series(num_series: int) -> SeriesArrays:
    """Make series of random features and labels."""
    rng = np.random.default_rng(0)
    num_slices = num_series * SLICES_A_SERIES
    labels_NK = rng.integers(0, 2, (num_slices, len(CLASSES)))
    return SeriesArrays(
        features_ND=rng.random((num_slices, NUM_FEATURES), np.float32).astype("f2"),
        labels_NK=labels_NK.astype(np.float32),
        position_mm_N=np.tile(5.0 * np.arange(SLICES_A_SERIES), num_series),
        rows=np.split(np.arange(num_slices), num_series),
        series_labels_SK=np.full((num_series, len(CLASSES)), np.nan, np.float32),
    )


def _measure_predict(workload: Workload, meter: Meter) -> list[Record]:
    """Compare predicting with a series run and with its slice model, slices/s."""
    records = []
    for num_slices in workload.predicted_slices:
        store = workload.store_of_holes(num_slices)
        run_dir, head_dir = workload.scratch("run"), workload.scratch("series-run")
        features = workload.scratch("features")
        with _quiet():
            train_tiny_run(store, run_dir)
            extract_features([run_dir], features, device=_CPU)
            settings = ["series.epochs=1", "series.min_steps=0"]
            config = resolve_series(settings, num_slices=num_slices)
            train_series(features, head_dir, config, device=_CPU)
        # Another store than that of the runs, which they predict as a whole.
        other = workload.store_of_holes(num_slices - 1)
        records += meter.compare(
            [
                Contender(name=name, role=role, run=_predict(path, other, workload))
                for name, role, path in (
                    ("series run", "ichfast", head_dir),
                    ("slice model alone", "limit", run_dir),
                )
            ],
            stage=STAGE,
            case=f"predict, {num_slices:,} slices",
            unit="slices",
            cache="hot",
            settings={"slices": num_slices - 1, "arch": ARCH, "size": SIDE},
        )
    return records


def _predict(run_dir: Path, store: Path, workload: Workload) -> Callable[[], int]:
    device = torch.device(workload.device)

    def run() -> int:
        with _quiet():
            return len(predict_runs([run_dir], store_path=store, device=device))

    return run


def _measure_full_size(workload: Workload, meter: Meter) -> list[Record]:
    """Measure an epoch of `ichfast train-series` and the memory that it takes."""
    num_slices = workload.head_slices
    path = workload.store_of_holes(num_slices)
    check_space(workload.scratch_dir, 2 * num_slices * NUM_FEATURES)
    features, out = workload.scratch("features"), workload.scratch("series-run")
    run = train_tiny_run(path, workload.scratch("run"))
    with Store(path) as store:
        write_big_features(features, store, run)
    case = f"train-series, {num_slices:,} slices, one epoch"
    meter.on_turn(f"{STAGE}, {case}")
    command = [sys.executable, "-m", "ichfast", "train-series", str(features), str(out)]
    command += ["--device", workload.device]
    for assignment in DRY_SETTINGS:
        command += ["--set", assignment]
    started_s = time.perf_counter()
    peak = watch_command(command, timeout_s=DRY_TIMEOUT_S)
    seconds = time.perf_counter() - started_s
    workload.scratch(features.name)
    settings = {"slices": num_slices, "features": NUM_FEATURES, "set": DRY_SETTINGS}
    return [
        meter.note(
            [value],
            stage=STAGE,
            case=case,
            name=name,
            unit=unit,
            cache="hot",
            settings={**settings, **aim},
        )
        for name, value, unit, aim in (
            ("time", seconds, "s", {}),
            ("memory of the process", peak.parent_mib, "MiB", {"aim": AIM_MIB}),
        )
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide progress."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
