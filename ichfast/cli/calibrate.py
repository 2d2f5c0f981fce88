"""The command that calibrates a run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ichfast.cli.options import DEVICE, print_result, print_status
from ichfast.cli.store import read_label_file


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    help="Calibrate on every slice of this store.  [default: RUN's validation fold]",
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Labels of slices, in a form that `prepare` takes, in place of the store's.",
)
@click.option(
    "--sensitivity",
    type=click.FloatRange(0, 1, min_open=True),
    help="Choose thresholds that find this share of the positive slices.  "
    "[default: 0.95]",
)
@click.option(
    "--specificity",
    type=click.FloatRange(0, 1, min_open=True),
    help="Choose thresholds that leave this share of the negative slices alone.",
)
@click.option(
    "--allow-unknown",
    is_flag=True,
    help="Accept patients of whom it is not known whether RUN was trained on them.",
)
@click.option(
    "--remove",
    is_flag=True,
    help="Take the calibration out of RUN; nothing else is done.",
)
@DEVICE
def calibrate(
    run: Path,
    store: Path | None,
    labels: Path | None,
    sensitivity: float | None,
    specificity: float | None,
    allow_unknown: bool,
    remove: bool,
    device: str,
) -> None:
    """Calibrate RUN's probabilities on patients that it was not trained on.

    Fits a temperature and a bias for each class, chooses a threshold for each, and
    stores them in RUN. Nothing is trained, and the order of the slices stays.
    `predict`, `report` and `export` use them from then on.

    Prints the log loss before, after, and cross-fitted: of each patient with the
    calibration of other patients. That is what to expect of new ones.

    By default the slices are those of RUN's validation fold. With --store they are all
    slices of another store, such as that of another hospital. Patients that RUN was
    trained on are refused.
    """
    from ichfast.evaluation.calibration_table import format_calibration
    from ichfast.evaluation.curves import Aim
    from ichfast.predict.calibration import calibrate_run, remove_calibration
    from ichfast.runs.device import choose_device

    if sensitivity is not None and specificity is not None:
        raise click.UsageError("give --sensitivity or --specificity, not both")
    if remove:
        if store or labels or allow_unknown or sensitivity or specificity:
            raise click.UsageError("--remove takes no other option")
        former = remove_calibration(run)
        print_result({"run": str(run), "former": former and asdict(former)})
        return
    aim = Aim()
    if sensitivity is not None:
        aim = Aim("sensitivity", sensitivity)
    if specificity is not None:
        aim = Aim("specificity", specificity)
    report = calibrate_run(
        run,
        device=choose_device(device),
        store_path=store,
        labels=read_label_file(labels) if labels else None,
        aim=aim,
        allow_unknown=allow_unknown,
    )
    print_status(
        format_calibration(
            report.calibration,
            former=report.former,
            loss_former=report.loss_former,
            moved=report.moved,
        )
    )
    print_result(asdict(report))
