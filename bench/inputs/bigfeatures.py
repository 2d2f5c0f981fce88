"""A features folder as large as a store's, and a run that its features are of.

The run is trained for one epoch on a few slices of the store. Features and logits are
random, the same in every `CHUNK_ROWS` rows.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import torch

from ichfast.labels import CLASSES
from ichfast.recipes.resolve import resolve_recipe
from ichfast.runs.run import train_run
from ichfast.runs.trained import TrainedRun, open_run
from ichfast.series.features import FeaturesHeader, FeaturesRun, FeaturesWriter
from ichfast.store.store import Store

ARCH = "timm:test_efficientnet"
"""A network that costs next to nothing, so that the rest can be seen."""

SIDE = 32
"""Side of its images, pixels."""

TRAIN_SLICES = 256
"""Slices that it is trained on."""

NUM_FEATURES = 2048
"""D: that of three of the four backbones."""

CHUNK_ROWS = 16_384
"""Rows that are written at a time."""


def train_tiny_run(store: Path, run_dir: Path) -> TrainedRun:
    """Train a run whose network costs next to nothing.

    Args:
        store: With labels; its checksums are not looked at.
        run_dir: Does not exist yet.
    """
    recipe = resolve_recipe(
        "fast",
        arch=ARCH,
        size=SIDE,
        device_type="cpu",
        assignments=["model.pretrained=no", "train.epochs=1", "data.check=never"],
    )
    with contextlib.redirect_stderr(io.StringIO()):  # hides its progress
        train_run(
            store, recipe, run_dir, device=torch.device("cpu"), limit=TRAIN_SLICES
        )
    return open_run(run_dir)


def write_big_features(folder: Path, store: Store, run: TrainedRun) -> None:
    """Write features of every slice of a store.

    Args:
        folder: Does not exist yet.
        store: The store.
        run: A run that was trained on it.
    """
    header = FeaturesHeader(
        runs=(FeaturesRun.of(run),),
        store=str(store.path.absolute()),
        store_digest=store.header.digest,
        num_slices=len(store),
        num_features=NUM_FEATURES,
    )
    rng = np.random.default_rng(0)
    features_MD = rng.random((CHUNK_ROWS, NUM_FEATURES), np.float32)
    logits_MK = rng.normal(-2.0, 1.0, (CHUNK_ROWS, len(CLASSES)))
    writer = FeaturesWriter(folder, header)
    for first in range(0, len(store), CHUNK_ROWS):
        rows_M = np.arange(first, min(first + CHUNK_ROWS, len(store)))
        writer.write(
            rows_M,
            features_MD=features_MD[: len(rows_M)],
            logits_MK=logits_MK[: len(rows_M)],
            run=0,
        )
    writer.finish()
