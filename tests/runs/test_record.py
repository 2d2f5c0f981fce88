"""The record of a run is untrusted, and cannot be edited unnoticed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ichfast.errors import CheckpointError, IchfastError, RecipeError
from ichfast.report.comparison import compare_runs
from ichfast.runs.record import (
    RECORD,
    RunRecord,
    first_change,
    read_record,
    trained_settings,
    write_record,
)
from ichfast.runs.run import train_run
from ichfast.runs.trained import open_run
from ichfast.system.checksums import FIELD, with_checksum
from ichfast.training.checkpoint import BEST
from ichfast.training.history import has_history
from tests.evaluation.planted import calibration_of, plant
from tests.runs.trainedruns import tiny_recipe, write_run

Document = dict[str, Any]

EDITS: dict[str, tuple[Callable[[Document], object], str]] = {
    "fold": (
        lambda record: record["recipe"]["folds"].update(fold=1),
        "it has recipe.folds.fold = 1, but trained was recipe.folds.fold = 0",
    ),
    "seed": (
        lambda record: record["recipe"]["folds"].update(seed=43),
        "recipe.folds.seed = 43",
    ),
    "size": (lambda record: record["recipe"]["data"].update(size=64), "data.size = 64"),
    "windows": (
        lambda record: record["recipe"]["data"].update(windows=["bone"]),
        "recipe.data.windows",
    ),
    "phase": (
        lambda record: record["recipe"]["train"]["phases"].pop(),
        "number of phases",
    ),
    "rate": (
        lambda record: record["recipe"]["train"]["phases"][0].update(lr=1.0),
        r"phases\.0\.lr = 1\.0",
    ),
    "mean": (
        lambda record: record["normalization"].update(
            mean=[0.0] * len(record["normalization"]["mean"])
        ),
        "normalization.mean",
    ),
    "store": (lambda record: record.update(store_digest="0" * 16), "store_digest"),
    "counts": (lambda record: record["counts"].update(train_slices=3), "counts"),
    "type": (lambda record: record["recipe"]["folds"].update(fold="1"), "fold"),
    "range": (lambda record: record["recipe"]["folds"].update(fold=7), "folds.fold"),
    "unknown": (lambda record: record["recipe"].update(folder=3), "folder"),
    "missing": (lambda record: record["recipe"].pop("model"), "model"),
}


@pytest.fixture(scope="module")
def run_dir(tiny_store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", tiny_store_path)


def edit(
    run_dir: Path, change: Callable[[Document], object], *, renews_checksum: bool
) -> None:
    """Change the record; a careful editor computes the checksum anew."""
    document = json.loads((run_dir / RECORD).read_bytes())
    checksum = document.pop(FIELD)
    change(document)
    text = with_checksum(document)
    if not renews_checksum:
        text = json.dumps({**document, FIELD: checksum}, indent=1) + "\n"
    (run_dir / RECORD).write_text(text)


@pytest.mark.parametrize("renews_checksum", [True, False])
@pytest.mark.parametrize(("change", "field"), EDITS.values(), ids=EDITS.keys())
def test_an_edited_record_is_refused_with_the_name_of_the_field(
    run_dir: Path,
    tmp_path: Path,
    change: Callable[[Document], object],
    field: str,
    *,
    renews_checksum: bool,
) -> None:
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    edit(run, change, renews_checksum=renews_checksum)
    with pytest.raises(RecipeError, match=rf"run\.json is damaged .*{field}"):
        open_run(run)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(store="/elsewhere"),
        lambda record: record["recipe"]["data"].update(cache="host"),
        lambda record: record["recipe"]["data"].update(check="never"),
        lambda record: record["environment"].update(commit="0"),
    ],
)
def test_what_decides_nothing_is_held_by_the_checksum_alone(
    run_dir: Path, tmp_path: Path, change: Callable[[Document], object]
) -> None:
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    edit(run, change, renews_checksum=False)
    for read in (open_run, read_record, lambda path: compare_runs([path])):
        with pytest.raises(RecipeError, match="its checksum is wrong"):
            read(run)
    edit(run, lambda _: None, renews_checksum=True)
    assert open_run(run).name == "run"


def test_a_resumed_run_refuses_an_edited_record_with_the_name_of_the_field(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe("train.epochs=2", "model.pretrained=no")
    stop = iter([False, True])
    with pytest.raises(IchfastError, match="stopped"):
        train_run(
            tiny_store_path,
            recipe,
            tmp_path / "run",
            device=torch.device("cpu"),
            should_stop=lambda: next(stop),
            limit=16,
        )
    change, _ = EDITS["rate"]
    edit(tmp_path / "run", change, renews_checksum=True)
    with pytest.raises(RecipeError, match=r"phases\.0\.lr = 1\.0, but trained was"):
        train_run(
            tiny_store_path,
            recipe,
            tmp_path / "run",
            device=torch.device("cpu"),
            resume=True,
            limit=16,
        )


def test_a_record_of_another_run_is_refused(
    run_dir: Path, tiny_store_path: Path, tmp_path: Path
) -> None:
    other = write_run(tmp_path / "other", tiny_store_path, "folds.fold=1")
    shutil.copy(run_dir / BEST, other / BEST)
    with pytest.raises(RecipeError, match=r"recipe\.folds\.fold = 1, but trained"):
        open_run(other)


def test_settings_of_another_version_are_no_change(run_dir: Path) -> None:
    now = trained_settings(read_record(run_dir))
    was = "\n".join(line for line in now.splitlines() if "folds.seed" not in line)
    assert first_change(was, now) is None
    assert first_change(now, was) is None
    assert first_change(now.replace("folds.seed = 42", "folds.seed = 7"), now) == (
        "recipe.folds.seed = 7",
        "recipe.folds.seed = 42",
    )


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run in"):
        open_run(tmp_path)


@pytest.mark.parametrize("text", ["[" * 10**5, '{"store": "\\ud800"}', "[]"])
def test_a_hostile_record_counts_as_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(RecipeError, match="is damaged"):
        read_record(tmp_path)


def test_a_named_pipe_instead_of_a_record_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / RECORD)
    with pytest.raises(RecipeError, match="not a regular file"):
        read_record(tmp_path)


def test_a_record_from_before_slices_were_checked_checks_them(
    run_dir: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    edit(
        run, lambda record: record["recipe"]["data"].pop("check"), renews_checksum=True
    )
    assert open_run(run).record.recipe.data.check == "first"


@pytest.mark.parametrize("count", [0, 1])
def test_neighbours_that_an_earlier_version_switched_on_are_one_on_each_side(
    run_dir: Path, tmp_path: Path, count: int
) -> None:
    now = trained_settings(read_record(run_dir))
    was = ("false", "true")[count]
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    edit(
        run,
        lambda record: record["recipe"]["data"].update(neighbours=count == 1),
        renews_checksum=True,
    )
    former = now.replace("neighbours = 0", f"neighbours = {was}")
    assert former != now
    assert read_record(run, settings=former).recipe.data.neighbours == count
    with pytest.raises(RecipeError, match=f"trained was .*neighbours = {1 - count}"):
        read_record(run, settings=now.replace("rs = 0", f"rs = {1 - count}"))


def test_a_run_from_before_square_pixels_shows_them_as_they_came(
    run_dir: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    edit(
        run,
        lambda record: record["recipe"]["data"].pop("square_pixels"),
        renews_checksum=True,
    )
    assert not read_record(run).recipe.data.square_pixels
    assert read_record(run_dir).recipe.data.square_pixels
    with pytest.raises(RecipeError, match=r"square_pixels = false, but trained was"):
        open_run(run)  # the checkpoint tells that this one was edited


def test_a_calibration_is_kept_beside_what_was_trained(
    run_dir: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    before = read_record(run)
    assert before.calibration is None
    calibration = calibration_of(plant(10))
    write_record(run, replace(before, calibration=calibration))
    assert trained_settings(read_record(run)) == trained_settings(before)
    assert open_run(run).record.calibration == calibration  # best.pt has none
    edit(run, lambda record: record.pop("calibration"), renews_checksum=False)
    with pytest.raises(RecipeError, match="its checksum is wrong"):
        read_record(run)
    edit(run, lambda _: None, renews_checksum=True)
    assert open_run(run).record == before  # as a record from before calibrations


def test_a_calibration_that_is_none_is_refused(run_dir: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    write_record(run, replace(read_record(run), calibration=calibration_of(plant(10))))
    edit(
        run,
        lambda record: record["calibration"]["classes"][2].update(temperature=0),
        renews_checksum=True,
    )
    with pytest.raises(RecipeError, match=r"from 0\.001 to 1000, found 0"):
        read_record(run)


@pytest.mark.slow
def test_training_that_goes_on_drops_the_calibration_of_the_former_weights(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"

    def train(*, should_stop: Callable[[], bool] = lambda: False) -> None:
        train_run(
            tiny_store_path,
            tiny_recipe("train.epochs=2", "model.pretrained=no"),
            run,
            device=torch.device("cpu"),
            should_stop=should_stop,
            resume=run.exists(),
            limit=16,
        )

    def calibrate() -> RunRecord:
        record = replace(read_record(run), calibration=calibration_of(plant(10)))
        write_record(run, record)
        return record

    with pytest.raises(IchfastError, match="stopped"):
        train(should_stop=lambda: has_history(run))
    calibrate()
    train()
    assert read_record(run).calibration is None
    calibrated = calibrate()
    train()  # nothing is left to train
    assert read_record(run) == calibrated
