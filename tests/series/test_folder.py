"""Whole series are read and blended; records that someone crafted are one line."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch

from ichfast.errors import IchfastError, RecipeError
from ichfast.series.batches import SeriesArrays
from ichfast.series.config import SeriesConfig
from ichfast.series.fit import HeadTrainer, predict_series, validate_head
from ichfast.series.folder import open_series_run, read_series
from ichfast.series.head import SeriesHead
from ichfast.series.record import (
    RECORD,
    SeriesRecord,
    read_series_record,
    trained_settings,
    write_series_record,
)
from ichfast.series.run import load_resumed
from ichfast.store.store import Store
from ichfast.system.checksums import FIELD, with_checksum
from ichfast.training.checkpoint import (
    BEST,
    LAST,
    PATIENTS,
    SETTINGS,
    load_checkpoint,
    save_checkpoint,
)
from tests.series.arrays import noise_series
from tests.series.seriesruns import train
from tests.wrong_values import with_wrong_values

CONFIG = SeriesConfig(width=10, hidden=6, layers=1, max_slices=6)
NUM_CRAFTED = 100
"""Checkpoints that are resumed, of some thousand."""

NO_JSON = ("=scalar", "=tensor", "=integers", "=nan")
"""Wrong values that a JSON file cannot hold."""

OF_THEIR_TYPE = ("=text", "=negative", "=fraction", "=missing", "=none", "=truth")
"""Wrong values that some settings can have."""


def make_head(config: SeriesConfig = CONFIG) -> SeriesHead:
    torch.manual_seed(0)
    return SeriesHead(11, config).eval()


def features_and_logits(
    num_slices: int,
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float32]]:
    rng = np.random.default_rng(5)
    return (
        rng.normal(size=(num_slices, 11)).astype(np.float16),
        rng.normal(size=(num_slices, 6)).astype(np.float32),
    )


def table_of(store: Store) -> pd.DataFrame:
    """Rows of whole series, one of more than `max_slices` and one of a single slice."""
    table = store.table
    return table[table["series"].isin(["R1", "R4"]) | (table["slice_id"] == "ID_R6_0")]


def test_series_are_read_and_blended_in_any_order(tiny_store: Store) -> None:
    table = table_of(tiny_store)
    features, logits = features_and_logits(len(table))
    shares = (0.0, 0.25, 0.5, 0.75, 1.0, 1.0)
    found = read_series(make_head(), features, logits, table, shares)
    rows = [np.arange(7), np.arange(7, 12), np.array([12])]
    assert found.series_M.tolist() == [0] * 7 + [1] * 5 + [2]
    arrays = SeriesArrays(
        features_ND=features,
        labels_NK=logits,
        position_mm_N=table["position_mm"].to_numpy(),
        rows=rows,
        series_labels_SK=logits[:3],
    )
    slices, series = predict_series(make_head(), arrays)
    alpha = np.array(shares)
    np.testing.assert_array_equal(
        found.slices_MK, (1 - alpha) * logits + alpha * slices
    )
    highest = np.stack([logits[each].max(axis=0) for each in rows])
    np.testing.assert_array_equal(
        found.series_SK, (1 - alpha) * highest + alpha * series
    )
    order = np.random.default_rng(1).permutation(len(table))
    again = read_series(
        make_head(), features[order], logits[order], table.iloc[order], shares
    )
    np.testing.assert_allclose(again.slices_MK, found.slices_MK[order], atol=1e-6)
    np.testing.assert_allclose(again.series_SK, found.series_SK, atol=1e-6)
    assert again.series_M.tolist() == found.series_M[order].tolist()


@pytest.fixture(scope="module")
def run_dir(one_features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("series") / "run"
    train(one_features, out)
    return out


@pytest.mark.slow
def test_a_record_that_was_edited_is_refused(run_dir: Path) -> None:
    whole = (run_dir / RECORD).read_text()
    (run_dir / RECORD).write_text(whole.replace('"width": 8', '"width": 16'))
    with pytest.raises(RecipeError, match="its checksum is wrong"):
        open_series_run(run_dir)
    record = read_series_record_of(whole, run_dir)
    write_series_record(
        run_dir, replace(record, series=replace(record.series, width=16))
    )
    with pytest.raises(
        RecipeError, match=r"has series.width = 16, but trained was series.width = 8"
    ):
        open_series_run(run_dir)
    (run_dir / RECORD).write_text(whole)
    assert open_series_run(run_dir).record == record


def read_series_record_of(text: str, run_dir: Path) -> SeriesRecord:
    (run_dir / RECORD).write_text(text)
    return read_series_record(run_dir)


@pytest.mark.slow
def test_a_crafted_record_is_used_or_refused_in_one_line(run_dir: Path) -> None:
    """Its checksum is right, and its checkpoint agrees with it."""
    whole = (run_dir / RECORD).read_text()
    content = load_checkpoint(run_dir / BEST)
    document = json.loads(whole)
    del document[FIELD]
    texts = {
        name: with_checksum(changed)
        for name, changed in with_wrong_values(document)
        if not name.endswith(NO_JSON)
    }
    accepted = []
    for name, text in texts.items():
        (run_dir / RECORD).write_text(text)
        try:
            settings = trained_settings(read_series_record(run_dir))
            accepted.append(name)
            save_checkpoint(run_dir / BEST, {**content, SETTINGS: settings})
            open_series_run(run_dir).load_head(torch.device("cpu"))
        except IchfastError as error:
            assert "\n" not in str(error), name  # noqa: PT017
    (run_dir / RECORD).write_text(whole)
    save_checkpoint(run_dir / BEST, content)
    assert len(texts) - len(accepted) > 200
    assert [each for each in accepted if not each.endswith(OF_THEIR_TYPE)] == []


@pytest.mark.slow
def test_a_crafted_checkpoint_is_resumed_or_refused_in_one_line(tmp_path: Path) -> None:
    """It holds what a checkpoint may hold; its checksums are right."""
    series, config = noise_series((3, 2)), replace(CONFIG, epochs=2, min_steps=0)

    def make_trainer() -> HeadTrainer:
        return HeadTrainer(series, series, config, torch.device("cpu"))

    trainer = make_trainer()
    trainer.history.append(trainer.train_epoch(0) | validate_head(trainer.head, series))
    trainer.best_weights = copy.deepcopy(trainer.head.state_dict())
    content = {**trainer.state(), SETTINGS: "", PATIENTS: ""}
    crafted = dict(with_wrong_values(content))
    num_refused = 0
    for name in random.Random(1).sample(sorted(crafted), NUM_CRAFTED):
        save_checkpoint(tmp_path / LAST, crafted[name])
        again = make_trainer()
        try:
            again.restore(load_resumed(tmp_path / LAST))
            again.fit()
        except IchfastError as error:
            num_refused += 1
            assert "\n" not in str(error), name  # noqa: PT017
    assert num_refused > NUM_CRAFTED / 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blend": [0.5]}, "its blend is for 1 classes"),
        ({"blend": [0.5] * 5 + [1.5]}, r"a share outside \[0, 1\]"),
        ({"num_features": 0}, "it has 0 features"),
        ({"num_features": 10**9}, "it has 1,000,000,000 features"),
        ({"features": []}, "it has 0 backbones"),
    ],
)
@pytest.mark.slow
def test_a_record_with_values_that_contradict_is_refused(
    run_dir: Path, changes: dict[str, object], message: str
) -> None:
    whole = (run_dir / RECORD).read_text()
    document = json.loads(whole)
    del document[FIELD]
    (run_dir / RECORD).write_text(with_checksum({**document, **changes}))
    with pytest.raises(RecipeError, match=message):
        read_series_record(run_dir)
    (run_dir / RECORD).write_text(whole)
