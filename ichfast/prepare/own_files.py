"""The files that prepare makes in a store's folder.

A file is taken for one of them by its place and name (`foreign_path`), in a folder that
prepare began itself (`is_begun_here`). Nothing else is removed, ever.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from ichfast.store.header import ENTRIES_FILE, read_header
from ichfast.store.levels import LEVELS, level_folder
from ichfast.system.files import final_name
from ichfast.system.locks import LOCK_FILE, MARK

_TABLES = r"slices\.parquet|rejected\.csv|store\.json"

_INTAKE = re.escape(ENTRIES_FILE)

_NAMES = {
    "": rf"{re.escape(LOCK_FILE)}|{_TABLES}",
    "journal": rf"plan\.json|rejected\.csv|\d{{5,}}\.page|{_INTAKE}",
    "journal/next": rf"{_TABLES}|{_INTAKE}",
    **{level_folder(level): r"\d{5,}(-\d+x\d+)?\.(npy|icp)" for level in LEVELS},
}
"""The names of files by folder. Each may also have its temporary name."""

REPAIR = "journal/repair"
"""A folder with the files of a store, while it is repaired."""


def foreign_path(store: Path) -> Path | None:
    """The first file, folder or link in a folder that no store has; None without."""
    return next((Path(e.path) for e in _walk(store) if not _is_own(e, store)), None)


def is_begun_here(store: Path) -> bool:
    """Whether a folder without foreign files is prepare's.

    It is if it is empty, if its lock has our mark, which is written before all other
    files, or if it is a finished store.

    Raises:
        StoreError: its `store.json` is none.
    """
    lock = store / LOCK_FILE
    mark = lock.read_text("utf-8", "replace") if lock.exists() else ""
    if mark.startswith(MARK):
        return True
    if (store / "store.json").exists():
        read_header(store)
        return True
    return not mark and {path.name for path in store.iterdir()} <= {LOCK_FILE}


def remove_own(store: Path, under: Path, *, keep: Collection[Path] = ()) -> None:
    """Remove what prepare made below a folder, and folders that are empty then.

    Args:
        store: the store's folder.
        under: in the store. It stays itself. Nothing is done if it does not exist.
        keep: files that stay.
    """
    for entry in _walk(under):
        path = Path(entry.path)
        if not _is_own(entry, store) or path in keep:
            continue
        # A worker may outlive its killed parent briefly and rename its file.
        with suppress(FileNotFoundError):
            if not entry.is_dir():
                path.unlink()
            elif not any(path.iterdir()):
                path.rmdir()


def remove_temporaries(store: Path) -> None:
    """Remove the half-written files that a killed run has left."""
    for entry in _walk(store):
        if final_name(entry.name) != entry.name and _is_own(entry, store):
            Path(entry.path).unlink(missing_ok=True)


def _walk(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """Everything below a folder; what is in a folder before the folder."""
    with suppress(FileNotFoundError):
        for entry in list(os.scandir(folder)):
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)
            yield entry


def _is_own(entry: os.DirEntry[str], store: Path) -> bool:
    place = Path(entry.path).relative_to(store).as_posix()
    if place.startswith(f"{REPAIR}/"):
        place = place.removeprefix(f"{REPAIR}/")
    if entry.is_dir(follow_symlinks=False):
        return place in _NAMES or place == REPAIR
    folder, _, name = place.rpartition("/")
    return (
        entry.is_file(follow_symlinks=False)
        and folder in _NAMES
        and re.fullmatch(_NAMES[folder], final_name(name)) is not None
    )
