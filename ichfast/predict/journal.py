"""The journal of an output that is not finished: one file for each part that is done.

That of ``p.parquet`` is the folder ``.p.parquet.work`` next to it:

    plan.json         what decides the values, and the tasks; with a checksum
    0-3-00017.part    part 17 of pass 3 of task 0: its rows, then the CRC-32C of the
                      file's name and the rows, 4 bytes, little-endian
    .lock             the process that works there (`ichfast.system.locks`)

1. A task has a row for each slice that a network sees, in each pass. A part is some
   whole batches of one pass. Batches do not depend on the number of ranks, nor on what
   was done before, so neither do the rows.
2. A part is written atomically. So one with a file is done, and another one has left
   nothing that counts.
3. A part that was damaged on the disk is removed when the same command continues, and
   is computed again.
4. Rank 0 begins and removes a journal. All ranks write parts, so all must see its
   folder; ranks on other machines need a shared file system.
5. A journal that was begun with another plan is refused, unless no part of it is done.

Shape letters: R rows, D features, K classes.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

from ichfast.errors import IchfastError, PredictionError
from ichfast.labels import CLASSES
from ichfast.recipes.settings import from_dict
from ichfast.system.checksums import check_document, with_checksum
from ichfast.system.files import (
    atomic_path,
    final_name,
    make_folder,
    write_text_atomically,
)
from ichfast.system.locks import LOCK_FILE, LockHeldError, locked_folder
from ichfast.system.ranks import Ranks

logger = logging.getLogger(__name__)

PLAN = "plan.json"

MAX_PART_SLICES = 2048
"""Upper limit of the rows of a part, unless a batch is larger."""

MIN_PARTS = 64
"""Parts of a pass, if it has as many batches: work for many ranks."""

VISIBLE_S = 90.0
"""How long a rank waits for the folder that rank 0 has made, seconds. NFS shows a new
folder after 60."""

STALLED_S = 1800.0
"""How long rank 0 waits for a part of another rank, seconds."""

POLL_S = 0.5
"""Time between two looks at the folder, seconds."""

MAX_FEATURES = 65_536
"""Upper limit of the pooled features of a network."""

Rows = npt.NDArray[np.void]
"""Structured, shape (R,): ``logits`` (K,) float32 and ``features`` (D,) float16."""

NOTHING: tuple[Sequence[Task], Collection[Part]] = ((), ())
"""What ranks tell that do not write: no tasks and no parts."""

_CRC32C_BYTES = 4
_NAME = re.compile(r"\d+-\d+-\d+\.part")


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """The rows that one network computes."""

    num_slices: int
    """Rows in each pass."""

    num_passes: int
    batch_size: int
    num_features: int
    """D; 0 for logits alone."""

    def __post_init__(self) -> None:
        if min(self.num_slices, self.num_passes, self.batch_size) < 1:
            raise ValueError("a task has slices, passes and batches")
        if not 0 <= self.num_features <= MAX_FEATURES:
            raise ValueError(f"a network has up to {MAX_FEATURES:,} features")

    @property
    def dtype(self) -> np.dtype[np.void]:
        """The type of a row."""
        features = ("features", "<f2", (self.num_features,))
        return np.dtype([("logits", "<f4", (len(CLASSES),)), features])

    @property
    def part_batches(self) -> int:
        """Batches of a part, but for the last one of a pass."""
        wanted = min(MAX_PART_SLICES, self.num_slices // MIN_PARTS)
        return max(1, wanted // self.batch_size)

    @property
    def part_slices(self) -> int:
        """Rows of a part, but for the last one of a pass."""
        return self.part_batches * self.batch_size

    def rows(self, number: int) -> range:
        """The rows of a part, by its number."""
        first = number * self.part_slices
        return range(first, min(first + self.part_slices, self.num_slices))


class Part(NamedTuple):
    """A part of a task; sorted, the passes of the same slices follow each other."""

    task: int
    number: int
    pass_number: int

    @property
    def file_name(self) -> str:
        """Name of its file."""
        return f"{self.task}-{self.pass_number}-{self.number:05d}.part"


def journal_folder(out: Path) -> Path:
    """The folder of the journal of an output: for ``a/p.csv``, ``a/.p.csv.work``."""
    named = out if out.name not in ("", "..") else out.resolve()
    return named.parent / f".{named.name}.work"


class Journal:
    """Parts on the disk.

    Args:
        folder: where they are.
        tasks: what they are parts of.
        found: parts that were done when it was opened.
    """

    def __init__(
        self, folder: Path, tasks: Sequence[Task], found: Collection[Part] = ()
    ) -> None:
        self.folder = folder
        self.tasks = tuple(tasks)
        self.parts = [
            Part(number, part, pass_number)
            for number, task in enumerate(self.tasks)
            for part in range(-(-task.num_slices // task.part_slices))
            for pass_number in range(task.num_passes)
        ]
        """All parts, sorted."""

        self._by_name = {part.file_name: part for part in self.parts}
        self.found = frozenset(found)
        """Parts that were done when it was opened; the same on every rank."""

    def rows(self, part: Part) -> range:
        """The rows of a part in its task."""
        return self.tasks[part.task].rows(part.number)

    def done(self) -> set[Part]:
        """The parts that have a file."""
        names = {path.name for path in self.folder.iterdir()}
        return {self._by_name[name] for name in self._by_name.keys() & names}

    def write(self, part: Part, rows_R: Rows) -> None:
        """Write a part, atomically.

        Args:
            part: its place.
            rows_R: of the task's type.

        Raises:
            PredictionError: the folder cannot be written.
        """
        body = rows_R.tobytes()
        try:
            with atomic_path(self.folder / part.file_name) as temporary:
                temporary.write_bytes(body + _checksum(part, body))
        except OSError as error:
            raise _cannot_write(self.folder, error) from error

    def read(
        self, task_number: int, pass_number: int, first: int = 0, end: int | None = None
    ) -> Rows:
        """Read rows of a task whose parts are done.

        Args:
            task_number: from 0.
            pass_number: from 0.
            first: the first row.
            end: the row after the last one; None: all to the end of the task.

        Returns:
            Shape (end - first,), not to be changed.

        Raises:
            PredictionError: a part was damaged since it was written.
        """
        task = self.tasks[task_number]
        end = task.num_slices if end is None else end
        pieces = []
        for number in range(first // task.part_slices, -(-end // task.part_slices)):
            part = Part(task_number, number, pass_number)
            rows_R = self._read_part(part)
            if rows_R is None:
                raise PredictionError(
                    f"{self.folder / part.file_name} was damaged since it was written; "
                    "check the disk, then the same command continues and computes it "
                    "again"
                )
            start = self.rows(part).start
            pieces.append(rows_R[max(first - start, 0) : end - start])
        return np.concatenate(pieces)

    def wait(self, watch: Callable[[], object]) -> None:
        """Wait until the other ranks have done their parts.

        Args:
            watch: called at every look at the folder.

        Raises:
            PredictionError: no part came for `STALLED_S`.
        """
        num_done, since = -1, time.monotonic()
        while (found := len(self.done())) < len(self.parts):
            if found > num_done:
                num_done, since = found, time.monotonic()
            if time.monotonic() - since > STALLED_S:
                raise PredictionError(
                    f"no part of another rank came to {self.folder} for "
                    f"{STALLED_S:.0f} s, {len(self.parts) - found:,} of "
                    f"{len(self.parts):,} are missing: a rank has ended or hangs; look "
                    "at its messages, then the same command goes on"
                )
            watch()
            time.sleep(POLL_S)

    def sound_parts(self) -> set[Part]:
        """The parts that are done, without damaged ones, whose files are removed."""
        sound = set()
        for part in self.done():
            if self._read_part(part) is not None:
                sound.add(part)
                continue
            path = self.folder / part.file_name
            logger.warning(
                "%s is computed again: it was damaged since it was written; check the "
                "disk",
                path,
            )
            path.unlink()
        return sound

    def _read_part(self, part: Part) -> Rows | None:
        """The rows of a part; None if its file is not as written."""
        content = (self.folder / part.file_name).read_bytes()
        body, checksum = content[:-_CRC32C_BYTES], content[-_CRC32C_BYTES:]
        dtype = self.tasks[part.task].dtype
        num_bytes = len(self.rows(part)) * dtype.itemsize
        if len(body) != num_bytes or checksum != _checksum(part, body):
            return None
        return np.frombuffer(body, dtype)


@contextmanager
def open_journal(
    folder: Path,
    settings: Mapping[str, Any],
    make_tasks: Callable[[], Sequence[Task]],
    ranks: Ranks,
) -> Iterator[Journal]:
    """Begin a journal or continue it; remove it when the block ends.

    After an error it stays, if a part is done.

    Args:
        folder: where it is; made on rank 0, with its parents.
        settings: what decides the values, as plain values for JSON.
        make_tasks: called on rank 0 if the journal is begun.
        ranks: the processes that share the work; each calls this.

    Raises:
        PredictionError: begun with other settings, not ours, another process works
            there, or a rank does not see the folder.
    """
    if not ranks.writes:
        journal = Journal(folder, *ranks.gather(NOTHING)[0])
        _wait_for_folder(folder, ranks)
        yield journal
        return
    with ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            make_folder(folder)
            stack.enter_context(locked_folder(folder))
        except LockHeldError as error:
            raise PredictionError(
                f"{error.holder} works in {folder}; wait until it ends, or name "
                "another output"
            ) from error
        except OSError as error:
            raise _cannot_write(folder, error) from error
        stack.push(partial(_remove_unless_worked_in, folder))
        tasks = _begin(folder, settings, make_tasks)
        found = Journal(folder, tasks).sound_parts()
        ranks.gather((tasks, found))
        yield Journal(folder, tasks, found)


def _remove_unless_worked_in(
    folder: Path, error_type: type[BaseException] | None, *_: object
) -> None:
    """Remove a journal that is not needed any more, or has no part."""
    if error_type is None or not _part_files(folder):
        remove_journal(folder)


def remove_journal(folder: Path) -> None:
    """Remove a journal, if it is there; files of others in its folder stay."""
    with suppress(OSError):
        _empty(folder)
        (folder / LOCK_FILE).unlink(missing_ok=True)
        folder.rmdir()


def _begin(
    folder: Path,
    settings: Mapping[str, Any],
    make_tasks: Callable[[], Sequence[Task]],
) -> Sequence[Task]:
    """The tasks of a journal, which is begun unless it was."""
    foreign = [path for path in folder.iterdir() if not _is_own(path)]
    if foreign:
        raise PredictionError(f"{foreign[0]} is not a file of ichfast; move it away")
    num_parts = len(_part_files(folder))
    begun = _read_plan(folder)
    if begun is not None:
        before, tasks = begun
        if before == settings:
            if num_parts:
                num_all = len(Journal(folder, tasks).parts)
                logger.info(
                    "going on in %s: %d of %d parts are done",
                    *(folder, num_parts, num_all),
                )
            return tasks
        if num_parts:
            differ = [name for name in settings if before.get(name) != settings[name]]
            raise PredictionError(
                f"{folder} has parts of another prediction, with other "
                f"{', '.join(differ)}; give the same options again, or remove the "
                "folder to begin anew"
            )
    elif num_parts:
        logger.warning("%s is begun anew: its plan was damaged", folder)
    _empty(folder)
    tasks = list(make_tasks())
    plan = {"settings": settings, "tasks": [asdict(task) for task in tasks]}
    try:
        write_text_atomically(folder / PLAN, with_checksum(plan))
    except OSError as error:
        raise _cannot_write(folder, error) from error
    return tasks


def _read_plan(folder: Path) -> tuple[dict[str, Any], list[Task]] | None:
    """Settings and tasks of a journal; None without a plan, or a damaged one."""
    try:
        content = (folder / PLAN).read_bytes()
        plan = json.loads(content)
        check_document(content, plan)
        return plan["settings"], [from_dict(Task, task) for task in plan["tasks"]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, IchfastError):
        return None


def _wait_for_folder(folder: Path, ranks: Ranks) -> None:
    deadline = time.monotonic() + VISIBLE_S
    while not (folder / PLAN).exists():
        if time.monotonic() > deadline:
            raise PredictionError(
                f"rank {ranks.rank} does not see {folder}, which rank 0 has made; name "
                "an output in a folder that all machines share"
            )
        time.sleep(POLL_S)


def _part_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]


def _is_own(path: Path) -> bool:
    name = final_name(path.name)
    return name in (PLAN, LOCK_FILE) or _NAME.fullmatch(name) is not None


def _empty(folder: Path) -> None:
    """Remove all files but the lock; the plan last, without which parts are lost."""
    paths = [path for path in folder.iterdir() if _is_own(path)]
    for path in sorted(paths, key=lambda path: path.name == PLAN):
        if path.name == LOCK_FILE:
            continue
        path.unlink(missing_ok=True)


def _checksum(part: Part, body: bytes) -> bytes:
    crc32c = google_crc32c.value(part.file_name.encode())
    return int(google_crc32c.extend(crc32c, body)).to_bytes(_CRC32C_BYTES, "little")


def _cannot_write(folder: Path, error: OSError) -> PredictionError:
    return PredictionError(
        f"cannot write {folder}: {error.strerror}; make room, then the same command "
        "goes on"
    )
