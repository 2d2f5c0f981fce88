"""The folders that the blocks of each page run in: what a page says is there, is there.

Synthetic heads with the headers of a scanner, their labels, stores of them, and runs
with random weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from pydicom import dcmread
from pydicom.config import disable_value_validation

from ichfast.evaluation.predictions import write_predictions
from ichfast.labels import CLASSES, read_labels
from ichfast.predict.ensemble import predict_runs
from ichfast.prepare.prepare import prepare_store
from tests.datasets import miniatures
from tests.predict.many_patients import write_labels, write_patients
from tests.runs.trainedruns import write_run
from tests.sources.dicomweb_server import StubServer

LABELS = "stage_2_train.csv"

PACS_URL, PACS_STUDY = "dicomweb://pacs.example.org/dicom-web", "1.2.3"
"""The server of pages and its study."""


@disable_value_validation()
def make_originals(folder: Path) -> None:
    """Write what pages start from: DICOM files, their labels, a store, lists of ids."""
    labels, folds = {}, {}
    heads = miniatures.heads(folder / "heads", num_slices=220, seed=7)
    for number, head in enumerate(heads):
        out = folder / "dicom" / f"{number:02d}"
        out.mkdir(parents=True)
        series = miniatures.hospital_series(head, "Head", "STANDARD")
        for each, labels_K in zip(series, head.labels_NK, strict=True):
            each.Manufacturer, each.KVP = "GE MEDICAL SYSTEMS", 120
            each.PatientAge = "052Y" if number % 2 else "067Y"
            each.save_as(out / f"{each.InstanceNumber:04d}.dcm")
            labels[str(each.SOPInstanceUID)] = labels_K.astype(int)
        folds[head.patient] = number % 3
    rows = [
        (f"{slice_id}_{name}", value)
        for slice_id, labels_K in labels.items()
        for name, value in zip(CLASSES, labels_K, strict=True)
    ]
    pd.DataFrame(rows, columns=["ID", "Label"]).to_csv(folder / LABELS, index=False)
    table = pd.DataFrame(folds.items(), columns=["PatientID", "fold"])
    table.to_csv(folder / "folds.csv", index=False)
    (folder / "adults.txt").write_text("\n".join(folds), "utf-8")
    prepare_store(
        [folder / "dicom"],
        folder / "store",
        labels=read_labels(folder / LABELS),
        keep_ids=True,
        workers=1,
    )


def _files(here: Path, originals: Path) -> None:
    (here / "DICOM...").symlink_to(originals / "dicom")
    (here / "SCANS").symlink_to(originals / "dicom" / "00")
    (here / LABELS).symlink_to(originals / LABELS)


def _store(here: Path, originals: Path) -> None:
    (here / "ichfast-store").symlink_to(originals / "store")


def _packed(here: Path, originals: Path) -> None:
    _files(here, originals)
    _store(here, originals)


def _runs(here: Path, originals: Path) -> None:
    _store(here, originals)
    for seed, name in enumerate(("a", "b")):
        write_run(here / "runs" / name, originals / "store", seed=seed)


def _select(here: Path, originals: Path) -> None:
    _files(here, originals)
    store, labels = here / "before", read_labels(originals / LABELS)
    prepare_store(
        [originals / "dicom"], store, labels=labels, keep_ids=False, workers=1
    )
    # The store that the page makes has the same key, and so the same ids.
    (here / "ichfast-store.key").symlink_to("before.key")
    run = write_run(here / "run", store)
    table = predict_runs([run], device=torch.device("cpu"))
    write_predictions(here / "predictions.parquet", table)


def _training(here: Path, originals: Path) -> None:
    _store(here, originals)
    (here / "other-store").symlink_to(originals / "store")
    for name in ("folds.csv", "adults.txt"):
        (here / name).symlink_to(originals / name)
    write_run(here / "runs" / "fast", originals / "store")


def _calibration(here: Path, _: Path) -> None:
    write_patients(here / "store")
    run = write_run(here / "RUN", here / "store")
    store = write_patients(here / "THEIRS", name="Q")
    table = predict_runs([run], device=torch.device("cpu"), store_path=store)
    write_labels(here / "theirs.csv", table)


def _pacs(here: Path, originals: Path) -> None:
    (here / "export").symlink_to(originals / "dicom" / "00")
    (here / "studies.txt").write_text(f"{PACS_STUDY}\n", "utf-8")
    write_run(here / "runs" / "rsna", originals / "store")


def pacs(originals: Path) -> StubServer:
    """A PACS with a study of the folder of `make_originals`."""
    files = {}
    for path in sorted((originals / "dicom" / "00").iterdir()):
        header = dcmread(path, stop_before_pixels=True)
        key = f"{header.SeriesInstanceUID}/{header.SOPInstanceUID}.dcm"
        files[key] = path.read_bytes()
    return StubServer({PACS_STUDY: files})


def _nothing(here: Path, originals: Path) -> None:
    del here, originals


PLACES: dict[str, Callable[[Path, Path], None]] = {
    "calibration.md": _calibration,
    "contributing.md": _nothing,
    "machines.md": _store,
    "packed.md": _packed,
    "pacs.md": _pacs,
    "predictions.md": _runs,
    "select.md": _select,
    "series.md": _store,
    "start.md": _files,
    "store.md": _store,
    "training.md": _training,
}
"""By page with blocks, what fills a folder from that of `make_originals`."""
