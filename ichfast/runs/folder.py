"""A run's folder: its name, and whether a run fits it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ichfast.errors import CheckpointError, RecipeError, TrainError
from ichfast.recipes.recipe import Recipe
from ichfast.recipes.resolve import RECIPES
from ichfast.recipes.settings import describe
from ichfast.runs.record import RunRecord, write_record
from ichfast.training.checkpoint import LAST, clear_leftovers, has_last


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
