"""A run reports its start, its epochs and its end to callbacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ichfast.errors import CheckpointError, InterruptionError
from ichfast.loading.config import DataConfig
from ichfast.recipes.recipe import Recipe
from ichfast.recipes.resolve import resolve_recipe
from ichfast.runs.callbacks import Callback, RunStart
from ichfast.runs.run import train_run
from ichfast.system.ranks import Ranks
from ichfast.training.history import COLUMNS, METRICS, read_history
from tests.conftest import add_tiny_arch
from tests.runs.rank_processes import run_ranks

CPU = torch.device("cpu")


def recipe(epochs: int = 2) -> Recipe:
    return resolve_recipe(
        "fast",
        arch="tiny",
        size=32,
        device_type="cpu",
        assignments=[f"train.epochs={epochs}", "folds.num_folds=2"],
    )


class Notes(Callback):
    """Notes what a run reports, and may raise an error there."""

    def __init__(self, fails_at: str = "") -> None:
        self.noted: list[str] = []
        self.start: RunStart | None = None
        self.rows: list[dict[str, Any]] = []
        self.error: BaseException | None = None
        self._fails_at = fails_at

    def _note(self, name: str) -> None:
        self.noted.append(name)
        if name == self._fails_at:
            raise ConnectionError(name)

    def on_start(self, start: RunStart) -> None:
        self.start = start
        next(start.train_loader.epoch(1))
        self._note("start")

    def on_epoch(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self._note(f"epoch {row['epoch']}")

    def on_end(self, error: BaseException | None) -> None:
        self.error = error
        self._note("end")


class Careless(Callback):
    """Changes what it gets."""

    def on_start(self, start: RunStart) -> None:
        start.history.clear()

    def on_epoch(self, row: dict[str, Any]) -> None:
        row.clear()


def train(
    store_path: Path,
    run_dir: Path,
    *callbacks: Callback,
    resume: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    train_run(
        store_path,
        recipe(),
        run_dir,
        device=CPU,
        resume=resume,
        should_stop=should_stop,
        callbacks=callbacks,
    )


@pytest.mark.slow
def test_a_run_reports_its_settings_and_the_rows_of_its_epochs(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    notes = Notes()
    train(tiny_store_path, tmp_path, Careless(), notes, Callback())
    assert notes.noted == ["start", "epoch 0", "epoch 1", "end"]
    assert notes.error is None
    assert notes.start is not None
    assert (notes.start.num_epochs, notes.start.history) == (2, [])
    assert notes.start.settings["data.size"] == 32
    assert notes.start.settings["train.epochs"] == 2
    # The batch was made to fit.
    assert notes.start.settings["data.batch_size"] < DataConfig().batch_size
    assert [set(row) for row in notes.rows] == [set(COLUMNS)] * 2
    losses = read_history(tmp_path)["valid_loss"].tolist()
    assert losses == pytest.approx([row["valid_loss"] for row in notes.rows])


@pytest.mark.slow
def test_callbacks_do_not_change_a_run(tiny_store_path: Path, tmp_path: Path) -> None:
    train(tiny_store_path, tmp_path / "reported", Careless(), Notes())
    train(tiny_store_path, tmp_path / "alone")
    reported, alone = (
        read_history(tmp_path / name)[["train_loss", "valid_loss"]]
        for name in ("reported", "alone")
    )
    assert reported.equals(alone)


@pytest.mark.slow
def test_a_stopped_run_reports_why_and_when_resumed_the_epochs_before(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    notes, again = Notes(), Notes()
    with pytest.raises(InterruptionError) as stopped:
        train(
            tiny_store_path, tmp_path, notes, should_stop=lambda: len(notes.rows) == 1
        )
    assert notes.noted == ["start", "epoch 0", "end"]
    assert notes.error is stopped.value
    train(tiny_store_path, tmp_path, again, resume=True)
    assert again.noted == ["start", "epoch 1", "end"]
    assert again.start is not None
    assert again.start.history == notes.rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fails_at", "first", "second"),
    [
        ("start", ["start", "end"], []),
        ("epoch 0", ["start", "epoch 0", "end"], ["start", "end"]),
        ("end", ["start", "epoch 0", "epoch 1", "end"],
         ["start", "epoch 0", "epoch 1", "end"]),
    ],
)  # fmt: skip
def test_what_a_callback_raises_ends_the_run_and_the_others_are_told(
    tiny_store_path: Path,
    tmp_path: Path,
    fails_at: str,
    first: list[str],
    second: list[str],
) -> None:
    failing, other = Notes(fails_at), Notes()
    with pytest.raises(ConnectionError, match=fails_at) as raised:
        train(tiny_store_path, tmp_path, failing, other)
    assert failing.noted == first
    assert other.noted == second
    if second:
        assert other.error is (None if fails_at == "end" else raised.value)


@pytest.mark.slow
def test_an_error_before_the_first_epoch_is_reported_too(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    notes, again = Notes(), Notes()
    with pytest.raises(InterruptionError):
        train(
            tiny_store_path, tmp_path, notes, should_stop=lambda: len(notes.rows) == 1
        )
    (tmp_path / METRICS).unlink()
    (tmp_path / METRICS).mkdir()
    with pytest.raises(CheckpointError, match="cannot write") as raised:
        train(tiny_store_path, tmp_path, again, resume=True)
    assert again.noted == ["start", "end"]
    assert again.error is raised.value


@pytest.mark.slow
def test_ctrl_c_is_reported(tiny_store_path: Path, tmp_path: Path) -> None:
    def interrupt() -> bool:
        raise KeyboardInterrupt

    notes = Notes()
    with pytest.raises(KeyboardInterrupt):
        train(tiny_store_path, tmp_path, notes, should_stop=interrupt)
    assert notes.noted == ["start", "end"]
    assert isinstance(notes.error, KeyboardInterrupt)


class Signature(Callback):
    """Leaves a file named after its rank, and fails after an epoch."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = folder / f"rank-{rank}"

    def on_start(self, start: RunStart) -> None:
        del start
        self._path.touch()

    def on_epoch(self, row: dict[str, Any]) -> None:
        raise ConnectionError(f"epoch {row['epoch']}")


def train_as_rank(ranks: Ranks, store_path: Path, folder: Path) -> None:
    add_tiny_arch()  # in another process
    callback = Signature(folder, ranks.rank)
    train_run(
        store_path,
        recipe(),
        folder / "run",
        device=CPU,
        ranks=ranks,
        callbacks=[callback],
    )


@pytest.mark.slow
def test_the_rank_that_writes_alone_reports_and_its_error_ends_all_ranks(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    first, second = run_ranks(2, train_as_rank, tiny_store_path, tmp_path)
    assert [path.name for path in tmp_path.glob("rank-*")] == ["rank-0"]
    assert first == "ConnectionError: epoch 0"
    assert second is not None
    assert second.startswith("TrainError: ")
    assert "start again with --resume" in second
