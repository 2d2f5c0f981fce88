"""A run's folder belongs to one training at a time, and its name to its settings."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch

from ichfast.errors import CheckpointError, InterruptionError, TrainError
from ichfast.loading.splits import split_slices
from ichfast.recipes.recipe import Recipe
from ichfast.recipes.resolve import resolve_recipe
from ichfast.runs import folder
from ichfast.runs.crossvalidation import train_folds
from ichfast.runs.folder import begin_folder, default_run_dir, only_training
from ichfast.runs.record import make_record
from ichfast.runs.run import TrainReport, train_run
from ichfast.store.store import Store
from ichfast.system.locks import locked_folder
from ichfast.system.ranks import Ranks
from ichfast.training.checkpoint import BEST, save_checkpoint, save_last
from tests.runs.trainedruns import tiny_recipe
from tests.system.killed_process import held_elsewhere

CPU = torch.device("cpu")


def files(path: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in path.iterdir()}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("has_checkpoint", [False, True])
def test_a_second_training_in_a_folder_is_refused_and_changes_nothing(
    tiny_store_path: Path, tmp_path: Path, *, resume: bool, has_checkpoint: bool
) -> None:
    if has_checkpoint or resume:
        save_last(tmp_path, {})
    with held_elsewhere("locked_folder", tmp_path) as process:
        before = files(tmp_path)
        message = (
            rf"^process {process.pid} on \S+ is training in {tmp_path}; .* folder$"
        )
        with pytest.raises(TrainError, match=message):
            train_run(
                tiny_store_path, tiny_recipe(), tmp_path, device=CPU, resume=resume
            )
        assert files(tmp_path) == before


def test_the_best_epoch_of_a_run_is_not_overwritten(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / BEST, {})
    before = files(tmp_path)
    with pytest.raises(CheckpointError, match=r"best\.pt of a run whose last\.pt is"):
        train_run(tiny_store_path, tiny_recipe(), tmp_path, device=CPU)
    assert files(tmp_path).items() >= before.items()


def test_a_batch_of_one_slice_is_refused_before_training(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    for recipe, limit in ((tiny_recipe("data.batch_size=1"), None), (tiny_recipe(), 1)):
        with pytest.raises(TrainError, match="needs two slices or more in a batch"):
            train_run(tiny_store_path, recipe, tmp_path, device=CPU, limit=limit)


@pytest.mark.slow
def test_a_training_that_was_killed_leaves_no_lock(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    with held_elsewhere("locked_folder", tmp_path):
        pass
    with pytest.raises(InterruptionError):
        train_run(
            tiny_store_path,
            tiny_recipe(),
            tmp_path,
            device=CPU,
            should_stop=lambda: True,
        )


def test_a_checkpoint_that_comes_while_the_lock_is_awaited_is_not_overwritten(
    tiny_store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish_and_lock(run_dir: Path) -> object:
        save_last(run_dir, {})
        return locked_folder(run_dir)

    monkeypatch.setattr(folder, "locked_folder", finish_and_lock)
    with pytest.raises(CheckpointError, match="holds a run already"):
        train_run(tiny_store_path, tiny_recipe(), tmp_path, device=CPU)


def test_only_the_rank_that_writes_locks(tmp_path: Path) -> None:
    with only_training(tmp_path, Ranks(0, 2)), only_training(tmp_path, Ranks(1, 2)):
        pass


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(TrainError, match=r"cannot write .*file/run: Not a directory"),
        only_training(tmp_path / "file" / "run", Ranks()),
    ):
        pass


def test_all_folds_are_one_training(tmp_path: Path) -> None:
    def train_fold(recipe: Recipe, run_dir: Path, *, resume: bool) -> TrainReport:
        raise AssertionError(recipe, run_dir, resume)

    with (
        held_elsewhere("locked_folder", tmp_path) as process,
        pytest.raises(TrainError, match=f"process {process.pid} on"),
    ):
        train_folds(tiny_recipe(), tmp_path, train_fold)


def name(recipe: str, *assignments: str, limit: int | None = None) -> str:
    resolved = resolve_recipe(recipe, assignments=assignments)
    return str(default_run_dir(resolved, limit=limit))


def test_changed_settings_and_seeds_are_in_the_default_name() -> None:
    assert name("exp-00", "train.seed=7") == "runs/exp-00-train.seed=7"
    assert name("exp-30", "train.epochs=1", "folds.fold=2") == (
        "runs/exp-30-train.epochs=1-fold2"
    )
    assert name("fast", "model.pretrained=yes") == (
        "runs/fast-resnext50-224-model.pretrained=yes"
    )
    assert name("exp-00", limit=200) == "runs/exp-00-limit200"
    many = name("exp-00", "augment.max_zoom=1.2", "train.seed=1", "train.epochs=3")
    assert re.fullmatch("runs/exp-00-[0-9a-f]{8}", many)
    path = name("exp-00", "model.weights=a/b.pt")
    assert re.fullmatch("runs/exp-00-[0-9a-f]{8}", path)


def test_different_settings_have_different_names() -> None:
    choices = (
        ("", "train.seed=1", "train.seed=2"),
        ("", "train.epochs=3"),
        ("", "train.phases.0.lr=1e-3", "train.phases.0.lr=2e-3"),
        ("", "folds.num_folds=4"),
        ("", "model.weights=a/b.pt", "model.weights=a/c.pt"),
    )
    names = {
        name("exp-00", *filter(None, some)) for some in itertools.product(*choices)
    }
    assert len(names) == 3 * 2 * 3 * 2 * 3


@pytest.mark.parametrize(
    "setting", ["data.cache=host", "data.cache_packed=false", "data.check=never"]
)
def test_settings_that_change_no_result_are_not_in_the_name(setting: str) -> None:
    assert name("exp-00", setting) == "runs/exp-00"


@pytest.mark.parametrize("recipe", ["exp-00", "fast"])
def test_the_name_is_the_plain_one_on_a_cpu_too(recipe: str) -> None:
    resolved = resolve_recipe(recipe, size=512, device_type="cpu")
    assert str(default_run_dir(resolved, device_type="cpu")).endswith("-512")


def test_half_written_files_of_a_killed_training_are_removed_and_no_others(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    with Store(tiny_store_path) as store:
        recipe = tiny_recipe()
        record = make_record(recipe, store, split_slices(store, recipe.folds))
    ours = ("last.newest.pt", "best.pt", "run.json", "metrics.csv", "trace.json")
    for name in (*ours, "profile.txt"):
        (tmp_path / f".{name}.0123456789ab.tmp").write_bytes(b"half")
    others = {".last.newest.pt.notours", ".report.html.0123456789ab.tmp", "a.tmp"}
    for name in others:
        (tmp_path / name).write_bytes(b"kept")
    begin_folder(tmp_path, record, {})
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", *others}
