"""The commands predict, blend and export: probabilities from runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ichfast.cli.options import (
    ACCEPT,
    BATCH_SIZE,
    CACHE,
    DEVICE,
    LIMIT,
    ONLY,
    RUNS,
    STUDIES,
    joined_ranks,
    print_result,
    print_status,
    with_studies,
)

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from ichfast.predict.coverage import Run
    from ichfast.store.store import Store
    from ichfast.system.ranks import Ranks


@click.command()
@RUNS
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    help="Predict this store.  [default: the one that RUN was trained on]",
)
@click.option(
    "--all",
    "all_slices",
    is_flag=True,
    help="Predict every slice of the store, also of patients that RUN was trained on.",
)
@click.option(
    "--dicom",
    "sources",
    multiple=True,
    metavar="SOURCE",
    help="Predict DICOM files or NIfTI volumes: any source that `prepare` takes. "
    "Repeatable.",
)
@STUDIES
@click.option(
    "--keep-ids",
    is_flag=True,
    help="With --dicom: keep patient ids, which otherwise become keyed hashes, and "
    "names of files in OUT.rejected.csv, which otherwise become numbers. With --sr: "
    "write the patient into each document, so that a PACS can file it.",
)
@click.option(
    "--sr",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="With --dicom: also write a DICOM structured report of each study.",
)
@click.option(
    "--key-images",
    is_flag=True,
    help="With --sr: also write a secondary capture of each study, with a map of "
    "where the model looked.",
)
@click.option(
    "--tta",
    is_flag=False,
    flag_value="reference",
    default="none",
    type=click.Choice(["reference", "flips", "none"]),
    help="Test-time augmentation. --tta alone: the nine passes of the reference.",
)
@click.option(
    "--average",
    default="probs",
    type=click.Choice(["probs", "logits"]),
    help="Average the probabilities of several RUNs, or their logits.",
)
@click.option(
    "--level",
    default="slice",
    type=click.Choice(["slice", "series", "study"]),
    help="Write one row a slice, series or study.",
)
@click.option(
    "--smooth", is_flag=True, help="Average each slice with the slices next to it."
)
@BATCH_SIZE
@CACHE
@ACCEPT
@ONLY
@LIMIT
@DEVICE
def predict(
    runs: tuple[Path, ...],
    out: Path,
    store: Path | None,
    all_slices: bool,
    sources: Sequence[str],
    studies: Path | None,
    keep_ids: bool,
    sr: Path | None,
    key_images: bool,
    tta: str,
    average: str,
    level: str,
    smooth: bool,
    batch_size: int | str,
    cache: str | None,
    accept: list[str],
    only: Path | None,
    limit: int | None,
    device: str,
) -> None:
    """Predict slices with RUN's best epoch; write OUT (.parquet, .csv or .npz).

    In the store that RUN was trained on, the slices are those of its validation fold.
    In that store after `prepare --append` they are those of patients that RUN was not
    trained on, and in another --store all; with --dicom every axial CT slice in a
    folder, file, archive or URL. --all takes every slice of any store; OUT marks those
    of patients that RUN was trained on, and `evaluate` refuses them.

    Several RUNs are an ensemble: a slice gets the average of the runs that predict
    it, and OUT shows how much they differ. They may see other sizes and windows. The
    runs of all folds together predict their store out of fold. A RUN of `train-series`
    also gives each series a probability.

    Each pass of --tta reads all slices again, unless --cache keeps them.

    With --level study OUT has one row a study: its six probabilities, labels where
    they are known, and how many series and slices it has. `evaluate`, `submit` and
    `report` take slices.

    What is computed is kept in a hidden folder next to OUT (for p.csv: .p.csv.work)
    until OUT is written. After a kill the same command goes on with it. A command with
    other RUNs or options is refused while it is there: remove it to begin anew.

    \b
    On several GPUs, with OUT in a folder that all machines share:
      torchrun --nproc-per-node gpu -m ichfast predict RUN OUT

    --dicom decodes the slices into a temporary store (in TMPDIR, 0.7 MB a slice),
    which is removed at the end; after a kill it starts again, and it takes one process.
    Slice, series and study ids stay as they are in the files, so that a probability
    can be traced to its file. Files that are no slices or cannot be read are listed
    with the reason in OUT.rejected.csv.

    --sr needs the extra `pacs`. A report holds the study's six probabilities, the
    thresholds of a calibrated RUN, the SHA-256 of RUN's checkpoint and references to
    the slices. It is for research; ichfast is no medical device (docs/pacs.md).
    """
    from ichfast.evaluation.predictions import check_destination, write_predictions
    from ichfast.evaluation.study_table import join_slices
    from ichfast.predict.ensemble import PredictConfig, kept_predictions
    from ichfast.predict.from_dicom import predict_dicom
    from ichfast.prepare.rejected import rejected_path
    from ichfast.runs.device import choose_device

    _check_sources(sources, store, studies, accept=accept, keep_ids=keep_ids)
    sources = with_studies(sources, studies)
    settings = {"tta": tta, "average": average, "smooth": smooth}
    documents = _documents_writer(
        sources, sr, key_images=key_images, keep_ids=keep_ids, settings=settings
    )
    check_destination(out)
    config = PredictConfig(
        tta=tta,
        average=average,
        smooth=smooth,
        batch_size=None if isinstance(batch_size, str) else batch_size,
        cache=cache or "none",
        all_slices=all_slices,
        only=only,
        limit=limit,
    )

    def write(table: pd.DataFrame) -> dict[str, Any]:
        rows = table if level == "slice" else join_slices(table, level)
        write_predictions(out, rows)
        counts = {"slices": len(table), "level": level, "rows": len(rows)}
        return {**counts, "runs": len(runs), **settings}

    def use(runs: Sequence[Run], store: Store, table: pd.DataFrame) -> dict[str, Any]:
        written = write(table)  # before the documents, so that it outlives their errors
        return {**documents(how["device"], runs, store, table), **written}

    with joined_ranks(device) as ranks:
        how: dict[str, Any] = {"device": choose_device(device), "config": config}
        if sources:
            _check_one_process(ranks)
            found = predict_dicom(
                runs,
                sources,
                **how,
                workers=len(os.sched_getaffinity(0)),
                rejected_file=rejected_path(out),
                keep_ids=keep_ids,
                accept=accept,
                use_store=use,
            )
            if found.is_listed:
                print_status(f"{rejected_path(out)} lists the files that were left out")
            written = {"rejected": dict(found.rejected), **found.used}
            print_result({"predictions": str(out), **written})
            return
        with kept_predictions(runs, out, **how, ranks=ranks, store_path=store) as table:
            if table is not None:
                print_result({"predictions": str(out), **write(table)})


def _check_sources(
    sources: Sequence[str],
    store: Path | None,
    studies: Path | None,
    *,
    accept: Sequence[str],
    keep_ids: bool,
) -> None:
    """Refuse options that go with --dicom only, or not with it."""
    if sources and store:
        raise click.UsageError("give --store or --dicom, not both")
    if studies and not sources:
        raise click.UsageError("--studies goes with --dicom dicomweb://HOST/PATH")
    if accept and not sources:
        raise click.UsageError("--accept goes with --dicom; a store has its images")
    if keep_ids and not sources:
        raise click.UsageError("--keep-ids goes with --dicom; a store's ids are kept")


def _documents_writer(
    sources: Sequence[str],
    folder: Path | None,
    *,
    key_images: bool,
    keep_ids: bool,
    settings: Mapping[str, object],
) -> Callable[[torch.device, Sequence[Run], Store, pd.DataFrame], Mapping[str, object]]:
    """Check the options of DICOM documents before the work begins.

    Args:
        sources: of --dicom.
        folder: of --sr; None: no documents.
        key_images: of --key-images.
        keep_ids: of --keep-ids.
        settings: how the runs predict.

    Returns:
        Writes the documents, if any, and returns what it wrote.
    """
    if folder is None:
        if key_images:
            raise click.UsageError("--key-images goes with --sr DIR")
        return lambda *_: {}
    if not sources:
        raise click.UsageError(
            "--sr goes with --dicom; a store does not tell whose its slices are"
        )
    from ichfast.pacs.documents import DocumentConfig, check_folder, write_documents

    check_folder(folder)
    config = DocumentConfig(
        folder=folder, key_images=key_images, keep_ids=keep_ids, settings=settings
    )

    def write(
        device: torch.device, runs: Sequence[Run], store: Store, table: pd.DataFrame
    ) -> Mapping[str, object]:
        return asdict(
            write_documents(runs, store, table, sources, device=device, config=config)
        )

    return write


def _check_one_process(ranks: Ranks) -> None:
    if ranks.world_size > 1:
        raise click.UsageError(
            "--dicom takes one process; for several, make a store with `ichfast "
            "prepare` and predict it with --store"
        )


@click.command()
@click.argument(
    "predictions",
    nargs=-1,
    required=True,
    metavar="PREDICTIONS...",
    type=click.Path(path_type=Path),
)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--weights",
    default="fit",
    metavar="fit|equal|FILE",
    help="fit: for each class the weights with the lowest log loss on the labels in "
    "the files; FILE: those that a blend has written.",
)
def blend(predictions: tuple[Path, ...], out: Path, weights: str) -> None:
    """Average PREDICTIONS of the same slices; write OUT.

    Fitted weights are chosen on the patients in the files, none of whom the runs may
    have been trained on, and written to OUT.weights.json. To blend slices without
    labels, fit weights on validation patients first, and name that file:

    \b
      ichfast blend A-valid.parquet B-valid.parquet valid.parquet
      ichfast blend A-test.parquet B-test.parquet test.parquet \\
          --weights valid.parquet.weights.json

    The loss that is printed is that of the patients who chose the weights; of other
    patients expect a worse one.
    """
    from ichfast.evaluation.predictions import check_destination
    from ichfast.predict.blending import blend_files

    if out.resolve() in [path.resolve() for path in predictions]:
        raise click.UsageError(f"{out} would be replaced; name another file as OUT")
    check_destination(out)
    print_result(asdict(blend_files(predictions, out, weights=weights)))


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("out", metavar="MODEL.pt2|MODEL.onnx", type=click.Path(path_type=Path))
def export(run: Path, out: Path) -> None:
    """Write RUN's best epoch as a model that runs without ichfast.

    The model takes HU, float32 (slices, 512, 512), and returns six probabilities for
    each slice; resizing, windows and normalisation are part of it. A .pt2 file runs in
    torch (torch.export.load), an .onnx file in ONNX Runtime. Writing .onnx needs the
    extra `export`. A model card is written next to the model.

    The model of a series run takes the slices of one series, from the lowest to the
    highest, and also returns six probabilities of the series.
    """
    from ichfast.export.export import export_run

    print_result(asdict(export_run(run, out)))
