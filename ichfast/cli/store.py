"""The commands about stores: synth, prepare, inspect, verify, pack, unpack."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ichfast.cli.options import (
    ACCEPT,
    LIMIT,
    STORE,
    STUDIES,
    OutputFile,
    print_result,
    print_status,
    with_studies,
)
from ichfast.system.signals import signals_held, signals_interrupt

if TYPE_CHECKING:
    from ichfast.labels import LabelTable


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--slices", default=1000, type=click.IntRange(min=1), help="Number of slices."
)
@click.option("--seed", default=0, type=int, help="The same seed gives the same bytes.")
@click.option(
    "--size",
    default=512,
    type=click.IntRange(min=64),
    help="Rows, and columns, of a slice.",
)
def synth(out: Path, slices: int, seed: int, size: int) -> None:
    """Write synthetic head CT as DICOM files, with a label csv, to the folder OUT."""
    from ichfast.synth.dataset import synthesize

    print_result(asdict(synthesize(out, num_slices=slices, seed=seed, size=size)))


@click.command()
@click.argument("source", nargs=-1, required=True)
@STUDIES
@click.option(
    "--labels",
    type=Path,  # click's own type would look at the file, which may block
    metavar="FILE",
    help="Labels: RSNA's csv (ID,Label), or a csv or parquet file with a row for each "
    "slice, series, study or patient and a column for each class; docs/labels.md lists "
    "the forms.",
)
@click.option(
    "--masks",
    type=Path,
    metavar="FOLDER",
    help="NIfTI masks of the volumes in SOURCE, which give labels; a mask has the name "
    "of its volume, perhaps with _seg, _mask or -label behind.",
)
@click.option(
    "--mask-classes",
    metavar="LIST",
    help="The classes of the values 1, 2, ... in masks; any if 1 is every bleed.  "
    "[default: epidural,intraparenchymal,intraventricular,subarachnoid,subdural]",
)
@STORE
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Decoding processes.  [default: one for each core]",
)
@click.option(
    "--levels",
    default="512,256",
    help="512: slices at their own size. 256: also a copy of a quarter of the bytes.",
)
@click.option(
    "--packed",
    is_flag=True,
    help="Pack slices without loss to a quarter of the bytes; docs/packed.md says when "
    "that is faster.",
)
@click.option(
    "--keep-ids",
    is_flag=True,
    help="Keep patient, study, series and slice ids; otherwise keyed hashes.",
)
@click.option(
    "--id-key",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Secret key of the hashes, made if missing. Stores with the same key give a "
    "patient the same id.  [default: STORE.key]",
)
@click.option(
    "--append", is_flag=True, help="Add the new slices of SOURCE to a finished store."
)
@click.option(
    "--relabel",
    is_flag=True,
    help="With --append and --labels: replace labels of the store that differ.",
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
    help="Fail if more files than this are damaged or no DICOM. Images of other kinds "
    "and slices left out by --select do not count.",
)
@click.option(
    "--select",
    default="",
    metavar="EXPRESSION",
    help='Store only these slices: "kernel != bone and contrast == no and '
    'thickness_mm >= 2". A comparison with an unknown value is false. docs/select.md '
    "has the columns.",
)
@click.option(
    "--series",
    default="all",
    type=click.Choice(["all", "one-per-study"]),
    help="one-per-study: store the axial series of each study without contrast and "
    "with a soft kernel, or the one that is nearest to that; docs/select.md has the "
    "order.",
)
@ACCEPT
@LIMIT
def prepare(
    source: tuple[str, ...],
    studies: Path | None,
    labels: Path | None,
    masks: Path | None,
    mask_classes: str | None,
    store: Path,
    workers: int | None,
    levels: str,
    packed: bool,
    keep_ids: bool,
    id_key: Path | None,
    append: bool,
    relabel: bool,
    scheduler: str | None,
    max_rejected: str,
    select: str,
    series: str,
    accept: list[str],
    limit: int | None,
) -> None:
    """Decode every axial CT slice in SOURCE... into a store.

    A SOURCE is a folder, a DICOM file, a NIfTI volume, a .zip, .tar, .tar.gz or
    .tar.xz, or the URL of one (s3://, gs://, https://); or a DICOMweb server
    (dicomweb://HOST/PATH) with --studies. Archives inside folders are read too. Files
    that cannot be stored are listed with the reason in rejected.csv,
    which is STORE.rejected.csv if nothing can be stored. After an interruption the
    same command continues.
    """
    # Arrow's own allocator holds on to freed memory, a tenth of the peak.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    with signals_interrupt():
        with signals_held():
            from ichfast.prepare.prepare import prepare_store

        table, left_out = None, tuple[Path, ...]()
        if labels:
            table = read_label_file(labels)
        if masks or mask_classes:
            table, left_out = _read_masks(masks, mask_classes, source, labels)
        report = prepare_store(
            with_studies(source, studies),
            store,
            labels=table,
            left_out=left_out,
            levels=_integers(levels, "--levels"),
            packed=packed,
            workers=workers or len(os.sched_getaffinity(0)),
            keep_ids=keep_ids,
            id_key=id_key,
            append=append,
            relabel=relabel,
            scheduler=scheduler,
            max_rejected=max_rejected,
            limit=limit,
            accept=accept,
            select=select,
            series=series,
        )
    print_result(asdict(report))


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option(
    "--sheet",
    type=OutputFile(".png"),
    help="The contact sheet.  [default: STORE.png]",
)
def inspect(store: Path, sheet: Path | None) -> None:
    """Describe STORE, and draw a contact sheet of its slices.

    Counts the slices, also by scanner, kernel, contrast and the like, and the files
    that could not be stored by reason. Lists kinds of series. Finds series
    with gaps, uneven spacing, positions scanned twice, or instance numbers that run
    against the positions. The sheet shows a slice of each class and some others in
    the brain, subdural and bone window, with labels and fold.
    """
    from ichfast.report.overview import (
        describe_store,
        format_overview,
        write_contact_sheet,
    )
    from ichfast.store.store import Store
    from ichfast.system.files import beside

    sheet = sheet or beside(store, ".png")
    with Store(store) as opened:
        overview = describe_store(opened)
        write_contact_sheet(opened, sheet)
    print_status(format_overview(overview))
    print_result({**asdict(overview), "sheet": str(sheet)})


_WORKERS = click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Threads.  [default: one for each core]",
)


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@_WORKERS
def pack(store: Path, new: Path, workers: int | None) -> None:
    """Make a packed copy of STORE in the folder NEW: a quarter of the bytes, no loss.

    Training gives the same batches from both, to the bit, and runs go on with either.
    docs/packed.md says when a packed store is faster. After an interruption the same
    command continues.
    """
    _pack(store, new, workers, packed=True)


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@_WORKERS
def unpack(store: Path, new: Path, workers: int | None) -> None:
    """Make a raw copy of the packed STORE in the folder NEW, as before `ichfast pack`.

    After an interruption the same command continues.
    """
    _pack(store, new, workers, packed=False)


def _pack(store: Path, new: Path, workers: int | None, *, packed: bool) -> None:
    with signals_interrupt():
        with signals_held():
            from ichfast.prepare.packing import pack_store
            from ichfast.prepare.pseudonyms import default_key_path

        report = pack_store(
            store,
            new,
            packed=packed,
            workers=workers or len(os.sched_getaffinity(0)),
        )
    key = default_key_path(store)
    if key.exists():
        print_status(
            f"{key} is not copied; to append to {new} or to repair it, add --id-key "
            f"{key}"
        )
    print_result(asdict(report))


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option(
    "--repair",
    multiple=True,
    metavar="SOURCE",
    help="Make damaged shards again from the original files. Repeatable.",
)
@STUDIES
@click.option(
    "--id-key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="For --repair: the key of the store's hashes.  [default: STORE.key]",
)
def verify(
    store: Path, repair: tuple[str, ...], studies: Path | None, id_key: Path | None
) -> None:
    """Check every checksum of STORE; exit with status 1 if anything is damaged.

    With --repair a damaged shard is made again from the original files, and put back
    only if every bit is as it was.
    """
    from ichfast.errors import StoreError
    from ichfast.store.header import read_header
    from ichfast.store.verify import verify_store

    read_header(store)  # without it there is nothing to check or repair
    if repair:
        with signals_interrupt():
            with signals_held():
                from ichfast.prepare.repair import repair_store

            sources = with_studies(repair, studies)
            report = repair_store(store, sources, id_key=id_key)
        print_result(asdict(report))
        return
    if id_key or studies:
        option = "--id-key" if id_key else "--studies"
        raise click.UsageError(f"{option} is for --repair; a check does not need it")
    problems = verify_store(store)
    for problem in problems:
        print_status(problem)
    print_result({"store": str(store), "problems": len(problems)})
    if problems:
        raise StoreError(
            f"{store} is damaged in {len(problems)} place(s); repair it with "
            f"`ichfast verify {store} --repair SOURCE`, or prepare it again"
        )


def read_label_file(path: Path) -> LabelTable:
    """Read labels in another process, so that this one ends if nothing comes."""
    from ichfast.errors import LabelError
    from ichfast.labels import read_labels
    from ichfast.system.limits import LimitedProcess

    with LimitedProcess() as process:
        try:
            table = process.call(read_labels, path)
        except TimeoutError as error:
            raise LabelError(
                f"cannot read {path}: {error.strerror}; check the disk or the server "
                "that it is on"
            ) from error
    print_status(table.description)
    return table


def _read_masks(
    masks: Path | None,
    mask_classes: str | None,
    source: tuple[str, ...],
    labels: Path | None,
) -> tuple[LabelTable, tuple[Path, ...]]:
    """Labels of a folder of masks, and the files that are no volumes."""
    from ichfast.prepare.masks import BHSD_CLASSES, parse_classes, read_masks

    if masks is None:
        raise click.UsageError("--mask-classes is for --masks FOLDER")
    if labels is not None:
        raise click.UsageError(
            "--labels and --masks both give labels; give one of them, then the other "
            "with --append"
        )
    classes = parse_classes(mask_classes) if mask_classes else BHSD_CLASSES
    found = read_masks(masks, source, classes)
    print_status(found.table.description)
    return found.table, found.files


def _integers(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(
            f"expected numbers such as 512,256, found {text!r}", param_hint=option
        ) from error
