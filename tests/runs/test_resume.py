"""Stopped, killed or crashed anywhere, a resumed run ends the same, bit for bit."""

from __future__ import annotations

import os
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from ichfast.errors import InterruptionError
from ichfast.models.precision import Amp
from ichfast.training import checkpoint
from ichfast.training.trainer import Trainer
from tests.runs.rank_processes import FORKSERVER
from tests.training.tiny_trainer import (
    CONFIG,
    assert_same_run,
    fit,
    make_trainer,
    resumed_trainer,
    without_clock,
)

FP16 = Amp("cpu", torch.float16)
NUM_STEPS = 20
RANDOM_STEPS = random.Random(20191101).sample(range(1, NUM_STEPS), 4)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A finished run of `CONFIG`."""
    trainer = make_trainer(tmp_path_factory.mktemp("runs") / "undisturbed")
    fit(trainer)
    return trainer


def stop(run_dir: Path, after: int, **how: Any) -> None:
    """Train until so many steps are done, then stop and save."""
    steps = iter(range(1, 1000))
    trainer = make_trainer(run_dir, should_stop=lambda: next(steps) == after, **how)
    with pytest.raises(InterruptionError, match="holds the place"):
        fit(trainer)


@pytest.mark.parametrize("after", [1, 4, 5, 9, 10, 13, 19])
def test_stopping_anywhere_and_resuming_changes_nothing(
    undisturbed: Trainer, tmp_path: Path, after: int
) -> None:
    stop(tmp_path, after)
    resumed = resumed_trainer(tmp_path)
    fit(resumed)
    assert_same_run(resumed, undisturbed)


def test_stopping_twice_changes_nothing(undisturbed: Trainer, tmp_path: Path) -> None:
    stop(tmp_path, 7)
    steps = iter(range(1, 1000))
    with pytest.raises(InterruptionError):
        fit(resumed_trainer(tmp_path, should_stop=lambda: next(steps) == 1))
    resumed = resumed_trainer(tmp_path)
    fit(resumed)
    assert_same_run(resumed, undisturbed)


def test_the_scaler_of_half_precision_is_resumed(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole", amp=FP16)
    fit(whole)
    stop(tmp_path / "stopped", 8, amp=FP16)
    assert checkpoint.load_last(tmp_path / "stopped")["scaler"]["_growth_tracker"] == 8
    resumed = resumed_trainer(tmp_path / "stopped", amp=FP16)
    fit(resumed)
    assert_same_run(resumed, whole)
    scalers = [trainer.stepper.state()["scaler"] for trainer in (resumed, whole)]
    assert scalers[0] == scalers[1]


def test_a_finished_run_that_is_resumed_stays_as_it_is(
    undisturbed: Trainer, tmp_path: Path
) -> None:
    fit(make_trainer(tmp_path))
    before = (tmp_path / checkpoint.LAST).read_bytes()
    resumed = resumed_trainer(tmp_path)
    fit(resumed)
    assert_same_run(resumed, undisturbed)
    assert (tmp_path / checkpoint.LAST).read_bytes() == before


def train_until_killed(run_dir: Path, step: int, minutes: float) -> None:
    """Train and die, as by kill -9, at the end of a step, before it is saved."""
    torch.set_num_threads(1)
    steps = iter(range(1, 1000))

    def die() -> bool:
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    config = replace(CONFIG, checkpoint_minutes=minutes)
    fit(make_trainer(run_dir, config, should_stop=die))


def train_until_killed_saving(run_dir: Path, step: int) -> None:
    """Train and die in the middle of writing the checkpoint of a step."""
    torch.set_num_threads(1)
    saves = iter(range(1, 1000))
    save = torch.save

    def die_half_way(content: dict[str, Any], file: BinaryIO) -> None:
        save(content, file)
        if next(saves) == step:
            file.truncate(file.tell() // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = die_half_way  # type: ignore[assignment]
    fit(make_trainer(run_dir, replace(CONFIG, checkpoint_minutes=0.0)))


def killed(target: Any, *arguments: Any) -> None:
    process = FORKSERVER.Process(target=target, args=arguments)
    process.start()
    process.join(timeout=300)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("step", RANDOM_STEPS)
@pytest.mark.parametrize("minutes", [0.0, 10.0])
def test_killed_at_any_step_it_ends_as_if_undisturbed(
    undisturbed: Trainer, tmp_path: Path, step: int, minutes: float
) -> None:
    killed(train_until_killed, tmp_path, step, minutes)
    if minutes and step <= 5:  # killed within the first epoch
        assert not checkpoint.has_last(tmp_path)
        return
    content = checkpoint.load_last(tmp_path)
    done = 5 * content["epoch"] + content["iteration"]
    assert done == (5 * ((step - 1) // 5) if minutes else step - 1)
    resumed = resumed_trainer(tmp_path)
    fit(resumed)
    assert_same_run(resumed, undisturbed)


def train_until_killed_between_checkpoints(run_dir: Path, name: str) -> None:
    """Train and die just after the first checkpoint of a name is complete."""
    torch.set_num_threads(1)
    rename = Path.replace

    def die_after(temporary: Path, path: Path) -> Path:
        renamed = rename(temporary, path)
        if path.name == name:
            os.kill(os.getpid(), signal.SIGKILL)
        return renamed

    Path.replace = die_after  # type: ignore[assignment]
    fit(make_trainer(run_dir))


def assert_same_checkpoint(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    assert without_clock(found["history"]) == without_clock(wanted["history"])
    for name, tensor in wanted["model"].items():
        assert torch.equal(found["model"][name], tensor), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [checkpoint.NEWEST, checkpoint.LAST, checkpoint.BEST, checkpoint.PREVIOUS]
)
def test_killed_between_the_checkpoints_of_an_epoch_it_ends_as_if_undisturbed(
    undisturbed: Trainer, tmp_path: Path, name: str
) -> None:
    run_dirs = tmp_path / "whole", tmp_path / "killed"
    fit(make_trainer(run_dirs[0]))
    killed(train_until_killed_between_checkpoints, run_dirs[1], name)
    if name == checkpoint.NEWEST:  # nothing to resume: the same command starts again
        resumed = make_trainer(run_dirs[1])
    else:
        resumed = resumed_trainer(run_dirs[1])
    fit(resumed)
    assert_same_run(resumed, undisturbed)
    best = [checkpoint.load_checkpoint(each / checkpoint.BEST) for each in run_dirs]
    assert_same_checkpoint(*best)


def test_the_best_checkpoint_of_a_first_epoch_is_written_when_it_was_lost(
    tmp_path: Path,
) -> None:
    config = replace(CONFIG, phases=(replace(CONFIG.phases[0], epochs=1),))
    fit(make_trainer(tmp_path, config))
    best = checkpoint.load_checkpoint(tmp_path / checkpoint.BEST)
    (tmp_path / checkpoint.BEST).unlink()
    resumed_trainer(tmp_path, config)
    assert_same_checkpoint(checkpoint.load_checkpoint(tmp_path / checkpoint.BEST), best)


@pytest.mark.slow
def test_killed_while_saving_it_continues_from_the_checkpoint_before(
    undisturbed: Trainer, tmp_path: Path
) -> None:
    killed(train_until_killed_saving, tmp_path, 9)
    resumed = resumed_trainer(tmp_path)
    fit(resumed)
    assert_same_run(resumed, undisturbed)
