"""The `demo` command: every step on synthetic heads, small enough for two cores.

It shows that every part works on this machine and that a network learns. It says
nothing about patients.
"""

from __future__ import annotations

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


@click.command()
@click.option(
    "--out",
    default="ichfast-demo",
    type=click.Path(path_type=Path),
    help="Folder for all that is made; must not exist.",
)
@DEVICE
def demo(out: Path, device: str) -> None:
    """Do every step on synthetic heads, from DICOM files to a report, in minutes."""
    from ichfast.runs.device import choose_device

    if out.exists():
        raise IchfastError(
            f"{out} exists; delete it, or name another folder with --out"
        )
    print_result(run_demo(out, choose_device(device)))


def run_demo(out: Path, device: torch.device) -> dict[str, Any]:
    """Do every step, announce each, and leave all that is made in a folder.

    Args:
        out: the folder; must not exist.
        device: where to train and predict.

    Returns:
        The figures of the summary, for JSON.

    Raises:
        IchfastError: a step failed.
    """
    num_slices = _make_store(out)
    table = _train_and_predict(out, device)
    series = _read_series(out, device)
    model_loss, prevalence_loss = _evaluate_and_report(out, table, device)
    print_status(format_comparison(asdict(series)))
    print_status(_summary(out, model_loss, prevalence_loss))
    return {
        "demo": str(out),
        "report": str(out / "report.html"),
        "slices": num_slices,
        "weighted_log_loss": model_loss,
        "prevalence_loss": prevalence_loss,
        "ratio": model_loss / prevalence_loss,
        "series_ratio": series.blended_crossfit / series.slice_model,
    }


def demo_recipe(device_type: str) -> Recipe:
    """`fast`, cut down to what two cores train in three minutes."""
    from ichfast.augment.config import LIGHT
    from ichfast.recipes.resolve import resolve_recipe

    recipe = resolve_recipe(
        "fast",
        arch="efficientnet-b0",
        size=96,
        device_type=device_type,
        assignments=[
            "model.pretrained=no",
            "data.batch_size=32",
            "train.epochs=8",
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


def _train_and_predict(out: Path, device: torch.device) -> pd.DataFrame:
    from ichfast.evaluation.predictions import write_predictions
    from ichfast.predict.ensemble import PredictConfig, predict_runs
    from ichfast.runs.run import train_run

    recipe = demo_recipe(device.type)
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


def _summary(out: Path, model_loss: float, prevalence_loss: float) -> str:
    return f"""
Weighted log loss on held-out patients: {model_loss:.4f}
The class prevalence alone scores:      {prevalence_loss:.4f}  \
(ratio {model_loss / prevalence_loss:.2f})

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
