"""kill -9 of `train-series` at any event: the command again ends as if undisturbed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ichfast.cli.main import cli
from ichfast.cli.series import MODELS
from ichfast.report.charts.series_models import PICTURE
from ichfast.series.folder import open_series_run
from ichfast.training.checkpoint import has_last
from tests.cli.forked import Server
from tests.series.test_run import assert_equal_runs

NUM_EVENTS = 8
"""Events on files before which it is killed; `tests.cli.forked` counts them."""

SETTINGS = (
    *("series=small", "series.width=8", "series.hidden=4", "series.batch_size=1"),
    *("series.epochs=2", "series.min_steps=0"),
)
OPTIONS: tuple[str, ...] = (
    *("--device", "cpu"),
    *(part for setting in SETTINGS for part in ("--set", setting)),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory."""
    (tmp_path / "temporary").mkdir()
    return tmp_path


@pytest.mark.slow
def test_a_killed_run_can_be_typed_again(
    folder: Path, server: Server, one_features: Path
) -> None:
    run, whole = folder / "run", folder / "whole"
    command = ("train-series", str(one_features), "run", *OPTIONS)
    undisturbed = server.run(folder, *command, watched=[run])
    assert undisturbed.status == 0, undisturbed.output
    run.rename(whole)
    for event in np.linspace(1, undisturbed.events, NUM_EVENTS).astype(int):
        killed = server.run(folder, *command, watched=[run], die_at=int(event))
        assert killed.status == -signal.SIGKILL, (event, killed.output)
        resume = ["--resume"] if has_last(run) else []
        again = server.run(folder, *command, *resume)
        assert again.status == 0, (event, again.output)
        assert_equal_runs(run, whole)
        shutil.rmtree(run)


@pytest.mark.slow
def test_ctrl_c_saves_and_prints_the_command_that_continues(
    tmp_path: Path, one_features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def interrupted() -> Iterator[Callable[[], bool]]:
        yield lambda: True

    command = ["train-series", str(one_features), str(tmp_path / "run"), *OPTIONS]
    monkeypatch.setattr("sys.argv", ["ichfast", *command])
    with monkeypatch.context() as patch:
        patch.setattr("ichfast.system.signals.stop_on_signal", interrupted)
        stopped = CliRunner().invoke(cli, command)
    assert stopped.exit_code == 1
    *_, line = stopped.stderr.splitlines()
    assert "stopped after epoch 0 of 2" in line
    _, resume = line.split("continue with: ichfast ")
    done = CliRunner().invoke(cli, shlex.split(resume))
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["epochs"] == 2


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_goes_on_with_room(
    folder: Path, server: Server, one_features: Path
) -> None:
    command = ("train-series", str(one_features), "run", *OPTIONS)
    full = server.run(folder, *command, max_bytes=5000)
    assert full.status == 1
    assert re.search(
        r"^Error: cannot write \S+last.newest.pt: File too large; free some space or "
        r"mend the disk, then start again$",
        full.error,
    )
    again = server.run(folder, *command)
    assert again.status == 0, again.output


@pytest.mark.slow
def test_all_folds_are_trained_and_compared_in_a_table(
    folder: Path, server: Server, fold_features: Path
) -> None:
    done = server.run(
        folder, "train-series", fold_features, "runs", "--fold", "all", *OPTIONS
    )
    assert done.status == 0, done.output
    report = json.loads(done.output.splitlines()[-1])
    for label in MODELS.values():
        assert label in done.output
    assert [each["fold"] for each in report["folds"]] == [0, 1]
    mean = sum(each["blended"] for each in report["folds"]) / 2
    assert report["blended"] == pytest.approx(mean)
    for fold in (0, 1):
        assert open_series_run(folder / "runs" / f"fold-{fold}").record.fold == fold
        assert (folder / "runs" / f"fold-{fold}" / PICTURE).is_file()
    again = server.run(
        folder, "train-series", fold_features, "runs", "--fold=all", *OPTIONS
    )
    assert again.status == 1
    assert "fold-0 holds a run already; continue it with --resume" in again.error
    resumed = server.run(
        folder,
        *(
            "train-series",
            str(fold_features),
            "runs",
            "--fold=all",
            *OPTIONS,
            "--resume",
        ),
    )
    assert resumed.status == 0, resumed.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--set", "series.wide=8"), "did you mean series.width or"),
        (("--set", "series=tiny"), "unknown series 'tiny'"),
        (("--set", "series.lr=0"), "series.lr must be above 0"),
        (("--fold", "3"), "choose another --fold"),
        (("--store", "nowhere"), "nowhere is not a slice store"),
    ],
)
def test_a_wrong_option_is_one_line(
    folder: Path,
    server: Server,
    one_features: Path,
    options: tuple[str, ...],
    message: str,
) -> None:
    done = server.run(folder, "train-series", one_features, "run", *OPTIONS, *options)
    assert done.status == 1
    assert message in done.error
    assert done.error.startswith("Error: ")
    assert not (folder / "run").exists() or not has_last(folder / "run")
