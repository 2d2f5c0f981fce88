"""The commands evaluate, submit, report and compare."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ichfast.cli.options import DEVICE, RUNS, OutputFile, print_result, print_status


@click.command()
@click.argument("predictions", type=click.Path(path_type=Path))
@click.option(
    "--bootstrap",
    default=200,
    type=click.IntRange(min=0),
    help="Bootstrap replicates of patients for the 95% intervals; 0: no intervals.",
)
@click.option(
    "--allow-leak",
    is_flag=True,
    help="Accept patients that the model was trained on, or may have been.",
)
@click.option(
    "--level",
    type=click.Choice(["slice", "series", "study", "patient"]),
    help="Evaluate slices, series, studies or patients only.  "
    "[default: slices, studies and patients; series where a head read them]",
)
@click.option(
    "--by",
    multiple=True,
    metavar="COLUMN",
    help="Evaluate each group of slices too, such as manufacturer, kernel, contrast, "
    "sex, age_decade or thickness_mm. Repeatable.",
)
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    help="With --by: the store that the predicted slices are in.",
)
def evaluate(
    predictions: Path,
    bootstrap: int,
    allow_leak: bool,
    level: str | None,
    by: tuple[str, ...],
    store: Path | None,
) -> None:
    """Compare PREDICTIONS with the labels in the same file.

    Prints a table that shows what the class prevalence alone scores next to what the
    model scores, and writes every figure to metrics.json next to PREDICTIONS.
    Patients that the model was trained on are an error, since their figures say
    nothing about other patients. So are those of whom that is not known.

    Each class is evaluated where its label is known. A series, study or patient has the
    highest probability of its slices, or of its series where a series head gave
    probabilities to these. Its label is its own, if it has one; else that of
    its slices, positive if one of them is, where the labels of all are known.
    """
    from ichfast.evaluation.evaluate_file import METRICS_FILE, evaluate_file
    from ichfast.evaluation.scoretable import format_evaluation, format_subgroups

    if bool(by) != bool(store):
        raise click.UsageError("--by COLUMN and --store STORE go together")
    result = evaluate_file(
        predictions,
        replicates=bootstrap,
        allow_leak=allow_leak,
        level=level,
        by=by,
        store=store,
    )
    print_status(format_evaluation(result.evaluation))
    for column, groups in result.subgroups.items():
        print_status("\n" + format_subgroups(column, groups))
    print_status(f"\nevery figure: {predictions.with_name(METRICS_FILE)}")
    print_result(result.to_json())


@click.command()
@click.argument("predictions", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT.csv", type=OutputFile(".csv"))
@click.option(
    "--sample",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The competition's sample submission; OUT has its ids in its order.",
)
def submit(predictions: Path, out: Path, sample: Path | None) -> None:
    """Write PREDICTIONS as a Kaggle submission.

    Checks that every slice is there once and every value is a probability.
    """
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
    help="Predictions to show.  [default: predict the validation fold]",
)
@click.option(
    "--out", type=OutputFile(".html"), help="The page.  [default: RUN/report.html]"
)
@click.option(
    "--sensitivity",
    default=0.95,
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of positive slices to find; decides the threshold of each class.",
)
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    help="The store to show.  [default: the one that RUN was trained on]",
)
@click.option("--keep-ids", is_flag=True, help="Write ids on the page.")
@DEVICE
def report(
    run: Path,
    predictions: Path | None,
    store: Path | None,
    out: Path | None,
    sensitivity: float,
    keep_ids: bool,
    device: str,
) -> None:
    """Write a report of RUN: one HTML page that needs no network.

    It shows a summary, training curves, ROC, calibration, what is found and missed at
    --sensitivity, the studies that are missed, drawn along their series, and the worst
    and best slices of each class with a map of where the model looked. RUN may be a
    series run. Of an ensemble's --predictions the page also shows where the runs
    disagree.
    """
    from ichfast.evaluation.predictions import read_predictions
    from ichfast.predict.ensemble import predict_runs
    from ichfast.report.run_report import report_run
    from ichfast.runs.device import choose_device

    out = out or run / "report.html"
    table = read_predictions(predictions) if predictions else None
    chosen = choose_device(device)
    if table is None:
        table = predict_runs([run], device=chosen, store_path=store)
    report_run(
        run,
        table,
        out,
        device=chosen,
        store_path=store,
        sensitivity=sensitivity,
        show_ids=keep_ids,
    )
    print_result({"report": str(out)})


@click.command()
@RUNS
@click.option(
    "--csv", "csv_path", type=OutputFile(".csv"), help="Write the table to this file."
)
@click.option(
    "--png", "png_path", type=OutputFile(".png"), help="Draw a chart to this file."
)
def compare(
    runs: tuple[Path, ...], csv_path: Path | None, png_path: Path | None
) -> None:
    """Compare RUNs with each other and with what the reference and others published.

    Accuracy and validation loss are those of the best epoch. The reference validated
    on patients that it trained on: folds by slice. The column `folds` shows which
    RUNs did the same. Results of other teams are on other slices: those of the private
    leaderboard, or those that they held out.
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
    print_status(format_comparison(rows))
    print_result({"rows": [asdict(row) for row in rows]})
