"""A run's folder: its name, and what may begin or go on in it.

The record of a run, `run.json`: what was trained, on what, where.
"""

from __future__ import annotations

import errno
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ichfast.errors import CheckpointError, RecipeError, TrainError
from ichfast.recipes.recipe import Recipe
from ichfast.recipes.resolve import RECIPES
from ichfast.recipes.settings import describe, from_dict, to_dict
from ichfast.system.files import write_text_atomically
from ichfast.training.checkpoint import LAST, clear_leftovers, has_last
from ichfast.windows import Normalization


def default_run_dir(recipe: Recipe, *, all_folds: bool = False) -> Path:
    """Where a run goes unless told otherwise: runs/RECIPE, and what is not its own.

    Args:
        recipe: what is trained.
        all_folds: the folder is to hold a run of each fold.
    """
    own = RECIPES[recipe.name]()
    size, arch = recipe.data.size, recipe.model.arch
    name = recipe.name
    if (arch, size) != (own.model.arch, own.data.size) or recipe.name == "fast":
        name += f"-{arch}-{size}"
    if all_folds:
        name += "-folds"
    elif recipe.folds.fold:
        name += f"-fold{recipe.folds.fold}"
    return Path("runs") / name


def check_run_dir(run_dir: Path, *, resume: bool) -> None:
    """Refuse to begin where a run is already, or to go on where none is.

    Args:
        run_dir: the run's folder, which need not exist.
        resume: whether a run is to go on.

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
    """Make a run's folder, if it is not there, and write its record.

    Raises:
        TrainError: it cannot be written.
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
    """Refuse to go on with other settings, another store or other slices.

    Args:
        begun: what the folder says.
        wanted: what was asked for now.
        run_dir: the run's folder, for the message.

    Raises:
        RecipeError: they differ; names the first difference.
    """
    # Where slices are kept is no part of what is trained.
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
    """The first setting whose line differs, as `describe` gives lines."""
    was, now = describe(begun).splitlines(), describe(wanted).splitlines()
    return next(
        (f" ({a}, now {b})" for a, b in zip(was, now, strict=False) if a != b), ""
    )


RECORD = "run.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """What `run.json` says."""

    recipe: Recipe
    normalization: Normalization
    store: str
    """The store's folder, as it was given."""

    store_plan: dict[str, str]
    """What the store was made from, as digests: to know it again."""

    counts: dict[str, int]
    """Slices and patients that trained and validated."""

    environment: dict[str, Any]


def write_record(run_dir: Path, record: RunRecord) -> None:
    """Write a run's `run.json`, atomically."""
    text = json.dumps({**asdict(record), "recipe": to_dict(record.recipe)}, indent=2)
    write_text_atomically(run_dir / RECORD, text + "\n")


def read_record(run_dir: Path) -> RunRecord:
    """Read a run's `run.json`.

    Raises:
        CheckpointError: no run there.
        RecipeError: it was damaged or written by another version.
    """
    path = run_dir / RECORD
    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "not a regular file")
        found = json.loads(path.read_text("utf-8"))
        # What is shown later must be text, and not nested beyond measure.
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
