"""The lock of a store's folder: one writer at a time, and only files of a store.

The kernel holds the lock, on ``STORE/.lock``, and releases it when the process ends. On
NFS the lock is on the server and holds between machines, unless the share is mounted
with ``nolock`` or ``local_lock``. With these, only one machine may write at a time.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ichfast.errors import StoreError
from ichfast.store.levels import LEVELS, level_folder
from ichfast.system.files import make_folder

_OUR_NAMES = frozenset(
    {".lock", "journal", "slices.parquet", "rejected.csv", "store.json"}
    | set(map(level_folder, LEVELS))
)


@contextmanager
def only_writer(store: Path) -> Iterator[None]:
    """Make a store's folder and its parents, and lock it while the block runs.

    Folders that were made survive a loss of power.

    Raises:
        StoreError: the folder has links or files that no store has, cannot be made, or
            is being written by another process.
    """
    if store.exists() and (
        not store.is_dir() or not _OUR_NAMES.issuperset(_names(store))
    ):
        raise StoreError(
            f"{store} holds files that no store has; name a new folder as --store"
        )
    for name in sorted(_OUR_NAMES):
        if (store / name).is_symlink():
            raise StoreError(
                f"{store / name} is a link, and what it leads to would be changed; "
                "put the file or folder itself there, or mount the disk on it"
            )
    try:
        for folder in (*reversed(store.parents), store):
            make_folder(folder)
        lock = (store / ".lock").open("w")
    except OSError as error:
        raise StoreError(f"cannot write {store}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(
                f"another `ichfast prepare` is writing {store}; wait for it to end"
            ) from error
        yield


def _names(store: Path) -> set[str]:
    return {path.name for path in store.iterdir() if path.suffix != ".tmp"}
