"""A run's folder: its name, its record `run.json`, and whether a run fits it."""

from __future__ import annotations

import errno
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ichfast.errors import CheckpointError, RecipeError, TrainError
from ichfast.loading.config import measure_normalization
from ichfast.loading.splits import Split
from ichfast.recipes.recipe import Recipe
from ichfast.recipes.resolve import RECIPES
from ichfast.recipes.settings import describe, from_dict, to_dict
from ichfast.store.store import Store
from ichfast.system.environment import describe_environment
from ichfast.system.files import write_text_atomically
from ichfast.training.checkpoint import LAST, clear_leftovers, has_last
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


def default_run_dir(recipe: Recipe, *, all_folds: bool = False) -> Path:
    """The default folder: runs/RECIPE, with the arch, size and fold that differ.

    Args:
        recipe: what is trained.
        all_folds: the folder will hold a run of each fold.
    """
    named = RECIPES[recipe.name]()
    size, arch = recipe.data.size, recipe.model.arch
    name = recipe.name
    if (arch, size) != (named.model.arch, named.data.size) or name == "fast":
        name += f"-{arch}-{size}"
    if all_folds:
        name += "-folds"
    elif recipe.folds.fold:
        name += f"-fold{recipe.folds.fold}"
    return Path("runs") / name


def check_run_dir(run_dir: Path, *, resume: bool) -> None:
    """Refuse to start a run where there is one, or to resume where there is none.

    Args:
        run_dir: the run's folder, which need not exist.
        resume: whether a run is resumed.

    Raises:
        CheckpointError: nothing to resume, or a run that would be overwritten.
    """
    if resume and not has_last(run_dir):
        raise CheckpointError(
            f"nothing to resume in {run_dir}: it has no {LAST}; leave out --resume"
        )
    if not resume and has_last(run_dir):
        raise CheckpointError(
            f"{run_dir} holds a run already; continue it with --resume, "
            "or name another folder with --out"
        )


def begin_folder(run_dir: Path, record: RunRecord) -> None:
    """Make a run's folder and write its record.

    Args:
        run_dir: may exist.
        record: replaces the one that is there.

    Raises:
        TrainError: the folder cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        clear_leftovers(run_dir)
        write_record(run_dir, record)
    except OSError as error:
        raise TrainError(
            f"cannot write the run's folder {run_dir}: {error.strerror}; name another "
            "one with --out"
        ) from error


def check_same_run(begun: RunRecord, wanted: RunRecord, run_dir: Path) -> None:
    """Refuse to resume with other settings, another store or other slices.

    Args:
        begun: the folder's record.
        wanted: the record that a new run would get.
        run_dir: the run's folder, for the message.

    Raises:
        RecipeError: they differ; names the first difference.
    """
    # The cache does not change what is trained.
    data = replace(begun.recipe.data, cache=wanted.recipe.data.cache)
    begun = replace(begun, recipe=replace(begun.recipe, data=data))
    if begun.recipe != wanted.recipe:
        other = "another recipe" + _first_difference(begun.recipe, wanted.recipe)
    elif begun.store_plan != wanted.store_plan:
        other = f"another store than {wanted.store}"
    elif begun.counts != wanted.counts:
        other = f"other slices ({begun.counts}, now {wanted.counts})"
    else:
        return
    raise RecipeError(
        f"{run_dir} was begun with {other}; resume it with the same options, or start "
        "anew with --out"
    )


def _first_difference(begun: Recipe, wanted: Recipe) -> str:
    """The first line of `describe` that differs, in brackets; empty if none does."""
    was, now = describe(begun).splitlines(), describe(wanted).splitlines()
    return next(
        (f" ({a}, now {b})" for a, b in zip(was, now, strict=False) if a != b), ""
    )


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
