"""The demo trains as many epochs as end in time, and keeps its promise or says why."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ichfast.cli import demo
from ichfast.cli.demo import EPOCH_SHARE, LATER_SHARE, NUM_EPOCHS, Clock
from ichfast.cli.main import cli
from ichfast.series.config import SMALL
from ichfast.series.run import SeriesReport
from tests.conftest import TINY_ARCH

LOSSES = dict.fromkeys(
    ("prevalence", "slice_model", "smoothed", "head", "blended", "blended_crossfit"),
    0.5,
)
SERIES = SeriesReport(
    run="series-run", fold=0, epochs=1, best_epoch=0, train_series=3, valid_series=2,
    valid_patients=2, blend={}, slices_per_s=1.0, **LOSSES,
)  # fmt: skip


def clock(minutes: int, *, elapsed_s: float = 0.0) -> Clock:
    times = iter([1000.0])
    return Clock(minutes, lambda: next(times, 1000.0 + elapsed_s))


def seconds_of_demo(num_epochs: int, slices_per_s: float) -> float:
    share = num_epochs * EPOCH_SHARE + LATER_SHARE
    return share * demo.NUM_SLICES / slices_per_s


@pytest.mark.parametrize("slices_per_s", [1.0, 20.0, 60.0, 90.0, 150.0, 300.0, 4000.0])
@pytest.mark.parametrize(("minutes", "elapsed_s"), [(4, 0.0), (4, 55.5), (9, 300.0)])
def test_the_epochs_are_the_most_that_end_in_time(
    slices_per_s: float, minutes: int, elapsed_s: float
) -> None:
    num_epochs = clock(minutes, elapsed_s=elapsed_s).num_epochs(slices_per_s)
    left_s = 60 * minutes - elapsed_s
    assert 0 <= num_epochs <= NUM_EPOCHS
    if num_epochs > 0:
        assert seconds_of_demo(num_epochs, slices_per_s) <= left_s
    if num_epochs < NUM_EPOCHS:
        assert seconds_of_demo(num_epochs + 1, slices_per_s) > left_s


@pytest.mark.parametrize("slices_per_s", [2.0, 31.0, 77.0])
def test_in_the_minutes_for_all_epochs_all_of_them_fit(slices_per_s: float) -> None:
    minutes = clock(4, elapsed_s=40.0).minutes_for_all(slices_per_s)
    assert clock(minutes, elapsed_s=40.0).num_epochs(slices_per_s) == NUM_EPOCHS
    assert clock(minutes - 1, elapsed_s=40.0).num_epochs(slices_per_s) < NUM_EPOCHS


def faked(
    monkeypatch: pytest.MonkeyPatch, out: Path, *, slices_per_s: float, ratio: float
) -> tuple[Result, list[int]]:
    """Run the demo with steps that do nothing and take no time.

    Returns:
        Its result, and the epochs that it trained.
    """
    trained: list[int] = []
    for name, value in {
        "EPOCH_SHARE": 0.9,
        "LATER_SHARE": 0.7,
        "Clock": clock,
        "_make_store": lambda _: 3000,
        "measure_rate": lambda *_: slices_per_s,
        "_train_and_predict": lambda _out, _device, epochs: trained.append(epochs),
        "_read_series": lambda *_: SERIES,
        "_evaluate_and_report": lambda *_: (ratio / 2, 0.5),
    }.items():
        monkeypatch.setattr(demo, name, value)
    arguments = ["demo", "--out", str(out), "--device", "cpu"]
    return CliRunner().invoke(cli, arguments), trained


def test_a_fast_machine_trains_all_epochs_and_keeps_the_promise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result, trained = faked(
        monkeypatch, tmp_path / "demo", slices_per_s=4000.0, ratio=0.42
    )
    assert result.exit_code == 0
    assert trained == [NUM_EPOCHS]
    assert (
        "this machine trains 4000 slices/s: all 10 epochs fit into 4 min\n"
        in result.stderr
    )
    assert "\nThe ratio is at most 0.75, as promised.\n" in result.stderr
    figures = json.loads(result.stdout)
    assert figures["epochs"] == NUM_EPOCHS
    assert math.isclose(figures["ratio"], 0.42)
    assert figures["seconds"] == 0.0


def test_a_promise_that_is_not_kept_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result, _ = faked(monkeypatch, tmp_path / "demo", slices_per_s=4000.0, ratio=0.8)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1] == (
        "Error: after all 10 epochs the weighted log loss is 0.80 of that of the class "
        "prevalence, and at most 0.75 is promised: the network has not learned; type "
        "`ichfast doctor`"
    )


@pytest.mark.parametrize(
    ("slices_per_s", "num_epochs", "plan", "minutes"),
    [
        (50.0, 3, "3 of 10 epochs fit into 4 min", 10),
        (5.0, 1, "it trains one epoch, which does not fit into 4 min", 97),
    ],
)
def test_a_slow_machine_trains_fewer_epochs_and_is_told_what_would_do(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    slices_per_s: float,
    num_epochs: int,
    plan: str,
    minutes: int,
) -> None:
    result, trained = faked(
        monkeypatch, tmp_path / "demo", slices_per_s=slices_per_s, ratio=0.8
    )
    assert (result.exit_code, trained) == (0, [num_epochs])
    rate = f"{slices_per_s:.0f} slices/s"
    assert f"\nthis machine trains {rate}: {plan}\n" in result.stderr
    assert (
        "\nThis machine is too slow for the promised ratio of at most 0.75: "
        f"{num_epochs} of 10 epochs\nended in time. With --minutes {minutes} it trains "
        "all of them.\n"
    ) in result.stderr


def test_fewer_epochs_that_reach_the_ratio_keep_the_promise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result, trained = faked(
        monkeypatch, tmp_path / "demo", slices_per_s=50.0, ratio=0.75
    )
    assert (result.exit_code, trained) == (0, [3])
    assert "\nThe ratio is at most 0.75, as promised.\n" in result.stderr


def test_a_folder_that_exists_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: {tmp_path} exists; delete it, or name another folder with --out\n"
    )


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_every_step_runs_and_the_trial_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe_of = demo.demo_recipe

    def tiny_recipe(device_type: str, num_epochs: int) -> Any:
        recipe = recipe_of(device_type, num_epochs)
        return replace(recipe, model=replace(recipe.model, arch=TINY_ARCH))

    monkeypatch.setattr(demo, "demo_recipe", tiny_recipe)
    short = replace(SMALL, epochs=2, min_steps=0)
    monkeypatch.setattr("ichfast.series.config.SMALL", short)
    monkeypatch.setattr("ichfast.evaluation.bootstrap.REPLICATES", 5)
    monkeypatch.setattr(demo, "NUM_SLICES", 300)
    monkeypatch.setattr(demo, "NUM_EPOCHS", 1)
    monkeypatch.setattr(demo, "TRIAL_SLICES", 64)
    monkeypatch.setattr(demo, "MAX_RATIO", np.inf)
    out = tmp_path / "demo"
    result = CliRunner().invoke(cli, ["demo", "--out", str(out), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == {
        *("features", "heads", "metrics.json", "predictions.parquet"),
        *("predictions.parquet.sha256", "report.html", "run", "series-run", "store"),
        "submission.csv",
    }
    record = json.loads((out / "run" / "run.json").read_text())
    assert record["recipe"]["train"]["epochs"] == 1
