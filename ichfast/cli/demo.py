"""The `demo` command: every step on synthetic heads, small enough for two cores.

It shows that every part works on this machine and that a network learns. It says
nothing about patients.

It measures how fast this machine trains, and takes as many epochs as end in time. After
all `NUM_EPOCHS` the network's loss is at most `MAX_RATIO` of that of the class
prevalence, or the command fails. After fewer epochs it may be higher, and the summary
says why.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ichfast.cli.options import DEVICE, print_result, print_status
from ichfast.cli.series import format_comparison
from ichfast.errors import IchfastError

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from ichfast.recipes.recipe import Recipe
    from ichfast.series.run import SeriesReport

NUM_SLICES = 3000
"""Slices of synthetic heads: a few epochs of them take minutes on two cores."""

SLICE_SIZE = 128
"""Rows and columns of a slice: enough to show bleeds, few enough for two cores."""

PREVALENCE = {
    "epidural": 0.10,
    "intraparenchymal": 0.15,
    "intraventricular": 0.12,
    "subarachnoid": 0.12,
    "subdural": 0.15,
}
"""Share of slices with each bleed: far more than in a clinic, to learn in minutes."""

NUM_EPOCHS = 10
"""Epochs on a machine that is fast enough."""

MAX_RATIO = 0.75
"""What the demo promises after `NUM_EPOCHS`: the weighted log loss on held-out patients
is at most this share of that of the class prevalence."""

TRIAL_SLICES = 320
"""Slices of an epoch that measures the training rate."""

EPOCH_SHARE = 0.95
"""Time of an epoch and its validation, in units of training once on `NUM_SLICES` at the
rate of the trial. Measured on two cores, like the next one."""

LATER_SHARE = 1.7
"""Time of the steps after training, in the same unit."""


class Clock:
    """The time that the demo has.

    Args:
        minutes: of the whole demo; starts now.
        seconds: gives the time, in seconds.
    """

    def __init__(
        self, minutes: int, seconds: Callable[[], float] = time.monotonic
    ) -> None:
        self.minutes = minutes
        self._seconds = seconds
        self._began = seconds()

    def elapsed_s(self) -> float:
        """Seconds since the demo began."""
        return self._seconds() - self._began

    def num_epochs(self, slices_per_s: float) -> int:
        """Epochs that end in time, `NUM_EPOCHS` at most.

        Args:
            slices_per_s: the training rate of this machine.
        """
        left_s = 60 * self.minutes - self.elapsed_s() - _later_s(slices_per_s)
        return min(max(int(left_s / _epoch_s(slices_per_s)), 0), NUM_EPOCHS)

    def minutes_for_all(self, slices_per_s: float) -> int:
        """Minutes that the whole demo takes with `NUM_EPOCHS`, rounded up.

        Args:
            slices_per_s: the training rate of this machine.
        """
        later_s = NUM_EPOCHS * _epoch_s(slices_per_s) + _later_s(slices_per_s)
        return math.ceil((self.elapsed_s() + later_s) / 60)


def _epoch_s(slices_per_s: float) -> float:
    return EPOCH_SHARE * NUM_SLICES / slices_per_s


def _later_s(slices_per_s: float) -> float:
    return LATER_SHARE * NUM_SLICES / slices_per_s


@click.command()
@click.option(
    "--out",
    default="ichfast-demo",
    type=click.Path(path_type=Path),
    help="Folder for all that is made; must not exist.",
)
@click.option(
    "--minutes",
    default=4,
    type=click.IntRange(min=1),
    help="Train as many epochs as end in this time.",
)
@DEVICE
def demo(out: Path, minutes: int, device: str) -> None:
    """Do every step on synthetic heads, from DICOM files to a report, in minutes."""
    clock = Clock(minutes)  # before torch is loaded
    from ichfast.runs.device import choose_device

    if out.exists():
        raise IchfastError(
            f"{out} exists; delete it, or name another folder with --out"
        )
    print_result(run_demo(out, choose_device(device), clock))


def run_demo(out: Path, device: torch.device, clock: Clock) -> dict[str, Any]:
    """Do every step, announce each, and leave all that is made in a folder.

    Args:
        out: the folder; must not exist.
        device: where to train and predict.
        clock: the time that it has.

    Returns:
        The figures of the summary, for JSON.

    Raises:
        IchfastError: a step failed, or the network has not learned what the demo
            promises.
    """
    num_slices = _make_store(out)
    print_status("3 of 7  train: a trial first, to measure how fast this machine is")
    rate = measure_rate(out, device)
    num_fitting, minutes_for_all = clock.num_epochs(rate), clock.minutes_for_all(rate)
    print_status(_plan(rate, num_fitting, clock.minutes))
    num_epochs = max(num_fitting, 1)
    table = _train_and_predict(out, device, num_epochs)
    series = _read_series(out, device)
    model_loss, prevalence_loss = _evaluate_and_report(out, table, device)
    ratio = model_loss / prevalence_loss
    print_status(format_comparison(asdict(series)))
    outcome = _outcome(ratio, num_epochs, minutes_for_all)
    print_status(_summary(out, model_loss, prevalence_loss, outcome))
    return {
        "demo": str(out),
        "report": str(out / "report.html"),
        "slices": num_slices,
        "epochs": num_epochs,
        "seconds": clock.elapsed_s(),
        "weighted_log_loss": model_loss,
        "prevalence_loss": prevalence_loss,
        "ratio": ratio,
        "series_ratio": series.blended_crossfit / series.slice_model,
    }


def demo_recipe(device_type: str, num_epochs: int) -> Recipe:
    """`fast`, cut down to what two cores train in three minutes.

    A small RegNet learns these heads without pretraining. In the same time
    EfficientNet-B0 is far from there.

    Args:
        device_type: ``cpu`` or ``cuda``.
        num_epochs: epochs to train.
    """
    from ichfast.augment.config import LIGHT
    from ichfast.recipes.resolve import resolve_recipe

    recipe = resolve_recipe(
        "fast",
        arch="timm:regnety_002",
        size=96,
        device_type=device_type,
        assignments=[
            "model.pretrained=no",
            "data.batch_size=32",
            f"train.epochs={num_epochs}",
            "train.phases.0.lr=3e-3",
            "train.ema_decay=0.98",
        ],
    )
    return replace(recipe, augment=LIGHT)


def _make_store(out: Path) -> int:
    """Draw the heads, decode them into a store, and count the slices."""
    from ichfast.labels import read_labels
    from ichfast.prepare.prepare import prepare_store
    from ichfast.synth.dataset import synthesize

    print_status(f"1 of 7  synth: {NUM_SLICES} slices of synthetic heads as DICOM")
    heads = synthesize(
        out / "heads", num_slices=NUM_SLICES, prevalence=PREVALENCE, size=SLICE_SIZE
    )
    print_status("2 of 7  prepare: decode them once into a store")
    prepare_store(
        [heads.dicom_dir],
        out / "store",
        labels=read_labels(heads.labels_path),
        levels=(512,),
        workers=2,
        keep_ids=True,
    )
    return heads.slices


def measure_rate(out: Path, device: torch.device) -> float:
    """Measure how fast the demo's network trains on its store, in slices/s.

    It trains two epochs of `TRIAL_SLICES` and takes the rate of the second, because
    the first one warms up.

    Args:
        out: the demo's folder, with the store.
        device: where to train.

    Raises:
        IchfastError: it cannot be trained.
    """
    from ichfast.runs.run import train_run
    from ichfast.training.history import read_history

    trial, recipe = out / "trial", demo_recipe(device.type, num_epochs=2)
    train_run(out / "store", recipe, trial, device=device, limit=TRIAL_SLICES)
    rate = float(read_history(trial)["slices_per_s"].iloc[-1])
    shutil.rmtree(trial)
    return rate


def _plan(slices_per_s: float, num_fitting: int, minutes: int) -> str:
    fit = f"{num_fitting} of {NUM_EPOCHS} epochs fit"
    if num_fitting == NUM_EPOCHS:
        fit = f"all {NUM_EPOCHS} epochs fit"
    if num_fitting == 0:
        fit = "it trains one epoch, which does not fit"
    return f"this machine trains {slices_per_s:.0f} slices/s: {fit} into {minutes} min"


def _train_and_predict(
    out: Path, device: torch.device, num_epochs: int
) -> pd.DataFrame:
    from ichfast.evaluation.predictions import write_predictions
    from ichfast.predict.ensemble import PredictConfig, predict_runs
    from ichfast.runs.run import train_run

    recipe = demo_recipe(device.type, num_epochs)
    print_status(f"3 of 7  train: {recipe.model.arch} at {recipe.data.size} px")
    train_run(out / "store", recipe, out / "run", device=device)
    print_status("4 of 7  predict: the held-out patients, plain and mirrored")
    config = PredictConfig(tta="flips")
    table = predict_runs([out / "run"], device=device, config=config)
    write_predictions(out / "predictions.parquet", table)
    return table


def _read_series(out: Path, device: torch.device) -> SeriesReport:
    """Train a head that reads whole series, and compare it with the slice model."""
    from ichfast.predict.extract import extract_features
    from ichfast.report.charts.series_models import draw_series_models
    from ichfast.series.config import SMALL
    from ichfast.series.run import train_series

    print_status("5 of 7  series: features of all slices, and a head that reads them")
    features, run = out / "features", out / "series-run"
    extract_features([out / "run"], features, device=device)
    return train_series(features, run, SMALL, device=device, show=draw_series_models)


def _evaluate_and_report(
    out: Path, table: pd.DataFrame, device: torch.device
) -> tuple[float, float]:
    """The weighted log loss of the model, and that of the class prevalence."""
    from ichfast.evaluation.bootstrap import REPLICATES
    from ichfast.evaluation.evaluate_file import evaluate_file
    from ichfast.evaluation.scoretable import format_evaluation
    from ichfast.predict.submission import write_submission
    from ichfast.report.run_report import report_run

    print_status("6 of 7  evaluate and submit")
    result = evaluate_file(
        out / "predictions.parquet", replicates=REPLICATES, allow_leak=False
    )
    evaluation = result.evaluation
    print_status(format_evaluation(evaluation))
    write_submission(table, out / "submission.csv", sample=None)
    print_status("7 of 7  report: a page with curves and pictures")
    report_run(out / "run", table, out / "report.html", device=device, show_ids=True)
    return evaluation.first.weighted_log_loss, evaluation.first.prevalence_loss


def _summary(out: Path, model_loss: float, prevalence_loss: float, outcome: str) -> str:
    return f"""
Weighted log loss on held-out patients: {model_loss:.4f}
The class prevalence alone scores:      {prevalence_loss:.4f}  \
(ratio {model_loss / prevalence_loss:.2f})
{outcome}

  {out}/report.html           the page to look at
  {out}/heads/dicom           the DICOM files
  {out}/store                 the store they were decoded into
  {out}/run                   settings, metrics, checkpoints, TensorBoard
  {out}/series-run            a head that reads whole series; look at series.png
  {out}/predictions.parquet   probabilities of the held-out slices
  {out}/metrics.json          every figure
  {out}/submission.csv        in Kaggle's format

These heads are synthetic. With real data:
  ichfast prepare DICOM_FOLDER_OR_ZIP --labels stage_2_train.csv --keep-ids
  ichfast train --arch xresnet50-attn --size 512"""


def _outcome(ratio: float, num_epochs: int, minutes_for_all: int) -> str:
    """Whether the promise is kept, and if not, what to do.

    Raises:
        IchfastError: it is above `MAX_RATIO` after all epochs.
    """
    if ratio <= MAX_RATIO:
        return f"The ratio is at most {MAX_RATIO}, as promised."
    if num_epochs == NUM_EPOCHS:
        raise IchfastError(
            f"after all {NUM_EPOCHS} epochs the weighted log loss is {ratio:.2f} of "
            f"that of the class prevalence, and at most {MAX_RATIO} is promised: the "
            "network has not learned; type `ichfast doctor`"
        )
    return (
        f"This machine is too slow for the promised ratio of at most {MAX_RATIO}: "
        f"{num_epochs} of {NUM_EPOCHS} epochs\nended in time. With --minutes "
        f"{minutes_for_all} it trains all of them."
    )
