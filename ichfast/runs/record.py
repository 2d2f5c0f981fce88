"""The record of a run, `run.json`: what is trained, on what, where.

This module loads no torch, so that runs can be listed and compared without it.
"""

from __future__ import annotations

import errno
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ichfast.errors import CheckpointError, RecipeError
from ichfast.loading.config import measure_normalization
from ichfast.loading.splits import Split
from ichfast.recipes.recipe import Recipe
from ichfast.recipes.settings import from_dict, to_dict
from ichfast.store.store import Store
from ichfast.system.environment import describe_environment
from ichfast.system.files import write_text_atomically
from ichfast.windows import Normalization

RECORD = "run.json"
"""File of a run's record, in its folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """The content of `run.json`: what is trained, on what, where."""

    recipe: Recipe
    normalization: Normalization
    store: str
    """Path of the store's folder, as it was given."""

    store_plan: dict[str, str]
    """Digests of what the store was made from, which identify it."""

    counts: dict[str, int]
    """Slices and patients that train and validate."""

    environment: dict[str, Any]
    """Versions, machine and commit."""


def make_record(recipe: Recipe, store: Store, split: Split) -> RunRecord:
    """Describe a run of a recipe on a store, on this machine.

    Args:
        recipe: the settings.
        store: with labels.
        split: the slices that train, which decide the normalization, and validate.
    """
    return RunRecord(
        recipe=recipe,
        normalization=measure_normalization(store, split.train_N, recipe.data),
        store=str(store.path),
        store_plan=dict(store.header.plan),
        counts=split.counts(store),
        environment=describe_environment(),
    )


def write_record(run_dir: Path, record: RunRecord) -> None:
    """Write a run's `run.json`, atomically.

    Args:
        run_dir: the run's folder; exists.
        record: replaces the one that is there.
    """
    text = json.dumps({**asdict(record), "recipe": to_dict(record.recipe)}, indent=2)
    write_text_atomically(run_dir / RECORD, text + "\n")


def read_record(run_dir: Path) -> RunRecord:
    """Read a run's `run.json`.

    Raises:
        CheckpointError: there is no run.
        RecipeError: the file is damaged, or another version wrote it.
    """
    path = run_dir / RECORD
    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "not a regular file")
        found = json.loads(path.read_text("utf-8"))
        # Fails on what cannot be shown later: no text, or nested too deeply.
        json.dumps(found, ensure_ascii=False).encode()
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no run in {run_dir} (no {RECORD}); make one with `ichfast train`"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise RecipeError(f"{path} is damaged: expected settings, found {found!r:.40}")
    return from_dict(RunRecord, found)
