"""Checkpoints that someone crafted: each is one line, or continues with finite losses.

The file is intact, and its content is wrong in one place.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ichfast.errors import CheckpointError, IchfastError, InterruptionError
from ichfast.training.checkpoint import LAST, load_checkpoint
from tests.training.tiny_trainer import fit, make_trainer, resumed_trainer
from tests.wrong_values import with_wrong_values

NUM_CRAFTED = 250


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The content of a checkpoint in the middle of the second epoch."""
    run_dir = tmp_path_factory.mktemp("stopped") / "run"
    steps = iter(range(1000))
    trainer = make_trainer(run_dir, should_stop=lambda: next(steps) == 7)
    with pytest.raises(InterruptionError):
        fit(trainer)
    content = load_checkpoint(run_dir / LAST)
    assert content["epoch"] == 1
    assert content["iteration"] > 0
    return content


def crafted(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Some of all wrong values: each field at least once."""
    found = list(with_wrong_values(content))
    random.Random(3).shuffle(found)
    top = [each for each in found if "." not in each[0]]
    deep = [each for each in found if "." in each[0]]
    assert len(top) > 100
    yield from (top + deep)[:NUM_CRAFTED]


def outcome(run_dir: Path) -> str:
    """The error of continuing a run; empty if it ends."""
    try:
        fit(resumed_trainer(run_dir))
    except IchfastError as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_a_crafted_checkpoint_is_one_line_or_continues(
    stopped: dict[str, Any], tmp_path: Path
) -> None:
    accepted = []
    for number, (name, content) in enumerate(crafted(stopped)):
        run_dir = tmp_path / str(number)
        run_dir.mkdir()
        torch.save(content, run_dir / LAST)
        reason = outcome(run_dir)
        assert "\n" not in reason, name
        if not reason:
            accepted.append(name)
        shutil.rmtree(run_dir)
    # A checkpoint cannot tell whether numbers are those that were saved; its file can.
    allowed = (
        *("model.", "trained.", "optimizer.state.", "optimizer.param_groups."),
        *("losses.", "history.", "settings=text", "patients=text"),
        *("scaler", "rng.0.cuda"),  # of a GPU
    )
    assert [name for name in accepted if not name.startswith(allowed)] == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epoch", 2),
        ("iteration", 4),
        ("history", []),
        ("losses", [[0.1]]),
        ("rng", []),
        ("model", {"a": 1}),
        ("settings", None),
        ("patients", 3),
    ],
)
def test_a_field_that_contradicts_the_others_is_named(
    stopped: dict[str, Any], tmp_path: Path, field: str, value: object
) -> None:
    make_trainer(tmp_path / "run")
    torch.save({**stopped, field: value}, tmp_path / "run" / LAST)
    with pytest.raises(CheckpointError, match="not a checkpoint that ichfast wrote"):
        resumed_trainer(tmp_path / "run")


def test_the_checkpoint_continues_if_nothing_is_wrong(
    stopped: dict[str, Any], tmp_path: Path
) -> None:
    make_trainer(tmp_path / "run")
    torch.save(stopped, tmp_path / "run" / LAST)
    history = fit(resumed_trainer(tmp_path / "run"))
    assert np.isfinite([row["valid_loss"] for row in history]).all()
