"""The record of a series run, `series.json`: which head is trained, on what, where.

1. Its last field is the checksum of the rest, so an edit is noticed when it is read.
2. Each checkpoint has the lines of `trained_settings`. Where a record is read with a
   checkpoint, the error names the setting that was edited.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ichfast.errors import CheckpointError, IchfastError, first_line
from ichfast.evaluation.calibration import Calibration
from ichfast.labels import CLASSES
from ichfast.recipes.settings import describe, from_dict, to_dict
from ichfast.runs.record import Environment, first_change, unusable_record
from ichfast.series.config import SeriesConfig
from ichfast.series.features import MAX_RUNS, FeaturesRun
from ichfast.system.checksums import read_document, with_checksum
from ichfast.system.files import write_text_atomically

RECORD = "series.json"
"""File of a series run's record, in its folder."""

BACKBONES = "backbones"
"""Folder of the copies of the backbones, in a series run's folder."""

MAX_FEATURES = 100_000
"""Upper limit of the number of features."""

_MAY_DIFFER = re.compile(
    r"(store|blend|features\.\d+\.(name|path)) =|(environment|calibration)\b"
)
"""Beginnings of the lines that may change between the sessions of one run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesCounts:
    """Series, slices and patients of a series run."""

    train_series: int
    train_slices: int
    train_patients: int
    valid_series: int
    valid_slices: int
    valid_patients: int
    valid_patients_seen: int
    """Patients who validate, and on whom a backbone that reads them was trained, or may
    have been, in a run before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesRecord:
    """The content of `series.json`."""

    series: SeriesConfig
    features: tuple[FeaturesRun, ...]
    """The runs that computed the features: the backbones."""

    num_features: int
    store: str
    """Absolute path of the store's folder."""

    store_digest: str
    """Identifies the store (`StoreHeader.digest`)."""

    fold: int
    """The fold that validates."""

    counts: SeriesCounts
    environment: Environment
    blend: tuple[float, ...] = ()
    """Share of the head of each class; empty until the run is finished."""

    calibration: Calibration | None = None
    """How blended probabilities of slices are calibrated (`ichfast calibrate`)."""


def is_series_run(path: Path) -> bool:
    """Whether a folder is that of a series run, finished or not."""
    return (path / RECORD).exists()


def write_series_record(run_dir: Path, record: SeriesRecord) -> None:
    """Write a run's `series.json`, atomically.

    Args:
        run_dir: the run's folder; exists.
        record: replaces the one that is there.
    """
    write_text_atomically(run_dir / RECORD, with_checksum(to_dict(record)))


def trained_settings(record: SeriesRecord) -> str:
    """All of a record that decides what was trained, as lines of ``name = value``."""
    lines = describe(record).splitlines()
    lines.append(f"number of backbones = {len(record.features)}")
    return "\n".join(line for line in lines if not _MAY_DIFFER.match(line))


def read_series_record(run_dir: Path, *, settings: str | None = None) -> SeriesRecord:
    """Read a run's `series.json`.

    Args:
        run_dir: the run's folder.
        settings: the text of `trained_settings` in a checkpoint of the run, which
            tells what was edited.

    Raises:
        CheckpointError: there is no series run.
        RecipeError: the file was edited, is damaged, or another version wrote it.
    """
    path = run_dir / RECORD
    try:
        record = from_dict(SeriesRecord, read_document(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"no series run in {run_dir} (no {RECORD}); make one with `ichfast "
            "train-series`"
        ) from error
    except (OSError, ValueError, IchfastError) as error:
        raise unusable_record(path, first_line(error)) from error
    change = settings and first_change(settings, trained_settings(record))
    if change:
        raise unusable_record(path, f"it has {change[1]}, but trained was {change[0]}")
    if problem := _contradiction(record):
        raise unusable_record(path, problem)
    return record


def _contradiction(record: SeriesRecord) -> str:
    """A value that a record cannot have; empty if there is none."""
    if not 1 <= len(record.features) <= MAX_RUNS:
        return f"it has {len(record.features)} backbones, expected 1 to {MAX_RUNS}"
    if not 1 <= record.num_features <= MAX_FEATURES:
        return f"it has {record.num_features:,} features"
    if len(record.blend) not in (0, len(CLASSES)):
        return f"its blend is for {len(record.blend)} classes"
    if not all(0.0 <= alpha <= 1.0 for alpha in record.blend):
        return "its blend has a share outside [0, 1]"
    return ""
