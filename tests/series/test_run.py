"""A series run: what it leaves, the leak rule, exact resume, refusals."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ichfast.errors import (
    CheckpointError,
    FoldError,
    IchfastError,
    InterruptionError,
    PredictionError,
    RecipeError,
    StoreError,
    TrainError,
)
from ichfast.series.blend import ALPHAS
from ichfast.series.folder import is_series_run, open_series_run
from ichfast.series.record import read_series_record
from ichfast.store.store import Store
from ichfast.system.locks import locked_folder
from ichfast.training.checkpoint import BEST, LAST, load_checkpoint
from ichfast.training.history import read_history
from tests.series.seriesruns import CONFIG, train

pytestmark = pytest.mark.slow


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return open_series_run(run_dir).weights


def without_times(run_dir: Path) -> pd.DataFrame:
    return read_history(run_dir).drop(columns=["slices_per_s", "seconds", "wait_share"])


def assert_equal_runs(run_dir: Path, other: Path) -> None:
    pd.testing.assert_frame_equal(without_times(run_dir), without_times(other))
    wanted = weights(other)
    assert all(
        torch.equal(each, wanted[name]) for name, each in weights(run_dir).items()
    )
    assert read_series_record(run_dir) == read_series_record(other)
    names = [{path.name for path in each.iterdir()} for each in (run_dir, other)]
    assert names[0] == names[1]


@pytest.fixture(scope="module")
def whole(one_features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, undisturbed. Not to be changed."""
    run_dir = tmp_path_factory.mktemp("series") / "whole"
    train(one_features, run_dir)
    return run_dir


def test_a_run_leaves_all_that_it_needs(
    whole: Path, fold_runs: list[Path], tiny_store: Store
) -> None:
    run = open_series_run(whole)
    assert is_series_run(whole)
    assert not is_series_run(fold_runs[0])
    assert run.name == "whole"
    assert run.trained_on(tiny_store)
    assert run.find_store() == tiny_store.path
    assert len(read_history(whole)) == CONFIG.epochs
    assert [each.digest for each in run.backbones] == [run.record.features[0].digest]
    assert len(run.record.blend) == 6
    assert set(run.record.blend) <= set(ALPHAS)
    counts = run.record.counts
    assert counts.train_series + counts.valid_series == 5  # one series has no labels
    assert counts.train_patients + counts.valid_patients == 4
    head = run.load_head(torch.device("cpu"))
    assert not head.training
    assert head.config == CONFIG


def test_the_head_trains_on_the_patients_of_its_backbone_only(
    whole: Path, tiny_store: Store
) -> None:
    run = open_series_run(whole)
    split = run.backbones[0].split(tiny_store)
    assert run.head_patients == run.backbones[0].patients
    trained_N = run.head_patients.trained_on_N(tiny_store)
    assert (trained_N[split.train_N] == 1).all()
    assert (trained_N[split.valid_N] == 0).all()


def test_with_features_of_all_folds_each_head_trains_on_the_other_folds(
    fold_features: Path, tiny_store: Store, tmp_path: Path
) -> None:
    for fold in (0, 1):
        train(fold_features, tmp_path / f"{fold}", fold=fold)
        run = open_series_run(tmp_path / f"{fold}")
        assert run.record.fold == fold
        assert len(run.backbones) == 2
        fold_N = run.backbones[0].split(tiny_store).fold_N
        trained_N = run.head_patients.trained_on_N(tiny_store)
        assert (trained_N[fold_N == fold] == 0).all()
        assert (trained_N[fold_N == 1 - fold] == 1).all()


def test_the_blend_is_never_worse_than_the_slice_model(
    one_features: Path, tmp_path: Path
) -> None:
    for seed in range(4):
        config = replace(CONFIG, seed=seed, epochs=1)
        report = train(one_features, tmp_path / f"{seed}", config)
        assert report.blended <= min(report.slice_model, report.head) * (1 + 1e-12)


def test_the_same_run_gives_the_same_bits(
    whole: Path, one_features: Path, tmp_path: Path
) -> None:
    train(one_features, tmp_path / "again")
    assert_equal_runs(tmp_path / "again", whole)


def stop_after(num_batches: int) -> Iterator[bool]:
    yield from [False] * (num_batches - 1)
    while True:
        yield True


@pytest.mark.parametrize("num_batches", [1, 3, 5])
def test_a_run_that_is_stopped_and_resumed_gives_the_same_bits(
    whole: Path, one_features: Path, tmp_path: Path, num_batches: int
) -> None:
    out, flags = tmp_path / "out", stop_after(num_batches)
    with pytest.raises(InterruptionError, match=rf"of 3; .*{LAST} holds the place"):
        train(one_features, out, should_stop=lambda: next(flags))
    with pytest.raises(CheckpointError, match="is not finished; continue it with"):
        open_series_run(out)
    train(one_features, out, resume=True)
    shutil.copy(whole / "last.previous.pt", out)  # it may have another number of them
    assert_equal_runs(out, whole)


def test_a_run_resumes_without_the_folders_of_its_backbones(
    whole: Path, fold_runs: list[Path], one_features: Path, tmp_path: Path
) -> None:
    out, flags = tmp_path / "out", stop_after(1)
    with pytest.raises(InterruptionError):
        train(one_features, out, should_stop=lambda: next(flags))
    hidden = fold_runs[0].with_name("hidden")
    fold_runs[0].rename(hidden)
    try:
        train(one_features, out, resume=True)
        shutil.copytree(one_features, tmp_path / "features")
        with pytest.raises(CheckpointError, match="fold0, which is not there; move it"):
            train(tmp_path / "features", tmp_path / "other")
        # It is looked for by its name next to the features, too.
        shutil.copytree(hidden, tmp_path / "fold0")
        train(tmp_path / "features", tmp_path / "other")
    finally:
        hidden.rename(fold_runs[0])
    assert_equal_runs(out, whole)


def test_a_finished_run_resumes_to_the_same_report(
    whole: Path, one_features: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / BEST).unlink()  # killed just before the end
    report = train(one_features, out, resume=True)
    assert_equal_runs(out, whole)
    assert report == replace(train(one_features, out, resume=True))
    assert report.epochs == CONFIG.epochs


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(
    whole: Path, one_features: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / LAST).write_bytes(b"damaged")
    train(one_features, out, resume=True)
    assert "continuing from the one before" in caplog.text
    assert_equal_runs(out, whole)


def test_a_run_is_not_overwritten_or_resumed_with_other_settings(
    whole: Path, one_features: Path, fold_features: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="holds a run already; continue it with"):
        train(one_features, whole)
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train(one_features, tmp_path / "new", resume=True)
    other = replace(CONFIG, width=9)
    with pytest.raises(RecipeError, match=r"series\.width = 8, now series\.width = 9"):
        train(one_features, whole, other, resume=True)
    with pytest.raises(IchfastError, match=r"number of backbones = 1, now"):
        train(fold_features, whole, resume=True)
    assert [path.name for path in (whole / "backbones").iterdir()] == ["0"]


def test_one_process_at_a_time_trains_in_a_folder(
    one_features: Path, tmp_path: Path
) -> None:
    with locked_folder(tmp_path), pytest.raises(TrainError, match="is training in"):
        train(one_features, tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(
    one_features: Path, tmp_path: Path
) -> None:
    (tmp_path / "backbones").write_text("")
    with pytest.raises(
        TrainError, match=r"cannot write the run's folder .*another one"
    ):
        train(one_features, tmp_path)


def test_features_of_another_checkpoint_are_refused(
    fold_runs: list[Path], one_features: Path, tmp_path: Path
) -> None:
    shutil.copytree(one_features, tmp_path / "features")
    shutil.copytree(fold_runs[1], tmp_path / "fold0")
    hidden = fold_runs[0].with_name("hidden")
    fold_runs[0].rename(hidden)
    try:
        with pytest.raises(
            PredictionError, match=r"another checkpoint than .*fold0 has now; make"
        ):
            train(tmp_path / "features", tmp_path / "out")
    finally:
        hidden.rename(fold_runs[0])


def test_a_backbone_that_was_replaced_in_the_run_is_refused(
    whole: Path, fold_runs: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    shutil.copy(fold_runs[1] / BEST, out / "backbones" / "0" / BEST)
    shutil.copy(fold_runs[1] / "run.json", out / "backbones" / "0")
    with pytest.raises(CheckpointError, match="is not the checkpoint of fold0 that"):
        open_series_run(out)


def test_a_fold_that_no_run_holds_out_is_refused(
    one_features: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        FoldError, match="hold out fold 0, not 1; choose another --fold"
    ):
        train(one_features, tmp_path, fold=1)


def test_where_the_store_is_gone_the_error_names_the_option(
    one_features: Path, tiny_store_path: Path, tmp_path: Path
) -> None:
    hidden = tiny_store_path.with_name("hidden")
    tiny_store_path.rename(hidden)
    try:
        with pytest.raises(StoreError, match="name the store with --store"):
            train(one_features, tmp_path)
    finally:
        hidden.rename(tiny_store_path)


def test_where_there_is_no_series_run_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="make one with `ichfast train-series`"):
        open_series_run(tmp_path)


def test_a_checkpoint_of_another_shape_is_refused(whole: Path, tmp_path: Path) -> None:
    from ichfast.training.checkpoint import save_checkpoint

    out = tmp_path / "out"
    shutil.copytree(whole, out)
    content = load_checkpoint(whole / BEST)
    name = "slices.weight"
    wrong = {
        "missing": {
            key: value for key, value in content["model"].items() if key != name
        },
        "shape": {**content["model"], name: torch.zeros(6, 9)},
        "type": {**content["model"], name: content["model"][name].double()},
    }
    for model in wrong.values():
        save_checkpoint(out / BEST, {**content, "model": model})
        with pytest.raises(
            CheckpointError, match="does not fit the run's settings"
        ) as e:
            open_series_run(out).load_head(torch.device("cpu"))
        assert "\n" not in str(e.value)


def test_the_losses_of_the_report_are_those_of_its_models(
    whole: Path, one_features: Path, tiny_store: Store, tmp_path: Path
) -> None:
    from ichfast.evaluation.logits import sigmoid
    from ichfast.evaluation.metrics import weighted_log_loss
    from ichfast.series.features import Features

    shutil.copytree(whole, tmp_path / "out")
    report = train(one_features, tmp_path / "out", resume=True)
    run = open_series_run(whole)
    features, rows = Features.open(one_features), run.backbones[0].split(tiny_store)
    labels = tiny_store.labels_NK()[rows.valid_N].astype(np.float64)
    logits = features.logits_NK[rows.valid_N].astype(np.float64)
    assert report.slice_model == pytest.approx(
        weighted_log_loss(sigmoid(logits), labels), rel=1e-12
    )
    best = read_history(whole)["valid_weighted_log_loss"].min()
    assert report.head == pytest.approx(best, rel=1e-6)
    assert report.blended <= report.slice_model
    assert report.blended <= report.blended_crossfit
