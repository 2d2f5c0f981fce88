"""The `ichfast` command. Parses, calls one library function, prints; no more.

Results go to stdout as one JSON line; progress and warnings go to stderr.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ichfast import judging
from ichfast.errors import IchfastError
from ichfast.options import DEVICE, LIMIT, STORE, print_result, say

SET = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="NAME=VALUE",
    help="Change a setting, such as train.epochs=2, or take another augmentation: "
    "augment=none|light|fastai|exp-10-mixup|exp-30; may be repeated.",
)


_NOISY = (
    *("matplotlib", "PIL", "urllib3", "httpx"),
    *("fsspec", "s3fs", "botocore", "aiobotocore", "distributed"),
)
"""Packages whose log lines below a warning are not for a user."""


class _Commands(click.Group):
    """Turns our own errors into a one-line message and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except IchfastError as error:
            if ctx.params["debug"]:
                raise
            raise click.ClickException(str(error)) from error

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)  # in the order one uses them, not the alphabet's


@click.group(
    cls=_Commands,
    context_settings={"show_default": True, "help_option_names": ["-h", "--help"]},
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="ichfast")
def cli(debug: bool) -> None:
    """Train intracranial-hemorrhage detectors on head CT, fast.

    \b
    The way from DICOM to a submission:
      ichfast prepare DICOM... --labels stage_2_train.csv --keep-ids
      ichfast train --arch xresnet50-attn --size 512
      ichfast predict runs/fast-xresnet50-attn-512 predictions.parquet --tta
      ichfast evaluate predictions.parquet
      ichfast submit predictions.parquet submission.csv

    `ichfast demo` walks all of it on synthetic heads, in minutes.
    """
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.INFO,
        format="%(message)s",
        stream=sys.stderr,
        force=True,
    )
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)


@cli.command()
@click.argument("source", nargs=-1, required=True)
@click.option(
    "--labels",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="RSNA's csv (ID,Label), or one row a slice with six columns.",
)
@STORE
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Decoding processes.  [default: one a core]",
)
@click.option(
    "--levels",
    default="512,256",
    help="512 keeps slices as they came; 256 adds a copy a quarter the size.",
)
@click.option(
    "--keep-ids",
    is_flag=True,
    help="Keep patient, study, series and slice ids; without it, keyed hashes.",
)
@click.option(
    "--id-key",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The secret that ids are hashed with; stores made with the same one name "
    "patients alike. Made if missing.  [default: STORE.key]",
)
@click.option(
    "--append", is_flag=True, help="Add what is new in SOURCE to a finished store."
)
@click.option(
    "--scheduler",
    metavar="tcp://HOST:PORT",
    help="Decode on a Dask cluster that shares the file system.",
)
@click.option(
    "--max-rejected",
    default="5%",
    metavar="N|P%",
    help="Fail if more files than this cannot be stored.",
)
@LIMIT
def prepare(
    source: tuple[str, ...],
    labels: Path | None,
    store: Path,
    workers: int | None,
    levels: str,
    keep_ids: bool,
    id_key: Path | None,
    append: bool,
    scheduler: str | None,
    max_rejected: str,
    limit: int | None,
) -> None:
    """Decode every CT slice in SOURCE... into a store.

    A SOURCE is a folder, a DICOM file, a .zip, .tar, .tar.gz or .tar.xz, or the URL
    of one (s3://, gs://, https://); archives inside folders are read too. Files that
    cannot be stored are listed with the reason in rejected.csv. Interrupted, the same
    command continues.
    """
    import os

    from ichfast.labels import read_labels
    from ichfast.prepare import prepare_store

    report = prepare_store(
        source,
        store,
        labels=read_labels(labels) if labels else None,
        levels=_integers(levels, "--levels"),
        workers=workers or len(os.sched_getaffinity(0)),
        keep_ids=keep_ids,
        id_key=id_key,
        append=append,
        scheduler=scheduler,
        max_rejected=max_rejected,
        limit=limit,
    )
    print_result(asdict(report))


@cli.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option(
    "--sheet",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The contact sheet.  [default: STORE.png]",
)
def inspect(store: Path, sheet: Path | None) -> None:
    """Say what is in STORE, and draw a contact sheet of it.

    Counts what was stored and why files were not, and names what is odd about the
    order of series: gaps, uneven spacing, places scanned twice, numbers that run
    against the positions. The sheet shows one slice of each class and some
    others, in the brain, subdural and bone window, with labels and fold beneath.
    """
    from ichfast.overview import describe_store, format_overview, write_contact_sheet
    from ichfast.store import Store

    sheet = sheet or store.with_name(f"{store.name}.png")
    with Store(store) as opened:
        overview = describe_store(opened)
        write_contact_sheet(opened, sheet)
    click.echo(format_overview(overview), err=True)
    print_result({**asdict(overview), "sheet": str(sheet)})


@cli.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--recipe", help="Named settings.  [default: fast]")
@click.option("--size", type=click.IntRange(min=32), help="Side of the input, pixels.")
@click.option("--epoch", default=0, type=click.IntRange(min=0), help="Draw this one.")
@SET
def preview(
    store: Path,
    out: Path,
    recipe: str | None,
    size: int | None,
    epoch: int,
    assignments: tuple[str, ...],
) -> None:
    """Draw slices of STORE before and after augmentation, to OUT.png.

    The very same graph and parameters as in training. What was drawn stands
    beneath each slice; an outline shows which part of it is seen, its thick side
    being the top.
    """
    from ichfast.preview import write_preview
    from ichfast.recipes import resolve_recipe

    resolved = resolve_recipe(recipe, size=size, assignments=assignments)
    write_preview(store, resolved, out, epoch=epoch)
    print_result({"preview": str(out)})


@cli.command()
@click.option("--arch", help="Backbone; `ichfast recipes` lists them.")
@click.option("--size", type=click.IntRange(min=32), help="Side of the input, pixels.")
@click.option("--recipe", help="Named settings.  [default: fast]")
@click.option(
    "--fold",
    metavar="N|all",
    help="The fold that validates; all trains one run a fold, into OUT/fold-N.",
)
@STORE
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The run's folder.  [default: runs/RECIPE[-ARCH-SIZE]]",
)
@click.option("--resume", is_flag=True, help="Continue the run in --out.")
@click.option(
    "--pretrained", is_flag=True, help="Start from ImageNet weights (network)."
)
@click.option(
    "--weights",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Start from this file: safetensors, a run's best.pt, or mxresnet50 as fastai "
    "v1 saved it.",
)
@click.option(
    "--cache",
    type=click.Choice(["none", "host", "device"]),
    help="Read each slice once and keep it in host or GPU memory.  [default: none]",
)
@click.option("--compile", is_flag=True, help="torch.compile the network.")
@click.option(
    "--cuda-graphs",
    is_flag=True,
    help="Replay steps as CUDA graphs (torch.compile's reduce-overhead); GPU only.",
)
@click.option(
    "--profile",
    is_flag=True,
    help="Write trace.json and profile.txt: where a step's time goes.",
)
@SET
@LIMIT
@DEVICE
def train(
    arch: str | None,
    size: int | None,
    recipe: str | None,
    fold: str | None,
    store: Path,
    out: Path | None,
    resume: bool,
    pretrained: bool,
    weights: Path | None,
    cache: str | None,
    compile: bool,
    cuda_graphs: bool,
    profile: bool,
    assignments: tuple[str, ...],
    limit: int | None,
    device: str,
) -> None:
    """Train a backbone on a store.

    Without --recipe it takes `fast`, whose settings fit the arch, the size and the
    device. Ctrl-C and SIGTERM save, end, and print the command that continues;
    a run that was killed continues from its last checkpoint with --resume.

    \b
    Many GPUs; data.batch_size is that of one GPU:
      torchrun --nproc-per-node gpu -m ichfast train --arch resnext50 --size 224

    \b
    Settings for --set, among others:
      train.accumulate=4           a step of four batches
      train.patience=3             end after three epochs without a better one
      train.best_by=valid_weighted_log_loss
      train.checkpoint_minutes=10  between checkpoints within an epoch
    """
    from functools import partial

    from ichfast.crossvalidation import train_folds
    from ichfast.device import choose_device
    from ichfast.ranks import join_ranks
    from ichfast.recipes import resolve_recipe
    from ichfast.runs import default_run_dir, train_run
    from ichfast.settings import describe
    from ichfast.signals import stop_on_signal

    trains_all = fold == "all"
    options = {
        "folds.fold": None if trains_all else fold,
        "model.weights": weights,
        "model.pretrained": "yes" if pretrained else None,
        "data.cache": cache,
        "train.compile": "true" if compile else None,
        "train.cuda_graphs": "true" if cuda_graphs else None,
    }
    with join_ranks(device) as ranks, stop_on_signal() as should_stop:
        if not ranks.writes:
            logging.getLogger().setLevel(logging.ERROR)
        chosen = choose_device(device)
        resolved = resolve_recipe(
            recipe,
            arch=arch,
            size=size,
            device_type=chosen.type,
            assignments=[
                *(
                    f"{name}={value}"
                    for name, value in options.items()
                    if value is not None
                ),
                *assignments,
            ],
        )
        if ranks.writes:
            click.echo(describe(resolved), err=True)
        train_fold = partial(
            train_run,
            store,
            device=chosen,
            ranks=ranks,
            profile=profile,
            limit=limit,
            should_stop=should_stop,
        )
        out = out or default_run_dir(resolved, all_folds=trains_all)
        with _saying_how_to_resume(speaks=ranks.writes):
            report = (
                train_folds(resolved, out, train_fold, resume=resume)
                if trains_all
                else train_fold(resolved, out, resume=resume)
            )
    if ranks.writes:
        first = out / "fold-0" if trains_all else out
        click.echo(f"next: ichfast report {first}", err=True)
        print_result(asdict(report))


for _command in (judging.predict, judging.evaluate, judging.submit):
    cli.add_command(_command)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--predictions",
    type=click.Path(path_type=Path),
    help="Show these.  [default: predict the validation fold]",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="[default: RUN/report.html]"
)
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
    from ichfast.device import choose_device
    from ichfast.ensemble import predict_runs
    from ichfast.predictions import read_predictions
    from ichfast.results import report_run

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


for _command in (judging.compare, judging.export):
    cli.add_command(_command)


@cli.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option(
    "--repair",
    multiple=True,
    metavar="SOURCE",
    help="Make damaged shards again from what the store was made from; repeatable.",
)
@click.option(
    "--id-key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="For --repair: the key the store was prepared with.  [default: STORE.key]",
)
def verify(store: Path, repair: tuple[str, ...], id_key: Path | None) -> None:
    """Check every checksum of STORE; status 1 if anything is damaged.

    A damaged shard is made again with --repair, from the files the store was made
    from, and only put back if it is what it was to the bit.
    """
    from ichfast.errors import StoreError
    from ichfast.repair import repair_store
    from ichfast.store import verify_store

    if repair:
        print_result(asdict(repair_store(store, repair, id_key=id_key)))
        return
    if id_key:
        raise click.UsageError("--id-key is for --repair; a check needs no key")
    problems = verify_store(store)
    for problem in problems:
        click.echo(problem, err=True)
    print_result({"store": str(store), "problems": len(problems)})
    if problems:
        raise StoreError(
            f"{store} is damaged in {len(problems)} place(s); mend it with "
            f"`ichfast verify {store} --repair SOURCE`, or prepare it again"
        )


@cli.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--slices", default=1000, type=click.IntRange(min=1), help="How many.")
@click.option("--seed", default=0, type=int, help="The same seed, the same bytes.")
@click.option(
    "--size", default=512, type=click.IntRange(min=64), help="Rows and columns."
)
def synth(out: Path, slices: int, seed: int, size: int) -> None:
    """Write synthetic head CT as DICOM files, and their label csv, to OUT."""
    from ichfast.synth import synthesize

    print_result(asdict(synthesize(out, num_slices=slices, seed=seed, size=size)))


@cli.command()
@click.option(
    "--out",
    default="ichfast-demo",
    type=click.Path(path_type=Path),
    help="A folder to make everything in; must not exist.",
)
@DEVICE
def demo(out: Path, device: str) -> None:
    """Walk the whole way on synthetic heads: synth to report, in minutes."""
    from ichfast.demo import run_demo
    from ichfast.device import choose_device

    print_result(run_demo(out, device=choose_device(device), say=say))


@cli.command()
@click.argument("name", required=False)
def recipes(name: str | None) -> None:
    """List the named settings with the reference's results, or show one in full."""
    from ichfast.catalogue import format_recipe, format_recipes

    click.echo(format_recipes() if name is None else format_recipe(name))


def main() -> None:
    """Run the command line."""
    cli()


@contextmanager
def _saying_how_to_resume(*, speaks: bool) -> Iterator[None]:
    import os

    from ichfast.errors import InterruptionError
    from ichfast.relaunch import resume_command

    try:
        yield
    except InterruptionError as error:
        if not speaks:
            raise SystemExit(1) from error
        command = resume_command(sys.argv, os.environ)
        raise InterruptionError(f"{error}; continue with: {command}") from error


def _integers(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(
            f"expected numbers such as 512,256, found {text!r}", param_hint=option
        ) from error
