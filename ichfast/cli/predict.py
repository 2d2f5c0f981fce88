"""The commands from trained runs on: predict, evaluate, submit, report and so on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ichfast.cli.options import (
    CACHE,
    DEVICE,
    LIMIT,
    OutputFile,
    number_or,
    print_result,
    say,
)

RUNS = click.argument(
    "runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path)
)


@click.command()
@RUNS
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    help="Another store, all of whose slices are predicted.",
)
@click.option(
    "--dicom",
    "sources",
    multiple=True,
    metavar="SOURCE",
    help="DICOM files instead of a store, as `prepare` takes them; repeatable.",
)
@click.option(
    "--keep-ids",
    is_flag=True,
    help="With --dicom: keep patient ids too; without it, keyed hashes.",
)
@click.option(
    "--tta",
    is_flag=False,
    flag_value="reference",
    default="none",
    type=click.Choice(["reference", "flips", "none"]),
    help="Test-time augmentation; --tta alone is the reference's nine passes.",
)
@click.option(
    "--average",
    default="probs",
    type=click.Choice(["probs", "logits"]),
    help="What of several runs is averaged.",
)
@click.option(
    "--smooth", is_flag=True, help="Average each slice with its neighbours in z."
)
@click.option(
    "--batch-size",
    metavar="auto|N",
    callback=number_or("auto", least=1),
    default="auto",
    help="auto: as many as fit a GPU; the recipe's on a CPU.",
)
@CACHE
@LIMIT
@DEVICE
def predict(
    runs: tuple[Path, ...],
    out: Path,
    store: Path | None,
    sources: tuple[str, ...],
    keep_ids: bool,
    tta: str,
    average: str,
    smooth: bool,
    batch_size: int | str,
    cache: str | None,
    limit: int | None,
    device: str,
) -> None:
    """Write the probabilities of RUN's best epoch to OUT (.parquet, .csv or .npz).

    On the store that RUN was trained on, the slices of its validation fold are
    predicted; with --store, every slice of that store; with --dicom, every CT slice
    in a folder, file, archive or URL.

    Several RUNs are an ensemble: each slice gets the average of the runs that
    predict it. So the runs of all folds give their store out of fold.

    Each pass of --tta reads all slices again, unless --cache keeps them.

    With --dicom the slices are decoded into a temporary store (in TMPDIR, 0.7 MB a
    slice), which is removed at the end. Slice, series and study ids are kept as they
    are in the files, to know which file a probability belongs to; patient ids become
    hashes.
    """
    import os

    from ichfast.evaluation.predictions import check_destination, write_predictions
    from ichfast.predict.ensemble import PredictConfig, predict_runs
    from ichfast.predict.from_dicom import predict_dicom
    from ichfast.runs.device import choose_device

    if sources and store:
        raise click.UsageError("give --store or --dicom, not both")
    if keep_ids and not sources:
        raise click.UsageError("--keep-ids goes with --dicom; a store's ids are kept")
    check_destination(out)
    config = PredictConfig(
        tta=tta,
        average=average,
        smooth=smooth,
        batch_size=None if isinstance(batch_size, str) else batch_size,
        cache=cache or "none",
        limit=limit,
    )
    result: dict[str, Any] = {"predictions": str(out)}
    if sources:
        found = predict_dicom(
            runs,
            sources,
            device=choose_device(device),
            config=config,
            workers=len(os.sched_getaffinity(0)),
            keep_ids=keep_ids,
        )
        table = found.table
        result["rejected"] = dict(found.rejected)
    else:
        table = predict_runs(
            runs, device=choose_device(device), store_path=store, config=config
        )
    write_predictions(out, table)
    print_result(
        {**result, "slices": len(table), "runs": len(runs), "tta": tta}
        | {"average": average, "smooth": smooth}
    )


@click.command()
@click.argument("predictions", type=click.Path(path_type=Path))
@click.option(
    "--bootstrap",
    default=200,
    type=click.IntRange(min=0),
    help="Replicates of resampled patients behind the 95% intervals; 0 for none.",
)
@click.option(
    "--allow-leak",
    is_flag=True,
    help="Judge patients, too, that the run trained on.",
)
def evaluate(predictions: Path, bootstrap: int, allow_leak: bool) -> None:
    """Judge PREDICTIONS against the labels in them.

    Prints a table, with what prevalence alone would score beside it, and one JSON
    line on stdout, and writes metrics.json beside PREDICTIONS. Patients that a run
    trained on are an error: figures of theirs say nothing about others.
    """
    from ichfast.evaluation.evaluate_file import METRICS_FILE, judge_file
    from ichfast.evaluation.scoretable import format_evaluation

    judgement = judge_file(predictions, replicates=bootstrap, allow_leak=allow_leak)
    say(format_evaluation(judgement.evaluation))
    say(f"\nevery figure: {predictions.with_name(METRICS_FILE)}")
    print_result(judgement.to_json())


@click.command()
@click.argument("predictions", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT.csv", type=OutputFile(".csv"))
@click.option(
    "--sample",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The competition's sample file, whose ids and order are kept.",
)
def submit(predictions: Path, out: Path, sample: Path | None) -> None:
    """Write PREDICTIONS as a Kaggle submission to OUT, or refuse to."""
    from ichfast.evaluation.predictions import read_predictions
    from ichfast.predict.submission import write_submission

    if out.resolve() in [each.resolve() for each in (predictions, sample) if each]:
        raise click.UsageError(f"{out} would be replaced; name another file as OUT.csv")
    report = write_submission(read_predictions(predictions), out, sample=sample)
    print_result(asdict(report))


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--predictions",
    type=click.Path(path_type=Path),
    help="Show these.  [default: predict the validation fold]",
)
@click.option("--out", type=OutputFile(".html"), help="[default: RUN/report.html]")
@click.option(
    "--sensitivity",
    default=0.95,
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of positive slices to find; sets each class's threshold.",
)
@click.option("--keep-ids", is_flag=True, help="Write ids beside the pictures.")
@DEVICE
def report(
    run: Path,
    predictions: Path | None,
    out: Path | None,
    sensitivity: float,
    keep_ids: bool,
    device: str,
) -> None:
    """Write RUN's page: one HTML file that needs no network.

    In it: a summary, training curves, ROC, calibration, what is found and missed at
    --sensitivity, and the worst and best slices of each class with a map of where the
    model looked. No id is in it without --keep-ids.
    """
    from ichfast.evaluation.predictions import read_predictions
    from ichfast.predict.ensemble import predict_runs
    from ichfast.report.run_report import report_run
    from ichfast.runs.device import choose_device

    out = out or run / "report.html"
    chosen = choose_device(device)
    if predictions:
        table = read_predictions(predictions)
    else:
        table = predict_runs([run], device=chosen)
    report_run(
        run, table, out, device=chosen, sensitivity=sensitivity, show_ids=keep_ids
    )
    print_result({"report": str(out)})


@click.command()
@RUNS
@click.option(
    "--csv", "csv_path", type=OutputFile(".csv"), help="Write the table here."
)
@click.option("--png", "png_path", type=OutputFile(".png"), help="Draw it here.")
def compare(
    runs: tuple[Path, ...], csv_path: Path | None, png_path: Path | None
) -> None:
    """Put RUNs beside the reference's published experiments, as `runs/*` does.

    Accuracy and validation loss are those of the best epoch. The reference's are of
    slices whose patients it trained on; the column `folds` says so of ours too.
    """
    from ichfast.report.comparison import (
        compare_runs,
        format_comparison,
        write_comparison,
    )

    rows = compare_runs(runs)
    if csv_path:
        write_comparison(rows, csv_path)
    if png_path:
        from ichfast.report.charts.comparison import draw_comparison

        draw_comparison(rows, png_path)
    say(format_comparison(rows))
    print_result({"rows": [asdict(row) for row in rows]})


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("out", metavar="MODEL.pt2|MODEL.onnx", type=click.Path(path_type=Path))
def export(run: Path, out: Path) -> None:
    """Write RUN's best epoch as a model that needs nothing of ichfast.

    It takes CT numbers in HU, (slices, 512, 512) float32, and gives six probabilities
    a slice: resizing, windows and normalisation are inside. A .pt2 file runs in torch
    (torch.export.load), an .onnx file in ONNX Runtime; writing that needs the extra
    `export`. A model card is written beside it.
    """
    from ichfast.export.export import export_run

    print_result(asdict(export_run(run, out)))
