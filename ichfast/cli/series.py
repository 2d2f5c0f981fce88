"""The commands that make series runs: features, train-series."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ichfast.cli.options import (
    BATCH_SIZE,
    DEVICE,
    RUNS,
    joined_ranks,
    number_or,
    print_result,
    print_status,
)
from ichfast.cli.train import saying_how_to_resume

MODELS = {
    "prevalence": "prevalence alone",
    "slice_model": "slice model",
    "smoothed": "slice model, smoothed over z",
    "head": "series head",
    "blended": "blend",
    "blended_crossfit": "blend, cross-fitted by patient",
}
"""Rows of the table that the command prints, by the field of the report."""


@click.command()
@RUNS
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    help="Take the slices of this store.  [default: the one that RUN was trained on]",
)
@BATCH_SIZE
@DEVICE
def features(
    runs: tuple[Path, ...],
    out: Path,
    store: Path | None,
    batch_size: int | str,
    device: str,
) -> None:
    """Compute the pooled features and logits of every slice, for a series head.

    OUT is a folder. With one RUN it has all slices of the store, also those that RUN
    was trained on. Several RUNs, trained on different folds of the store, each
    compute the series of their validation fold.

    What is computed is kept in a hidden folder next to OUT until OUT is written. After
    a kill the same command goes on with it.

    \b
    On several GPUs, with OUT in a folder that all machines share:
      torchrun --nproc-per-node gpu -m ichfast features RUN OUT
    """
    from ichfast.predict.extract import extract_features
    from ichfast.runs.device import choose_device

    with joined_ranks(device) as ranks:
        report = extract_features(
            runs,
            out,
            device=choose_device(device),
            ranks=ranks,
            store_path=store,
            batch_size=None if isinstance(batch_size, str) else batch_size,
        )
    if report is not None:
        print_result(asdict(report))


@click.command("train-series")
@click.argument("features", type=click.Path(path_type=Path))
@click.argument("out", metavar="SERIES_RUN", type=click.Path(path_type=Path))
@click.option(
    "--fold",
    metavar="N|all",
    callback=number_or("all", minimum=0),
    help="The fold that validates: one that a run of FEATURES held out.  [default: "
    "that of the first run] all: train a head for each, in SERIES_RUN/fold-N.",
)
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    help="The store of FEATURES.  [default: where it was]",
)
@click.option("--resume", is_flag=True, help="Continue the run in SERIES_RUN.")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="NAME=VALUE",
    help="Change a setting, such as series.epochs=20, or all: series=small|large. "
    "Repeatable.",
)
@DEVICE
def train_series(
    features: Path,
    out: Path,
    fold: int | str | None,
    store: Path | None,
    resume: bool,
    assignments: tuple[str, ...],
    device: str,
) -> None:
    """Train a head that reads whole series, on the features of one or more runs.

    FEATURES is what `ichfast features` writes. With the features of one run, the head
    trains on the patients of the run and validates on its fold. With those of the runs
    of all folds, a head trains on all folds but one.

    The command compares slice model, smoothing, head and their blend on the patients
    that validate, and chooses the blend of each class there. SERIES_RUN then predicts
    like any run. It keeps copies of the runs, so it is complete by itself. Its
    series.png shows the models along some series.

    Ctrl-C saves a checkpoint, ends the run, and prints the command that continues it.
    A killed run continues with --resume.

    \b
    Settings for --set, among others:
      series.kind=transformer      gru or transformer
      series.deltas=true           also read how each slice differs from the next
      series.position=z            ordinal, or z for millimetres
      series.max_slices=64         of a longer series, that many are read
      series.batch_size=8          series in a batch
    """
    # Long, since it imports what only training needs.
    from ichfast.recipes.settings import describe
    from ichfast.report.charts.series_models import draw_series_models
    from ichfast.runs.device import choose_device
    from ichfast.series.config import SeriesSettings, resolve_series
    from ichfast.series.features import read_features_header
    from ichfast.series.folds import train_series_folds
    from ichfast.series.run import train_series as train_one
    from ichfast.system.signals import stop_on_signal

    header = read_features_header(features)
    config = resolve_series(assignments, num_slices=header.num_slices)
    with stop_on_signal() as should_stop, saying_how_to_resume():
        chosen = choose_device(device)
        print_status(describe(SeriesSettings(series=config)))
        if isinstance(fold, str):
            report = asdict(
                train_series_folds(
                    features,
                    out,
                    config,
                    device=chosen,
                    store_path=store,
                    resume=resume,
                    should_stop=should_stop,
                    show=draw_series_models,
                )
            )
        else:
            report = asdict(
                train_one(
                    features,
                    out,
                    config,
                    device=chosen,
                    fold=fold,
                    store_path=store,
                    resume=resume,
                    should_stop=should_stop,
                    show=draw_series_models,
                )
            )
    print_status(format_comparison(report))
    runs = f"{out}/fold-*" if fold == "all" else out
    print_status(f"next: ichfast predict {runs} predictions.parquet")
    print_result(report)


def format_comparison(report: Mapping[str, Any]) -> str:
    """Format the losses of a report as a small table.

    Args:
        report: the fields of a `SeriesReport` or `SeriesFoldsReport`.
    """
    width = max(map(len, MODELS.values()))
    lines = [f"{'weighted log loss':{width}}            of slice model"]
    for name, label in MODELS.items():
        ratio = report[name] / report["slice_model"]
        lines.append(f"{label:{width}}  {report[name]:8.5f}  {ratio:14.3f}")
    return "\n".join(lines)
