"""A run from store to report: splits, normalization, training, results."""

from __future__ import annotations

import itertools
import json
import logging
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from ichfast.cli.main import cli
from ichfast.errors import (
    CheckpointError,
    FoldError,
    InterruptionError,
    RecipeError,
    TrainError,
)
from ichfast.evaluation.evaluation import evaluate
from ichfast.evaluation.predictions import COLUMNS
from ichfast.evaluation.predictions import labels_NK as labels_of
from ichfast.labels import CLASSES
from ichfast.loading.batch import Batch
from ichfast.loading.config import (
    IMAGENET,
    IMAGENET_GREY,
    DataConfig,
    measure_normalization,
)
from ichfast.loading.loader import DaliLoader, make_loader
from ichfast.loading.splits import FoldConfig, split_slices
from ichfast.models.config import ARCHS, Arch, is_timm
from ichfast.predict.ensemble import PredictConfig, predict_runs
from ichfast.recipes.recipe import Recipe
from ichfast.recipes.resolve import RECIPES, format_recipes, resolve_recipe
from ichfast.report.run_report import report_run
from ichfast.runs.folder import default_run_dir
from ichfast.runs.record import read_record
from ichfast.runs.run import _make_stepper, train_run
from ichfast.store.store import Store
from ichfast.system.ranks import Ranks
from ichfast.training import inference
from ichfast.training.checkpoint import BEST
from ichfast.training.history import read_history
from ichfast.training.inference import predict_logits
from ichfast.training.step import Stepper
from tests.conftest import TINY_ARCH
from tests.store.slice_store import simple_rows, write_slices

CPU = torch.device("cpu")


def small_recipe(*assignments: str) -> Recipe:
    """A small network on 32 pixels, one epoch."""
    return resolve_recipe(
        "fast",
        arch=TINY_ARCH,
        size=32,
        device_type="cpu",
        assignments=[
            "train.epochs=1",
            "data.batch_size=4",
            "folds.num_folds=2",
            *assignments,
        ],
    )


@pytest.fixture(scope="module")
def run_dir(tiny_store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on the tiny store."""
    out = tmp_path_factory.mktemp("runs") / "small"
    train_run(tiny_store_path, small_recipe("train.epochs=2"), out, device=CPU)
    return out


def test_the_split_keeps_patients_apart_and_leaves_out_unlabelled(
    tiny_store: Store,
) -> None:
    split = split_slices(tiny_store, FoldConfig(num_folds=2, fold=1))
    patients = tiny_store.table["patient"].to_numpy(dtype=object)
    assert not set(patients[split.train_N]) & set(patients[split.valid_N])
    labelled_N = ~np.isnan(tiny_store.labels_NK()).any(axis=1)
    together = sorted([*split.train_N, *split.valid_N])
    assert together == np.flatnonzero(labelled_N).tolist()
    assert (split.fold_N[~labelled_N] == -1).all()
    other = split_slices(tiny_store, FoldConfig(num_folds=2, fold=0))
    assert other.valid_N.tolist() == split.train_N.tolist()


def test_a_limit_keeps_so_many_slices_to_train_and_a_quarter_to_validate(
    tiny_store: Store,
) -> None:
    split = split_slices(tiny_store, FoldConfig(num_folds=2), limit=8)
    assert (len(split.train_N), len(split.valid_N)) == (8, 2)


def test_slices_with_a_single_label_take_part(tiny_store: Store) -> None:
    whole = split_slices(tiny_store, FoldConfig(num_folds=2))
    slices_N = sorted([*whole.train_N, *whole.valid_N])
    one, other = int(whole.train_N[0]), int(whole.train_N[1])
    tiny_store.table.loc[[one, other], list(CLASSES[1:])] = pd.NA
    tiny_store.table.loc[other, "any"] = pd.NA
    split = split_slices(tiny_store, FoldConfig(num_folds=2))
    together = sorted([*split.train_N, *split.valid_N])
    assert together == [position for position in slices_N if position != other]
    labels = split.counts(tiny_store)["train_labels"]
    assert (labels["any"], labels["subdural"]) == (
        len(split.train_N),
        len(split.train_N) - (one in split.train_N),
    )


@pytest.mark.slow
def test_a_store_with_missing_labels_trains_predicts_and_reports(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each label is missing or not by itself, and epidural is always."""
    rng = np.random.default_rng(0)
    rows = simple_rows(40, slices_a_series=4)
    labels_NK = rng.integers(0, 2, (40, 6)).astype(np.float64)
    labels_NK[rng.random((40, 6)) < 0.5] = np.nan
    labels_NK[:, 1] = np.nan
    slices = [rng.integers(1000, 1100, (64, 64), dtype=np.uint16) for _ in rows]
    write_slices(tmp_path / "store", slices, rows, labels_NK)
    num_slices = int((~np.isnan(labels_NK)).any(axis=1).sum())
    out = tmp_path / "run"
    recipe = small_recipe("train.phases.0.mixup_alpha=0.4", "data.sampling=balanced")
    report = train_run(tmp_path / "store", recipe, out, device=CPU)
    assert "balanced sampling leaves out" in caplog.text
    counts = read_record(out).counts
    assert counts.train_slices + counts.valid_slices == num_slices
    assert counts.train_labels["epidural"] == 0
    table = predict_runs([out], device=CPU)
    found = labels_of(table)
    position = table["slice_id"].str.removeprefix("ID_").astype(int)
    np.testing.assert_array_equal(found, labels_NK[position])
    evaluation = evaluate(table)
    assert evaluation.first.weighted_log_loss == pytest.approx(
        report.valid_weighted_log_loss
    )
    assert evaluation.first.prevalence_loss == pytest.approx(
        report.prevalence_weighted_log_loss
    )
    report_run(out, table, out / "report.html", device=CPU)
    page = (out / "report.html").read_text("utf-8")
    assert "No slice has a label of it." in page
    assert '<td colspan="9">no label</td>' in page
    assert "without epidural" in page


def test_an_impossible_split_is_refused_with_the_reason(tiny_store: Store) -> None:
    with pytest.raises(FoldError, match="4 patient"):
        split_slices(tiny_store, FoldConfig(num_folds=5))
    missing = pd.array([pd.NA] * len(tiny_store), dtype="Int8")
    tiny_store.table[list(CLASSES)] = pd.DataFrame(dict.fromkeys(CLASSES, missing))
    with pytest.raises(
        FoldError, match="has no labels; add them with `ichfast prepare"
    ):
        split_slices(tiny_store, FoldConfig(num_folds=2))


def test_normalization_by_the_data_gives_mean_0_and_deviation_1(
    tiny_store: Store,
) -> None:
    config = DataConfig(
        size=256, batch_size=7, level=256, windows=("brain", "subdural", "bone"),
        normalize="data",
    )  # fmt: skip
    slices_N = np.arange(len(tiny_store))
    measured = measure_normalization(tiny_store, slices_N, config)
    with make_loader(tiny_store, slices_N, config, normalization=measured) as loader:
        images = torch.cat([batch.images_BCHW.float() for batch in loader])
    for channel in range(3):
        assert abs(float(images[:, channel].mean())) < 1e-3
        assert abs(float(images[:, channel].std()) - 1) < 1e-3


def test_normalization_by_imagenet_fits_any_number_of_windows(
    tiny_store: Store,
) -> None:
    three = DataConfig(windows=("brain", "bone", "soft"), normalize="imagenet")
    one = DataConfig(windows=("brain",), normalize="imagenet")
    slices_N = np.arange(3)
    assert measure_normalization(tiny_store, slices_N, three) == IMAGENET
    assert measure_normalization(tiny_store, slices_N, one) == IMAGENET_GREY
    two = replace(three, windows=("brain", "bone"))
    assert measure_normalization(tiny_store, slices_N, two).std == (0.226, 0.226)


@pytest.mark.slow
def test_a_run_leaves_settings_metrics_and_checkpoints(
    run_dir: Path, tiny_store: Store
) -> None:
    record = read_record(run_dir)
    assert record.recipe.data.size == 32
    assert record.counts.train_slices + record.counts.valid_slices == 26
    assert record.environment.versions["ichfast"]
    history = read_history(run_dir)
    assert history["epoch"].tolist() == [0, 1]
    assert np.isfinite(history["valid_loss"]).all()
    assert {path.name for path in run_dir.iterdir()} == {
        "run.json", "metrics.csv", "metrics.csv.sha256", "last.pt",
        "last.previous.pt", "best.pt", "tensorboard", ".lock",
    }  # fmt: skip
    assert record.store == str(tiny_store.path)


@pytest.mark.slow
def test_tensorboard_shows_the_scalars_and_augmented_slices(run_dir: Path) -> None:
    board = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    losses = [event.value for event in board.Scalars("valid_loss")]
    history = read_history(run_dir)
    assert losses == pytest.approx(history["valid_loss"].tolist())
    assert [event.step for event in board.Images("augmented")] == [0, 1]


@pytest.mark.slow
def test_a_profiled_run_leaves_a_trace(tiny_store_path: Path, tmp_path: Path) -> None:
    recipe = small_recipe("data.batch_size=2", "train.epochs=2")
    train_run(tiny_store_path, recipe, tmp_path, device=CPU, profile=True)
    assert (tmp_path / "trace.json").stat().st_size > 1000


@pytest.mark.slow
def test_metrics_are_written_again_when_a_finished_run_is_resumed(
    run_dir: Path, tiny_store_path: Path
) -> None:
    whole = (run_dir / "metrics.csv").read_bytes()
    (run_dir / "metrics.csv").unlink()
    recipe = small_recipe("train.epochs=2")
    train_run(tiny_store_path, recipe, run_dir, device=CPU, resume=True)
    assert (run_dir / "metrics.csv").read_bytes() == whole


@pytest.mark.slow
def test_a_restarted_job_continues(
    tiny_store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    for _ in range(2):  # the first has nothing to resume
        report = train_run(tiny_store_path, small_recipe(), tmp_path, device=CPU)
        assert report.epochs == 1


def test_fewer_slices_than_a_step_takes_are_refused(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    recipe = small_recipe("train.accumulate=64")
    with pytest.raises(TrainError, match="the 64 batches of one step; start fewer"):
        train_run(tiny_store_path, recipe, tmp_path, device=CPU)


@pytest.mark.slow
def test_a_run_trains_on_growing_images_and_validates_on_whole_ones(
    tiny_store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, int]] = []
    add, predict = Stepper.add, predict_logits

    def watched_add(self: Stepper, batch: Batch, **place: int) -> torch.Tensor:
        seen.append((True, batch.images_BCHW.shape[-1]))
        return add(self, batch, **place)

    def watched_predict(
        model: nn.Module, loader: DaliLoader, *rest: Any, **options: Any
    ) -> Any:
        seen.append((False, loader.config.size))
        return predict(model, loader, *rest, **options)

    monkeypatch.setattr(Stepper, "add", watched_add)
    monkeypatch.setattr(inference, "predict_logits", watched_predict)
    recipe = small_recipe("train.epochs=3", "data.size=96", "data.grow_from=32")
    train_run(tiny_store_path, recipe, tmp_path / "run", device=CPU)
    epochs = [size for (is_training, size), _ in itertools.groupby(seen) if is_training]
    assert epochs == [32, 64, 96]
    assert {size for is_training, size in seen if not is_training} == {96}


@pytest.mark.slow
def test_predictions_are_of_the_fold_that_validates(
    run_dir: Path, tiny_store: Store
) -> None:
    table = predict_runs([run_dir], device=CPU)
    split = split_slices(tiny_store, read_record(run_dir).recipe.folds)
    expected = tiny_store.table["slice_id"].iloc[split.valid_N]
    assert table["slice_id"].tolist() == expected.tolist()
    assert tuple(table.columns) == COLUMNS
    assert (table["fold"] == 0).all()
    history = read_history(run_dir)
    best = history.iloc[int(history["valid_loss"].argmin())]
    scored = evaluate(table).first.weighted_log_loss
    assert scored == pytest.approx(best["valid_weighted_log_loss"], abs=1e-6)


@pytest.mark.slow
def test_another_store_is_predicted_completely(run_dir: Path, tmp_path: Path) -> None:
    from tests.conftest import write_store

    write_store(tmp_path / "other", plan={"listing": "another"})
    table = predict_runs([run_dir], device=CPU, store_path=tmp_path / "other")
    assert len(table) == 29
    assert (table["fold"] == -1).all()
    some = predict_runs(
        [run_dir],
        device=CPU,
        store_path=tmp_path / "other",
        config=PredictConfig(limit=4),
    )
    assert len(some) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_the_report_shows_no_id_unless_asked(run_dir: Path, tmp_path: Path) -> None:
    table = predict_runs([run_dir], device=CPU)
    report_run(run_dir, table, tmp_path / "report.html", device=CPU)
    page = (tmp_path / "report.html").read_text()
    assert "weighted log loss" in page.lower()
    assert "ID_R" not in page
    with_ids = tmp_path / "with_ids.html"
    report_run(run_dir, table, with_ids, device=CPU, show_ids=True)
    assert "ID_R" in with_ids.read_text()


@pytest.mark.slow
def test_a_stopped_run_resumes_with_the_same_options_only(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    steps = iter(range(100))
    with pytest.raises(InterruptionError, match="holds the place"):
        train_run(
            tiny_store_path,
            small_recipe(),
            out,
            device=CPU,
            should_stop=lambda: next(steps) == 1,
        )
    with pytest.raises(CheckpointError, match=r"holds a run already.*--resume"):
        train_run(tiny_store_path, small_recipe(), out, device=CPU)
    with pytest.raises(RecipeError, match=r"settings \(recipe\.train\.seed = 42, now"):
        train_run(
            tiny_store_path, small_recipe("train.seed=1"), out, device=CPU, resume=True
        )
    report = train_run(tiny_store_path, small_recipe(), out, device=CPU, resume=True)
    assert report.epochs == 1


@pytest.mark.slow
def test_a_run_resumes_with_another_cache_and_checks_to_the_same_end(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    histories = []
    for name, cache, check in (
        ("as_before", "none", "first"),
        ("kept", "host", "never"),
    ):
        out, steps = tmp_path / name, iter(range(100))
        with pytest.raises(InterruptionError, match="holds the place"):
            train_run(
                tiny_store_path,
                small_recipe(),
                out,
                device=CPU,
                should_stop=lambda steps=steps: next(steps) == 1,  # type: ignore[misc]
            )
        recipe = small_recipe(
            f"data.cache={cache}",
            f"data.cache_packed={cache == 'none'}".lower(),
            f"data.check={check}",
        )
        train_run(tiny_store_path, recipe, out, device=CPU, resume=True)
        data = read_record(out).recipe.data
        assert (data.cache, data.check) == (cache, check)
        losses = read_history(out)[["train_loss", "valid_loss"]]
        histories.append(losses.to_numpy().tolist())
    assert histories[0] == histories[1]


@pytest.mark.slow
def test_a_run_with_own_folds_resumes_when_its_file_is_gone_but_not_when_edited(
    tiny_store_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, out, steps = tmp_path / "own.csv", tmp_path / "run", iter(range(100))
    text = "PatientID,fold\nP1,0\nP2,1\nP3,2\n"
    file.write_text(text)
    (tmp_path / "only.txt").write_text("P1\nP2\nP3\nP5\n")
    settings = [f"folds.file={file}", f"folds.only={tmp_path / 'only.txt'}"]
    recipe = small_recipe(*settings, "folds.fold=1")
    with pytest.raises(InterruptionError, match="holds the place"):
        train_run(
            tiny_store_path,
            recipe,
            out,
            device=CPU,
            should_stop=lambda: next(steps) == 1,
        )
    assert "3 slices with labels have no fold in" in caplog.text
    before = read_record(out)
    assert before.recipe.folds.num_folds == 3
    assert (before.counts.train_patients, before.counts.valid_patients) == (2, 1)
    again = partial(train_run, tiny_store_path, run_dir=out, device=CPU, resume=True)
    file.write_text(text.replace("P3,2", "P3,1"))
    with pytest.raises(RecipeError, match=r"begun with other ids or folds than folds"):
        again(recipe=recipe)
    file.unlink()
    moved = replace(recipe, folds=replace(recipe.folds, file="elsewhere.csv"))
    assert again(recipe=moved).epochs == 1
    assert read_record(out).id_files == before.id_files


def test_there_is_nothing_to_resume_in_an_empty_folder(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train_run(tiny_store_path, small_recipe(), tmp_path, device=CPU, resume=True)


@pytest.mark.slow
def test_a_split_smaller_than_a_batch_shrinks_the_batch_with_a_warning(
    tiny_store_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        train_run(
            tiny_store_path,
            small_recipe("data.batch_size=512"),
            tmp_path / "run",
            device=CPU,
        )
    assert "batch size 512 becomes" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["balanced", "study"])
def test_the_batch_shrinks_to_the_slices_that_sampling_draws(
    tiny_store_path: Path,
    tmp_path: Path,
    sampling: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe = small_recipe("data.batch_size=512", f"data.sampling={sampling}")
    with caplog.at_level(logging.WARNING):
        train_run(tiny_store_path, recipe, tmp_path / "run", device=CPU)
    (found,) = re.findall(r"only (\d+) slices .* 512 becomes (\d+)", caplog.text)
    assert int(found[0]) == int(found[1]) < 12


@pytest.mark.parametrize(
    ("world_size", "assignments", "alone"),
    [
        (2, ("data.batch_size=31",), False),
        (2, ("data.batch_size=32",), True),
        (2, ("data.batch_size=8", "train.sync_batch_norm=false"), True),
        (2, ("data.batch_size=64", "train.sync_batch_norm=true"), False),
        (1, ("data.batch_size=8", "train.sync_batch_norm=true"), True),
    ],
)
def test_batch_norm_is_synchronized_where_a_rank_has_few_slices(
    world_size: int,
    assignments: tuple[str, ...],
    alone: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe = small_recipe(*assignments)
    _make_stepper(recipe, CPU, Ranks(0, world_size), None)
    # What a GPU would synchronize, the CPU warns about.
    assert ("batch norm's statistics alone" in caplog.text) is not alone


@pytest.mark.slow
def test_weights_that_cannot_be_had_are_a_warning_or_an_error(
    tiny_store_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from ichfast.errors import ModelError
    from ichfast.models import weights

    monkeypatch.setattr(weights, "_is_reachable", lambda *_: False)
    train_run(
        tiny_store_path,
        small_recipe("model.pretrained=try"),
        tmp_path / "tried",
        device=CPU,
    )
    assert "starting from random weights" in caplog.text
    with pytest.raises(ModelError, match="--weights"):
        train_run(
            tiny_store_path,
            small_recipe("model.pretrained=yes"),
            tmp_path / "insisted",
            device=CPU,
        )


@pytest.mark.slow
def test_a_run_starts_from_the_weights_of_another(
    tiny_store_path: Path, run_dir: Path, tmp_path: Path
) -> None:
    report = train_run(
        tiny_store_path,
        small_recipe(f"model.weights={run_dir / BEST}", "data.size=48"),
        tmp_path / "larger",
        device=CPU,
    )
    assert np.isfinite(report.valid_loss)


@pytest.mark.slow
def test_a_new_backbone_is_one_entry_in_archs(
    tiny_store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHS, "mobilenet", Arch(timm_name="mobilenetv3_small_050"))
    assert ", mobilenet." in format_recipes()
    store, run = str(tiny_store_path), str(tmp_path / "run")
    settings = ["train.epochs=1", "folds.num_folds=2", "model.pretrained=no"]
    train = ["train", "--store", store, "--out", run, "--arch", "mobilenet"]
    train += ["--size", "32", "--device", "cpu"]
    done = CliRunner().invoke(
        cli, [*train, *itertools.chain(*(("--set", each) for each in settings))]
    )
    assert done.exit_code == 0, done.output
    assert len(predict_runs([Path(run)], device=CPU)) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    # One notebook is enough: they differ from the others in values only.
    [n for n in RECIPES if n == "exp-30-notebook" or not n.endswith("-notebook")],
)
def test_every_recipe_starts(name: str, tiny_store_path: Path, tmp_path: Path) -> None:
    is_large = is_timm(RECIPES[name]().model.arch)
    recipe = resolve_recipe(
        name,
        arch="timm:test_convnext" if is_large else None,
        size=32,
        device_type="cpu",
        assignments=[
            "train.epochs=1", "data.batch_size=8", "folds.num_folds=2",
            "model.pretrained=no", "model.weights=",
        ],
    )  # fmt: skip
    report = train_run(tiny_store_path, recipe, tmp_path / "run", device=CPU, limit=16)
    assert np.isfinite(report.valid_loss)


def test_a_damaged_run_is_refused(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no run in .* \(no run.json\)"):
        read_record(tmp_path)
    text = (run_dir / "run.json").read_text()
    (tmp_path / "run.json").write_text(text[:100])
    with pytest.raises(RecipeError, match="is damaged"):
        read_record(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(["not", "settings"]))
    with pytest.raises(RecipeError, match="expected settings, found"):
        read_record(tmp_path)
    (tmp_path / "run.json").write_text(text.replace('"size": 32', '"size": "x"'))
    with pytest.raises(RecipeError, match="size: expected int, found 'x'"):
        read_record(tmp_path)
    with pytest.raises(CheckpointError, match="no epoch is finished"):
        read_history(tmp_path)


def test_the_default_folder_of_a_run_follows_from_its_settings() -> None:
    def default(*args: str, **options: int | str) -> str:
        return str(default_run_dir(resolve_recipe(*args, **options)))  # type: ignore[arg-type]

    assert default("exp-00") == "runs/exp-00"
    assert default("exp-00", arch="efficientnet-b0", size=224) == "runs/exp-00"
    assert default("exp-00", size=512) == "runs/exp-00-efficientnet-b0-512"
    assert default("fast", arch="xresnet50-attn", size=512) == (
        "runs/fast-xresnet50-attn-512"
    )
    folds = default_run_dir(resolve_recipe("exp-30"), all_folds=True)
    assert str(folds) == "runs/exp-30-folds"
    folded = resolve_recipe("exp-30", assignments=["folds.fold=3"])
    assert str(default_run_dir(folded)) == "runs/exp-30-fold3"
