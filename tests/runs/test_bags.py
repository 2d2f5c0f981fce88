"""Labels of whole studies train, validate and are judged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from ichfast.errors import InterruptionError, LoaderError, RecipeError
from ichfast.evaluation.evaluate_file import evaluate_file
from ichfast.evaluation.predictions import write_predictions
from ichfast.predict.ensemble import predict_runs
from ichfast.recipes.recipe import Recipe
from ichfast.recipes.resolve import resolve_recipe
from ichfast.runs.record import read_record
from ichfast.runs.run import train_run
from ichfast.store.store import Store
from ichfast.store.tables import BAG_LABELS
from ichfast.system.ranks import Ranks
from ichfast.training.checkpoint import LAST, load_checkpoint
from ichfast.training.history import read_history
from tests.conftest import TINY_ARCH, add_tiny_arch
from tests.evaluation.test_evaluation import scores_of
from tests.runs.rank_processes import run_ranks
from tests.store.slice_store import bag_labels, simple_rows, write_slices
from tests.training.tiny_trainer import without_clock

CPU = torch.device("cpu")
SLICES = 8
"""Slices of a study."""


def write_studies(
    path: Path, is_labelled: Sequence[int], *, own_labels: bool = False
) -> None:
    """Write studies of one patient each; every other one bleeds in two of its slices.

    Args:
        path: the store's folder.
        is_labelled: for each study the label of `any` and `subdural`.
        own_labels: the slices of the last three studies have the labels, and not the
            studies.
    """
    rng = np.random.default_rng(8)
    num_slices = SLICES * len(is_labelled)
    rows = simple_rows(num_slices, slices_a_series=SLICES)
    labels_NK = np.full((num_slices, 6), np.nan)
    slices = []
    for k, row in enumerate(rows):
        study, place = divmod(k, SLICES)
        pixels = rng.integers(1020, 1060, (64, 64), dtype=np.uint16)
        if study % 2 and place in (study % 7, study % 7 + 1):
            y, x = rng.integers(8, 40, 2)
            pixels[y : y + 16, x : x + 16] += 40
        slices.append(pixels)
        if own_labels and study >= len(is_labelled) - 3:
            labels_NK[k, [0, 5]] = is_labelled[study]
        else:
            label = is_labelled[study]
            row |= bag_labels("study", any=label, subdural=label)
    write_slices(path, slices, rows, labels_NK)


def recipe(*assignments: str) -> Recipe:
    return resolve_recipe(
        "fast",
        arch=TINY_ARCH,
        size=32,
        device_type="cpu",
        assignments=[
            *("model.pretrained=no", "data.batch_size=32", "data.bag_slices=8"),
            *("folds.num_folds=2", "train.epochs=2", "train.ema_decay=0"),
            *assignments,
        ],
    )


@pytest.mark.slow
def test_labels_of_studies_alone_find_the_studies_of_other_patients_that_bleed(
    tmp_path: Path,
) -> None:
    bleeds = np.arange(64) % 2
    shuffled = np.random.default_rng(3).permutation(bleeds)
    found = {}
    for name, labels in (("true", bleeds), ("shuffled", shuffled)):
        write_studies(tmp_path / name, labels.tolist())
        out = tmp_path / f"{name}-run"
        settings = "train.epochs=8", "train.phases.0.lr=3e-3", "augment=none"
        train_run(tmp_path / name, recipe(*settings), out, device=CPU)
        table = predict_runs([out], device=CPU)
        write_predictions(tmp_path / f"{name}.csv", table)
        result = evaluate_file(
            tmp_path / f"{name}.csv", replicates=100, allow_leak=False, level="study"
        )
        found[name] = scores_of(result.evaluation, "any", level="study")
        assert found[name].count == 32
    assert found["true"].auc is not None
    assert found["shuffled"].auc is not None
    assert found["true"].auc > 0.9
    low, high = found["true"].intervals["auc"] or (0, 0)
    assert low > 0.7
    low, high = found["shuffled"].intervals["auc"] or (0, 0)
    assert low < 0.5 < high


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    """Twelve studies, of which three have labels of their slices."""
    write_studies(tmp_path / "store", [0, 1, 1, 1, 0, 1] * 2, own_labels=True)
    return tmp_path / "store"


def figures_by_hand(run_dir: Path) -> dict[str, float]:
    """The validation of a run's best epoch, from its predictions."""
    table = predict_runs([run_dir], device=CPU)
    probs, labels = [], []
    for name in ("any", "subdural"):
        own = table[table[f"label_{name}"].notna()]
        probs += own[name].tolist()
        labels += own[f"label_{name}"].astype(float).tolist()
        studies = table.groupby("study")[[name, f"study_{name}"]].max().dropna()
        probs += studies[name].tolist()
        labels += studies[f"study_{name}"].astype(float).tolist()
    p, y = np.array(probs), np.array(labels)
    losses = -np.where(y == 1, np.log(p), np.log1p(-p))
    weights = np.repeat([2.0, 1.0], len(y) // 2)
    share = y.mean()  # of both classes
    constant = -np.where(y == 1, np.log(share), np.log(1 - share))
    return {
        "prevalence": np.average(constant, weights=weights),
        "valid_loss": losses.mean(),
        "valid_weighted_log_loss": np.average(losses, weights=weights),
        "valid_accuracy": ((p > 0.5) == (y == 1)).mean(),
    }


def train_as_rank(ranks: Ranks, store_path: Path, out: Path) -> None:
    add_tiny_arch()  # in another process
    settings = recipe("data.batch_size=8")
    train_run(store_path, settings, out, device=CPU, ranks=ranks)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_studies_validate_by_their_highest_slice_on_any_number_of_ranks(
    store_path: Path, tmp_path: Path, num_ranks: int
) -> None:
    out = tmp_path / "run"
    report = None
    if num_ranks == 1:
        report = train_run(store_path, recipe("data.batch_size=8"), out, device=CPU)
    else:
        assert run_ranks(num_ranks, train_as_rank, store_path, out) == [""] * num_ranks
    history = read_history(out)
    best = history.iloc[int(history["valid_loss"].argmin())]
    expected = figures_by_hand(out)
    prevalence = expected.pop("prevalence")
    assert {name: best[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    if report:
        assert report.prevalence_weighted_log_loss == pytest.approx(prevalence)
    counts = read_record(out).counts
    assert sum(counts.train_labels.values()) % (2 * SLICES) == 0
    assert counts.train_bag_labels["any"] == counts.train_bag_labels["subdural"] > 3
    assert counts.train_slices + counts.valid_slices == 12 * SLICES


@pytest.mark.slow
def test_a_run_with_bags_resumes_to_the_bit(store_path: Path, tmp_path: Path) -> None:
    settings = recipe("data.batch_size=8", "train.checkpoint_minutes=0")
    train_run(store_path, settings, tmp_path / "whole", device=CPU)
    steps = iter(range(100))
    with pytest.raises(InterruptionError):
        train_run(
            store_path,
            settings,
            tmp_path / "stopped",
            device=CPU,
            should_stop=lambda: next(steps) == 3,
        )
    train_run(store_path, settings, tmp_path / "stopped", device=CPU, resume=True)
    whole, stopped = (
        load_checkpoint(tmp_path / name / LAST) for name in ("whole", "stopped")
    )
    assert without_clock(whole["history"]) == without_clock(stopped["history"])
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, stopped["model"][name]), name


def test_mixup_and_batches_of_less_than_a_block_are_refused_in_one_line(
    store_path: Path, tmp_path: Path
) -> None:
    for setting, error, message in (
        ("train.phases.0.mixup_alpha=0.4", RecipeError, "mixup blends slices of diff"),
        (
            "data.batch_size=7",
            LoaderError,
            r"multiple of data.bag_slices \(8\), got 7",
        ),
        ("data.sampling=study", LoaderError, "use --set data.sampling=all"),
    ):
        with pytest.raises(error, match=message) as caught:
            train_run(store_path, recipe(setting), tmp_path / "run", device=CPU)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("given", [20, 96])
def test_a_batch_is_shrunk_to_whole_blocks(
    store_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, given: int
) -> None:
    settings = recipe(f"data.batch_size={given}", "train.epochs=1")
    train_run(store_path, settings, tmp_path / "run", device=CPU)
    batch_size = read_record(tmp_path / "run").recipe.data.batch_size
    assert f"batch size {given} becomes {batch_size}" in caplog.text
    assert batch_size % 8 == 0
    assert (batch_size == 16) == (given == 20)


@pytest.mark.slow
def test_the_labels_of_studies_come_with_the_predictions(
    store_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train_run(store_path, recipe("train.epochs=1"), out, device=CPU)
    table = predict_runs([out], device=CPU)
    with Store(store_path) as store:
        rows = store.table.set_index("slice_id").loc[table["slice_id"]]
    for name in BAG_LABELS["study"]:
        assert table[name].tolist() == rows[name].tolist()
    assert not set(BAG_LABELS["series"]) & set(table)
