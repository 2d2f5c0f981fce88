"""Structured reports and key images of predicted studies.

A study whose files DICOM cannot refer to gets no document: `NO_DOCUMENT` has the
reasons. Documents are written whole or not at all. Those that the folder has of a
predicted study are removed first, so that no two of a study are of different runs.

highdicom comes with the extra ``pacs``. It is imported when documents are written.

Shape letters: K classes, h and w rows and columns of the feature map.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import torch
from pydicom.dataset import Dataset

from ichfast.errors import PredictionError
from ichfast.evaluation.predictions import probs_NK
from ichfast.evaluation.study_table import join_slices
from ichfast.labels import CLASSES
from ichfast.pacs.file_header import is_uid
from ichfast.pacs.findings import Algorithm, Finding
from ichfast.pacs.instances import Instance, find_instances, slice_keys
from ichfast.predict.coverage import Run, all_networks
from ichfast.report.activations import activations_of
from ichfast.report.pictures import slice_view, windowed_8bit
from ichfast.runs.trained import TrainedRun, checkpoint_digest
from ichfast.store.store import Store
from ichfast.system.files import output_path, remove_file
from ichfast.windows import PRESETS

logger = logging.getLogger(__name__)

NO_DOCUMENT: Mapping[str, str] = {
    "no-header": "a slice is of a file without a DICOM header that can be read",
    "no-uid": "a UID is none that DICOM allows",
    "patients": "its files name different patients",
}
"""Why a study gets no document: a code, and what it means."""

REPORT_SUFFIX, KEY_IMAGE_SUFFIX = ".sr.dcm", ".key.dcm"
"""What follows StudyInstanceUID in the names of files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentsReport:
    """What was written."""

    reports: int
    key_images: int
    no_document: Mapping[str, int]
    """Number of studies without documents, by key of `NO_DOCUMENT`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentConfig:
    """Which documents are written, and where."""

    folder: Path
    key_images: bool
    """Also write a key image of each study."""

    keep_ids: bool
    """Write the patient's attributes, by which a PACS files a document."""

    settings: Mapping[str, object]
    """How the runs predicted, as a report names it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Study:
    """The predicted slices of a study, in the order of the table."""

    uid: str
    slices: pd.DataFrame
    instances: list[Instance]
    probabilities: Mapping[str, float]
    """Probabilities of the study, by class."""


def check_folder(folder: Path) -> None:
    """Refuse a folder that documents cannot be written to; make it if it is missing.

    Call it before the work begins, which may take hours.

    Raises:
        PredictionError: it cannot be made, or written to; or highdicom is missing.
    """
    if find_spec("highdicom") is None:
        raise PredictionError(
            "DICOM documents need highdicom; pip install 'ichfast[pacs]'"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK) else "it is read-only"
    except OSError as error:
        reason = error.strerror or "it cannot be made"
    if reason:
        raise PredictionError(
            f"cannot write documents to {folder}: {reason}; name another folder"
        )


def write_documents(
    runs: Sequence[Run],
    store: Store,
    table: pd.DataFrame,
    sources: Sequence[Path | str],
    *,
    device: torch.device,
    config: DocumentConfig,
) -> DocumentsReport:
    """Write the documents of every predicted study.

    Args:
        runs: what predicted. Key images show the map of the first one.
        store: the predicted slices, with ids as they are in their files.
        table: the predictions, columns as in `ichfast.evaluation.predictions`.
        sources: where the files of the slices are.
        device: where to compute maps, in float32.
        config: which documents, and where.

    Raises:
        PredictionError: a document cannot be written.
        SourceError: a source is not there any more.
    """
    found = find_instances(table, sources)
    studies, no_document = [], Counter[str]()
    joined = join_slices(table, "study").set_index("study")
    for uid, slices in table.groupby("study", sort=True):
        instances = [found[key] for key in slice_keys(slices)]
        _remove_documents(config.folder, str(uid))
        if reason := _why_not(instances):
            no_document[reason] += 1
            continue
        probabilities = joined.loc[uid, list(CLASSES)].to_dict()
        studies.append(
            _Study(
                uid=str(uid),
                slices=slices,
                instances=[each for each, *_ in instances],
                probabilities=probabilities,
            )
        )
    for reason, count in no_document.items():
        logger.warning("%d studies get no document: %s", count, NO_DOCUMENT[reason])
    _write_reports(runs, studies, config)
    num_images = 0
    if config.key_images and studies:
        num_images = _write_key_images(runs[0], store, studies, device, config)
    return DocumentsReport(
        reports=len(studies), key_images=num_images, no_document=dict(no_document)
    )


def _remove_documents(folder: Path, study_uid: str) -> None:
    """Remove what an earlier command wrote of a study."""
    if not is_uid(study_uid):  # then none was written
        return
    for suffix in (REPORT_SUFFIX, KEY_IMAGE_SUFFIX):
        path = folder / f"{study_uid}{suffix}"
        try:
            remove_file(path)
        except OSError as error:
            raise PredictionError(
                f"cannot replace {path}: {error.strerror}; name another folder"
            ) from error


def _why_not(instances: Sequence[Sequence[Instance]]) -> str | None:
    """The key in `NO_DOCUMENT` of a study; None if it can have documents.

    Args:
        instances: for each of its slices, those that the files have.
    """
    if not all(instances):
        return "no-header"
    headers = [each.header for found in instances for each in found]
    if not all(header.has_uids for header in headers):
        return "no-uid"
    if len({header.patient for header in headers}) > 1:
        return "patients"
    return None


def _write_reports(
    runs: Sequence[Run], studies: Sequence[_Study], config: DocumentConfig
) -> None:
    from ichfast.pacs.structured_report import make_report

    algorithm = Algorithm(digests=_digests(runs), settings=config.settings)
    thresholds = _thresholds(runs)
    for study in studies:
        report = make_report(
            _findings(study, thresholds),
            study.instances,
            algorithm,
            keep_ids=config.keep_ids,
        )
        _write(config.folder / f"{study.uid}{REPORT_SUFFIX}", report)


def _findings(study: _Study, thresholds: Mapping[str, float]) -> list[Finding]:
    probs = probs_NK(study.slices)
    return [
        Finding(
            class_name=name,
            probability=study.probabilities[name],
            peak=study.instances[int(probs[:, k].argmax())],
            peak_probability=float(probs[:, k].max()),
            threshold=thresholds.get(name),
        )
        for k, name in enumerate(CLASSES)
    ]


def _thresholds(runs: Sequence[Run]) -> dict[str, float]:
    """The thresholds of a single run, by class. An ensemble has none."""
    calibration = runs[0].record.calibration
    if len(runs) > 1 or calibration is None:
        return {}
    return {
        each.name: each.threshold.probability
        for each in calibration.classes
        if each.threshold
    }


def _digests(runs: Sequence[Run]) -> list[str]:
    """SHA-256 of each checkpoint, those of backbones too."""
    digests = []
    for run in runs:
        digests.append(checkpoint_digest(run.path))
        if not isinstance(run, TrainedRun):
            digests += [each.digest for each in run.backbones]
    return digests


def _write_key_images(
    run: Run,
    store: Store,
    studies: Sequence[_Study],
    device: torch.device,
    config: DocumentConfig,
) -> int:
    """Write the slice of each study with the highest probability of `any`."""
    from ichfast.pacs.key_image import draw_map, make_key_image

    network = all_networks(run)[0]
    peaks = [int(study.slices["any"].to_numpy().argmax()) for study in studies]
    slice_ids = [
        str(study.slices["slice_id"].iloc[peak])
        for study, peak in zip(studies, peaks, strict=True)
    ]
    model = network.load_model(device)
    maps_BKhw = activations_of(slice_ids, model, store, network.record, device)
    if maps_BKhw is None:
        logger.warning(
            "no key images: %s has no feature map", network.record.recipe.model.arch
        )
        return 0
    position_of = pd.Index(store.table["slice_id"].astype(str))
    description = f"Slice beside its Grad-CAM map; checkpoint sha256:{network.digest}"
    is_square = network.record.recipe.data.square_pixels
    for study, peak, slice_id, maps_Khw in zip(
        studies, peaks, slice_ids, maps_BKhw, strict=True
    ):
        position = int(position_of.get_loc(slice_id))
        stored_HW = slice_view(
            store, position, max(store.levels), square_pixels=is_square
        )
        probability = float(study.slices["any"].iloc[peak])
        caption = f"Slice with the highest probability of a bleed: {probability:.3f}"
        picture = draw_map(
            windowed_8bit(stored_HW, PRESETS["brain"]),
            maps_Khw[CLASSES.index("any")],
            f"{caption}. Right: Grad-CAM, no outline of a bleed.",
        )
        image = make_key_image(
            picture,
            study.instances[peak],
            description,
            keep_ids=config.keep_ids,
        )
        _write(config.folder / f"{study.uid}{KEY_IMAGE_SUFFIX}", image)
    return len(studies)


def _write(path: Path, document: Dataset) -> None:
    with output_path(path, PredictionError) as temporary:
        document.save_as(temporary)
