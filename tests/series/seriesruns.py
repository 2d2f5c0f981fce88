"""Features folders as if runs had computed them, and small heads trained on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ichfast.predict.extract import extract_features
from ichfast.runs.trained import open_run
from ichfast.series.config import SeriesConfig
from ichfast.series.features import FeaturesHeader, FeaturesRun, FeaturesWriter
from ichfast.series.run import SeriesReport, train_series
from ichfast.store.store import Store
from tests.runs.trainedruns import write_folds

CPU = torch.device("cpu")
NUM_FEATURES = 5
CONFIG = SeriesConfig(
    width=8, hidden=4, layers=1, batch_size=1, epochs=3, min_steps=0, lr=1e-2
)


def write_features(
    folder: Path, store_path: Path, runs: Sequence[Path], *, fold_of_run: bool = True
) -> Path:
    """Write random features that tell something of the labels.

    Args:
        folder: the features folder; must not exist.
        store_path: the store of the runs.
        runs: folders of runs; each slice has the features of the run that held it out,
            or if there is only one run, of that.
        fold_of_run: whether the header has the runs' own folds.
    """
    opened = [open_run(path) for path in runs]
    rng = np.random.default_rng(3)
    with Store(store_path) as store:
        labels_NK = np.nan_to_num(store.labels_NK())
        header = FeaturesHeader(
            runs=tuple(
                each if fold_of_run else replace(each, fold=number)
                for number, each in enumerate(map(FeaturesRun.of, opened))
            ),
            store=str(store_path.absolute()),
            store_digest=store.header.digest,
            num_slices=len(store),
            num_features=NUM_FEATURES,
        )
        writer = FeaturesWriter(folder, header)
        mix_KD = rng.normal(size=(6, NUM_FEATURES))
        logits_NK = 2.0 * labels_NK - 1.0 + rng.normal(size=labels_NK.shape)
        features_ND = labels_NK @ mix_KD + rng.normal(size=(len(store), NUM_FEATURES))
        for number, run in enumerate(opened):
            rows_M = np.arange(len(store))
            if len(opened) > 1:
                rows_M = run.split(store).valid_N
            writer.write(
                rows_M,
                features_MD=features_ND[rows_M],
                logits_MK=logits_NK[rows_M],
                run=number,
            )
        writer.finish()
    return folder


def write_series_run(folder: Path, store_path: Path, *, fold: int) -> Path:
    """A finished series run over the runs of both folds of the tiny store.

    Args:
        folder: gets the runs, their features and the series run.
        store_path: the tiny store.
        fold: the fold that validates.
    """
    runs = write_folds(folder / "backbones", store_path)
    extract_features(runs, folder / "features", device=CPU)
    train(folder / "features", folder / "head", fold=fold)
    return folder / "head"


def train(
    features: Path,
    out: Path,
    config: SeriesConfig = CONFIG,
    *,
    fold: int | None = None,
    resume: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> SeriesReport:
    """`train_series` on the CPU."""
    return train_series(
        features,
        out,
        config,
        device=CPU,
        fold=fold,
        resume=resume,
        should_stop=should_stop,
    )
