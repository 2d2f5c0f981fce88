"""The record of a run, `run.json`: what is trained, on what, where.

1. Its last field is the checksum of the rest, so an edit is noticed when it is read.
2. Each checkpoint has the lines of `trained_settings`. Where a record is read with a
   checkpoint, the error names the setting that was edited.

This module loads no torch, so that runs can be listed and compared without it.
"""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ichfast.errors import CheckpointError, IchfastError, RecipeError
from ichfast.evaluation.calibration import Calibration
from ichfast.loading.config import measure_normalization
from ichfast.loading.splits import Split
from ichfast.recipes.recipe import Recipe
from ichfast.recipes.settings import describe, from_dict, to_dict
from ichfast.store.store import Store
from ichfast.system.checksums import (
    FIELD,
    ChecksumError,
    check_document,
    with_checksum,
)
from ichfast.system.environment import describe_environment
from ichfast.system.files import write_text_atomically
from ichfast.windows import Normalization

RECORD = "run.json"
"""File of a run's record, in its folder."""

MAY_DIFFER = (
    *(
        "store =",
        "environment.",
        "recipe.data.cache =",
        "recipe.data.cache_packed =",
        "recipe.data.check =",
    ),
    *("recipe.folds.file =", "recipe.folds.only ="),
    *("calibration =", "calibration."),
)
"""Beginnings of the lines that may change between the sessions of one run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Slices, patients and labels of a run."""

    train_slices: int
    train_patients: int
    valid_slices: int
    valid_patients: int
    valid_patients_seen: int
    """Patients who validate, and on whom the weights that the run starts from were
    trained, or may have been."""

    train_labels: dict[str, int] = field(default_factory=dict)
    """Training slices whose label is known, by class; empty where version 0.1 trained
    the run, which took slices with all six labels."""

    train_bag_labels: dict[str, int] = field(default_factory=dict)
    """Training bags whose label is known, by class; empty without bags."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """The content of `system.environment.describe_environment`."""

    python: str
    system: str
    processor: str
    cores: int
    versions: dict[str, str]
    commit: str | None
    gpus: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """The content of `run.json`: what is trained, on what, where."""

    recipe: Recipe
    normalization: Normalization
    store: str
    """Absolute path of the store's folder."""

    store_digest: str
    """Identifies the store (`StoreHeader.digest`), also after it was moved."""

    counts: Counts
    environment: Environment

    id_files: dict[str, str] = field(default_factory=dict)
    """Digests of the files of ids, by setting (`loading.splits.ID_FILES`)."""

    calibration: Calibration | None = None
    """Calibrates the probabilities of the best epoch; None until `ichfast calibrate`,
    and again once training goes on."""


FORMER_LINES = {
    "recipe.data.neighbours = false": "recipe.data.neighbours = 0",
    "recipe.data.neighbours = true": "recipe.data.neighbours = 1",
}
"""Lines of `trained_settings` that earlier versions wrote, and what they are now."""


def make_record(
    recipe: Recipe, store: Store, split: Split, *, num_seen: int = 0
) -> RunRecord:
    """Describe a run of a recipe on a store, on this machine.

    Args:
        recipe: the settings.
        store: with labels.
        split: the slices that train, which decide the normalization, and validate.
        num_seen: patients of the validation slices that the weights which the run
            starts from may have been trained on.
    """
    return RunRecord(
        recipe=recipe,
        normalization=measure_normalization(store, split.train_N, recipe.data),
        store=str(store.path.absolute()),
        store_digest=store.header.digest,
        counts=Counts(**split.counts(store), valid_patients_seen=num_seen),
        environment=from_dict(Environment, describe_environment()),
        id_files={name: file.digest for name, file in split.files.items()},
    )


def write_record(run_dir: Path, record: RunRecord) -> None:
    """Write a run's `run.json`, atomically.

    Args:
        run_dir: the run's folder; exists.
        record: replaces the one that is there.
    """
    write_text_atomically(run_dir / RECORD, with_checksum(to_dict(record)))


def trained_settings(record: RunRecord) -> str:
    """All of a record that decides what was trained, as lines of ``name = value``."""
    lines = describe(record).splitlines()
    lines.append(f"number of phases = {len(record.recipe.train.phases)}")
    return "\n".join(line for line in lines if not line.startswith(MAY_DIFFER))


def first_change(was: str, now: str) -> tuple[str, str] | None:
    """The first setting that differs.

    Args:
        was: text of `trained_settings`.
        now: another.

    Returns:
        Its lines in both; None if none differs. Settings that only one of them has
            are those of another version, and are left out.
    """
    lines = (FORMER_LINES.get(line, line) for line in was.splitlines())
    before = {_name(line): line for line in lines}
    for line in now.splitlines():
        old = before.get(_name(line), line)
        if old != line:
            return old, line
    return None


def _name(line: str) -> str:
    return line.partition(" = ")[0]


def read_record(run_dir: Path, *, settings: str | None = None) -> RunRecord:
    """Read a run's `run.json`.

    Args:
        run_dir: the run's folder.
        settings: the text of `trained_settings` in a checkpoint of the run, which
            tells what was edited.

    Raises:
        CheckpointError: there is no run.
        RecipeError: the file was edited, is damaged, or another version wrote it.
    """
    path = run_dir / RECORD
    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "not a regular file")
        content = path.read_bytes()
        found = json.loads(content)
        # Fails on what cannot be shown later: no text, or nested too deeply.
        json.dumps(found, ensure_ascii=False).encode()
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no run in {run_dir} (no {RECORD}); make one with `ichfast train`"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise unusable_record(path, str(error)) from error
    if not isinstance(found, dict):
        raise unusable_record(path, f"expected settings, found {found!r:.40}")
    rest = {name: value for name, value in found.items() if name != FIELD}
    try:
        record = from_dict(RunRecord, _with_former_settings(rest))
    except IchfastError as error:
        raise unusable_record(path, str(error)) from error
    change = settings and first_change(settings, trained_settings(record))
    if change:
        raise unusable_record(path, f"it has {change[1]}, but trained was {change[0]}")
    num_windows = len(record.recipe.data.windows)
    if len(record.normalization.mean) != num_windows:
        raise unusable_record(path, f"normalization is not for {num_windows} window(s)")
    try:
        check_document(content, found)
    except ChecksumError as error:
        raise unusable_record(path, str(error)) from error
    return record


def _with_former_settings(found: dict[str, Any]) -> dict[str, Any]:
    """The content of a record with the settings of a run from before they existed."""
    recipe = found.get("recipe")
    if not isinstance(recipe, dict) or not isinstance(recipe.get("data"), dict):
        return found
    data = {"square_pixels": False, **recipe["data"]}
    if isinstance(data.get("neighbours"), bool):
        data["neighbours"] = int(data["neighbours"])
    return {**found, "recipe": {**recipe, "data": data}}


def unusable_record(path: Path, reason: str) -> RecipeError:
    """The error for a record that is damaged or was edited.

    Args:
        path: its file.
        reason: what is wrong with it.
    """
    return RecipeError(
        f"{path} is damaged or was edited: {reason}; copy back the file as it was, or "
        "train again"
    )
