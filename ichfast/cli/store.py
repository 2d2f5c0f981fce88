"""The commands about stores: synth, prepare, inspect, verify."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import click

from ichfast.cli.options import LIMIT, STORE, OutputFile, print_result, say


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--slices", default=1000, type=click.IntRange(min=1), help="How many.")
@click.option("--seed", default=0, type=int, help="The same seed, the same bytes.")
@click.option(
    "--size", default=512, type=click.IntRange(min=64), help="Rows and columns."
)
def synth(out: Path, slices: int, seed: int, size: int) -> None:
    """Write synthetic head CT as DICOM files, and their label csv, to OUT."""
    from ichfast.synth.dataset import synthesize

    print_result(asdict(synthesize(out, num_slices=slices, seed=seed, size=size)))


@click.command()
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
    # Arrow's own allocator keeps what it gets back, a tenth of the peak.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    from ichfast.labels import read_labels
    from ichfast.prepare.prepare import prepare_store

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


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option(
    "--sheet",
    type=OutputFile(".png"),
    help="The contact sheet.  [default: STORE.png]",
)
def inspect(store: Path, sheet: Path | None) -> None:
    """Say what is in STORE, and draw a contact sheet of it.

    Counts what was stored and why files were not, and names what is odd about the
    order of series: gaps, uneven spacing, places scanned twice, numbers that run
    against the positions. The sheet shows one slice of each class and some
    others, in the brain, subdural and bone window, with labels and fold beneath.
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
    say(format_overview(overview))
    print_result({**asdict(overview), "sheet": str(sheet)})


@click.command()
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
    from ichfast.store.header import read_header
    from ichfast.store.verify import verify_store

    read_header(store)  # without it there is nothing to check, nor to repair
    if repair:
        from ichfast.prepare.repair import repair_store

        print_result(asdict(repair_store(store, repair, id_key=id_key)))
        return
    if id_key:
        raise click.UsageError("--id-key is for --repair; a check needs no key")
    problems = verify_store(store)
    for problem in problems:
        say(problem)
    print_result({"store": str(store), "problems": len(problems)})
    if problems:
        raise StoreError(
            f"{store} is damaged in {len(problems)} place(s); mend it with "
            f"`ichfast verify {store} --repair SOURCE`, or prepare it again"
        )


def _integers(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(
            f"expected numbers such as 512,256, found {text!r}", param_hint=option
        ) from error
