"""The record of a run, `run.json`: what was trained, on what, where."""

from __future__ import annotations

import errno
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ichfast.errors import CheckpointError, RecipeError
from ichfast.recipes.recipe import Recipe
from ichfast.recipes.settings import from_dict, to_dict
from ichfast.system.files import write_text_atomically
from ichfast.windows import Normalization

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
