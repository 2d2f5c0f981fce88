"""The lock of a store's folder: one writer at a time, and only in a folder of a store.

The kernel holds the lock, on ``STORE/.lock`` (`ichfast.system.locks`). The file is
marked before any other file is made, so that a folder which prepare began is told from
one with other files of the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ichfast.errors import StoreError
from ichfast.prepare.own_files import foreign_path, is_begun_here, remove_own
from ichfast.system.files import make_folder
from ichfast.system.locks import LOCK_FILE, LockHeldError, locked_folder


@contextmanager
def only_writer(store: Path) -> Iterator[Callable[[], None]]:
    """Make a store's folder and its parents, and lock it while the block runs.

    Folders that were made survive a loss of power.

    Yields:
        A function that removes all that prepare made in the folder, and the folder if
        this call made it.

    Raises:
        StoreError: the folder has links or files that no store has, was not begun by
            prepare, cannot be made, or is being written by another process.
    """
    existed = store.exists()
    lock = store / LOCK_FILE
    with ExitStack() as stack:
        try:
            if existed:
                _check_ours(store)
            keep = [lock] if lock.exists() and not lock.stat().st_size else []
            for folder in (*reversed(store.parents), store):
                make_folder(folder)
            stack.enter_context(locked_folder(store))
        except LockHeldError as error:
            raise StoreError(
                f"another ichfast command is writing {store} ({error.holder}); wait "
                "for it to end"
            ) from error
        except OSError as error:
            raise StoreError(f"cannot write {store}: {error.strerror}") from error

        def discard() -> None:
            # The lock last, for it proves that the rest is ours.
            remove_own(store, store, keep=[lock])
            if lock not in keep:
                lock.unlink(missing_ok=True)
            if not existed:
                with suppress(OSError):
                    store.rmdir()

        yield discard


def _check_ours(store: Path) -> None:
    foreign = foreign_path(store) if store.is_dir() else store
    if foreign is not None and foreign != store and foreign.is_symlink():
        raise StoreError(
            f"{foreign} is a link, and what it leads to would be changed; "
            "put the file or folder itself there, or mount the disk on it"
        )
    if foreign is not None:
        shown = foreign.name if foreign == store else foreign.relative_to(store)
        raise StoreError(
            f"{store} holds files that no store has, such as {shown}; name a new folder"
        )
    if not is_begun_here(store):
        raise StoreError(
            f"{store} was not begun by ichfast, although its files have the names of a "
            "store's; name a new folder, or delete this one"
        )
