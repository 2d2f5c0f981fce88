"""The whole way on synthetic heads, small enough for two cores: synth to report.

It shows that every part works on this machine and that a network really learns;
it says nothing about patients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ichfast.augment.config import LIGHT
from ichfast.errors import IchfastError
from ichfast.evaluation.evaluate_file import judge_file
from ichfast.evaluation.predictions import write_predictions
from ichfast.evaluation.scoretable import format_evaluation
from ichfast.labels import read_labels
from ichfast.predict.ensemble import PredictConfig, predict_runs
from ichfast.predict.submission import write_submission
from ichfast.prepare.prepare import prepare_store
from ichfast.recipes.recipe import Recipe
from ichfast.recipes.resolve import resolve_recipe
from ichfast.report.run_report import report_run
from ichfast.runs.run import train_run
from ichfast.synth.dataset import synthesize

NUM_SLICES = 3000
SLICE_SIZE = 128
"""Rows and columns of the heads: enough for bleeds, little enough for two cores."""

PREVALENCE = {
    "epidural": 0.10,
    "intraparenchymal": 0.15,
    "intraventricular": 0.12,
    "subarachnoid": 0.12,
    "subdural": 0.15,
}
"""Share of slices with each bleed: far more than in a clinic, to learn in minutes."""


def demo_recipe(device_type: str) -> Recipe:
    """`fast`, cut down to what two cores train in three minutes."""
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


def run_demo(
    out: Path,
    *,
    device: torch.device,
    say: Callable[[str], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Walk the whole way and leave everything it makes in a folder.

    Args:
        out: made here; must not exist.
        device: where to train.
        say: takes the lines that tell what happens.
        should_stop: asked after each training step.

    Returns:
        The figures of the summary, for JSON.

    Raises:
        IchfastError: `out` exists, or a part failed.
    """
    if out.exists():
        raise IchfastError(
            f"{out} exists; delete it, or name another folder with --out"
        )
    run_dir, store = out / "run", out / "store"
    say(f"1 of 6  synth: {NUM_SLICES} slices of synthetic heads as DICOM")
    heads = synthesize(
        out / "heads", num_slices=NUM_SLICES, prevalence=PREVALENCE, size=SLICE_SIZE
    )
    say("2 of 6  prepare: decode them once into a store")
    prepare_store(
        [heads.dicom_dir],
        store,
        labels=read_labels(heads.labels_path),
        levels=(512,),
        workers=2,
        keep_ids=True,
    )
    recipe = demo_recipe(device.type)
    say(f"3 of 6  train: {recipe.model.arch} at {recipe.data.size} px")
    train_run(store, recipe, run_dir, device=device, should_stop=should_stop)
    say("4 of 6  predict: the held-out patients, plain and mirrored")
    table = predict_runs([run_dir], device=device, config=PredictConfig(tta="flips"))
    write_predictions(out / "predictions.parquet", table)
    say("5 of 6  evaluate and submit")
    judgement = judge_file(
        out / "predictions.parquet", replicates=200, allow_leak=False
    )
    evaluation = judgement.evaluation
    say(format_evaluation(evaluation))
    write_submission(table, out / "submission.csv", sample=None)
    say("6 of 6  report: a page with curves and pictures")
    report_run(run_dir, table, out / "report.html", device=device, show_ids=True)
    model_loss = evaluation.slice.weighted_log_loss
    prevalence_loss = evaluation.slice.prevalence_loss
    say(_ending(out, model_loss, prevalence_loss))
    return {
        "demo": str(out),
        "report": str(out / "report.html"),
        "slices": heads.slices,
        "weighted_log_loss": model_loss,
        "prevalence_loss": prevalence_loss,
        "ratio": model_loss / prevalence_loss,
    }


def _ending(out: Path, model_loss: float, prevalence_loss: float) -> str:
    return f"""
Weighted log loss on held-out patients: {model_loss:.4f}
The class prevalence alone scores:      {prevalence_loss:.4f}  \
(ratio {model_loss / prevalence_loss:.2f})

  {out}/report.html           the page to look at
  {out}/heads/dicom           the DICOM files
  {out}/store                 the store they were decoded into
  {out}/run                   settings, metrics, checkpoints, TensorBoard
  {out}/predictions.parquet   probabilities of the held-out slices
  {out}/metrics.json          every figure
  {out}/submission.csv        as Kaggle wants it

These heads are synthetic. With real data:
  ichfast prepare DICOM_FOLDER_OR_ZIP --labels stage_2_train.csv --keep-ids
  ichfast train --arch xresnet50-attn --size 512"""
