"""A run's folder: its name, and whether a run fits it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ichfast.errors import CheckpointError, RecipeError, TrainError
from ichfast.loading.id_files import IdFile, write_id_file
from ichfast.loading.splits import ID_FILES
from ichfast.recipes.recipe import Recipe
from ichfast.recipes.resolve import RECIPES, resolve_recipe
from ichfast.recipes.settings import describe
from ichfast.runs.record import (
    RECORD,
    RunRecord,
    first_change,
    trained_settings,
    write_record,
)
from ichfast.system.files import remove_leftovers
from ichfast.system.locks import LockHeldError, locked_folder
from ichfast.system.ranks import Ranks
from ichfast.training.checkpoint import BEST, LAST, NEWEST, has_last
from ichfast.training.history import METRICS
from ichfast.training.profiler import SUMMARY, TRACE

MAX_NAMED_SETTINGS = 2
"""Changed settings that a folder's name shows; it has a digest of more."""

NOT_IN_NAME = ("folds.fold", "data.cache", "data.cache_packed", "data.check")
"""Settings with a part of the name of their own, or without effect on the result."""


def default_run_dir(
    recipe: Recipe,
    *,
    device_type: str = "cuda",
    limit: int | None = None,
    all_folds: bool = False,
) -> Path:
    """The default folder: runs/RECIPE and what differs from the recipe.

    That is the arch and size, changed settings (``-train.seed=1``, or a digest of more
    than `MAX_NAMED_SETTINGS`), the limit, and the fold.

    Args:
        recipe: what is trained.
        device_type: ``cpu`` or ``cuda``, for which the recipe was resolved.
        limit: number of slices to train on; None: all.
        all_folds: the folder will hold a run of each fold.
    """
    named = RECIPES[recipe.name]()
    size, arch = recipe.data.size, recipe.model.arch
    name = recipe.name
    if (arch, size) != (named.model.arch, named.data.size) or name == "fast":
        name += f"-{arch.replace(':', '-')}-{size}"
    plain = resolve_recipe(recipe.name, arch=arch, size=size, device_type=device_type)
    name += _changes(plain, recipe)
    if limit is not None:
        name += f"-limit{limit}"
    if all_folds:
        name += "-folds"
    elif recipe.folds.fold:
        name += f"-fold{recipe.folds.fold}"
    return Path("runs") / name


def _changes(plain: Recipe, recipe: Recipe) -> str:
    """The end of a folder's name that tells a recipe from the plain one."""
    before = set(describe(plain).splitlines())
    changes = [
        line.replace(" = ", "=").replace('"', "")
        for line in describe(recipe).splitlines()
        if line not in before and line.partition(" = ")[0] not in NOT_IN_NAME
    ]
    if len(changes) <= MAX_NAMED_SETTINGS and all(
        re.fullmatch(r"[\w.=-]{1,40}", change) for change in changes
    ):
        return "".join(f"-{change}" for change in changes)
    return "-" + hashlib.sha256("\n".join(changes).encode()).hexdigest()[:8]


@contextmanager
def only_training(run_dir: Path, ranks: Ranks) -> Iterator[None]:
    """Make a run's folder, and lock it while the block runs, on the rank that writes.

    Args:
        run_dir: the run's folder, or that of the runs of all folds.
        ranks: the processes that train together.

    Raises:
        TrainError: another process trains in it, or the folder cannot be written.
    """
    if not ranks.writes:
        yield
        return
    with ExitStack() as stack:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked_folder(run_dir))
        except LockHeldError as error:
            raise TrainError(
                f"{error.holder} is training in {run_dir}; wait for it to end or stop "
                "it, or name another folder"
            ) from error
        except OSError as error:
            raise cannot_write(run_dir, error) from error
        yield


def check_resumable(run_dir: Path) -> None:
    """Refuse to resume a run where there is none.

    Raises:
        CheckpointError: nothing to resume.
    """
    if not has_last(run_dir):
        raise CheckpointError(
            f"nothing to resume in {run_dir}: it has no {LAST}; leave out --resume"
        )


def check_unused(run_dir: Path) -> None:
    """Refuse to start a run where there is one.

    Raises:
        CheckpointError: a run that would be overwritten.
    """
    if has_last(run_dir):
        raise CheckpointError(
            f"{run_dir} holds a run already; continue it with --resume, or name "
            "another folder"
        )
    if (run_dir / BEST).is_file():
        raise CheckpointError(
            f"{run_dir} holds {BEST} of a run whose {LAST} is gone; name another folder"
        )


def begin_folder(
    run_dir: Path, record: RunRecord, id_files: Mapping[str, IdFile]
) -> None:
    """Write the record of a run into its folder, and remove what a crash has left.

    Args:
        run_dir: exists, and is locked.
        record: replaces the one that is there.
        id_files: of which the folder gets copies, by setting.

    Raises:
        TrainError: the folder cannot be written.
    """
    try:
        names = (NEWEST, BEST, RECORD, METRICS, TRACE, SUMMARY, *ID_FILES.values())
        for name in names:
            remove_leftovers(run_dir / name)
        for setting, content in id_files.items():
            write_id_file(run_dir / ID_FILES[setting], content)
        write_record(run_dir, record)
    except OSError as error:
        raise cannot_write(run_dir, error) from error


def cannot_write(run_dir: Path, error: OSError) -> TrainError:
    """The error for a run's folder that cannot be written.

    Args:
        run_dir: the run's folder.
        error: what the system said.
    """
    return TrainError(
        f"cannot write the run's folder {run_dir}: {error.strerror}; name another one"
    )


def check_same_run(begun: RunRecord, wanted: RunRecord, run_dir: Path) -> None:
    """Refuse to resume with other settings, another store or other slices.

    Args:
        begun: the folder's record.
        wanted: the record that a new run would get.
        run_dir: the run's folder, for the message.

    Raises:
        RecipeError: they differ; names the first difference.
    """
    change = first_change(trained_settings(begun), trained_settings(wanted))
    if change is None:
        return
    if begun.store_digest != wanted.store_digest:
        what = f"another store than {wanted.store}"
    elif begun.id_files != wanted.id_files:
        what = "other ids or folds than folds.file and --only have now"
    else:
        what = f"other settings ({change[0]}, now {change[1]})"
    raise RecipeError(
        f"{run_dir} was begun with {what}; resume it with the same options, or start "
        "anew with --out"
    )
