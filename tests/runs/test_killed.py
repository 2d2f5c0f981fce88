"""kill -9 of `train` at ten moments: the same command again ends as if undisturbed."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from ichfast.runs.trained import open_run
from ichfast.training.checkpoint import has_last, load_last
from ichfast.training.history import read_history
from tests.cli.forked import Server

NUM_EVENTS = 10
"""Events on files before which `train` is killed; `tests.cli.forked` counts them."""

TRAIN = (
    *("train", "--arch", "tiny", "--size", "32", "--device", "cpu"),
    *("--set", "train.epochs=2", "--set", "data.batch_size=4", "--limit", "8"),
    *("--set", "folds.num_folds=2", "--out", "run", "--store"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory."""
    (tmp_path / "temporary").mkdir()
    return tmp_path


def names(run_dir: Path) -> set[str]:
    """Names in a run's folder, but for TensorBoard's files: one for each session."""
    return {path.name for path in run_dir.iterdir()}


def without_times(run_dir: Path) -> pd.DataFrame:
    return read_history(run_dir).drop(columns=["slices_per_s", "seconds", "wait_share"])


def best_weights(run_dir: Path) -> dict[str, Tensor]:
    return open_run(run_dir).weights


def last_weights(run_dir: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = load_last(run_dir)["model"]
    return weights


@pytest.mark.slow
def test_a_killed_training_can_be_typed_again(
    folder: Path, server: Server, tiny_store_path: Path
) -> None:
    run, whole = folder / "run", folder / "whole"
    undisturbed = server.run(folder, *TRAIN, tiny_store_path, watched=[run])
    assert undisturbed.status == 0, undisturbed.output
    run.rename(whole)
    for event in np.linspace(1, undisturbed.events, NUM_EVENTS).astype(int):
        command = (*TRAIN, tiny_store_path)
        killed = server.run(folder, *command, watched=[run], die_at=int(event))
        assert killed.status == -signal.SIGKILL, (event, killed.output)
        resume = ("--resume",) if has_last(run) else ()
        again = server.run(folder, *command, *resume)
        assert again.status == 0, (event, again.output)
        assert names(run) == names(whole), event
        pd.testing.assert_frame_equal(without_times(run), without_times(whole))
        for read in (best_weights, last_weights):
            wanted = read(whole)
            for name, tensor in read(run).items():
                assert torch.equal(tensor, wanted[name]), (event, name)
        shutil.rmtree(run)
