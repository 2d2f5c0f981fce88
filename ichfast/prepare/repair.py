"""Rebuilding damaged shards from the sources of their store.

1. A shard is only replaced by one with the checksum in `store.json`. So a repaired
   store has the bytes that it was written with.
2. All entries of a damaged shard's unit are converted again, as prepare does, in a
   folder inside the store's journal that is removed afterwards.
3. Tables and `store.json` are not rebuilt; that needs a new store.
4. A repair that is cut short, also by kill -9, leaves each file as it was or repaired.
   The same command continues, and removes what was left.

Shape letters: E entries.
"""

from __future__ import annotations

import shutil
import time
from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ichfast.errors import StoreError
from ichfast.prepare.convert import Job, read_file
from ichfast.prepare.ingested import Intake, name_digests, place_digests, read_intake
from ichfast.prepare.journal import Journal
from ichfast.prepare.lock import only_writer
from ichfast.prepare.own_files import REPAIR, remove_own, remove_temporaries
from ichfast.prepare.plan import (
    Unit,
    accepted_codes,
    check_plan,
    entry_name,
    ids_plan,
    planned_selection,
)
from ichfast.prepare.prepare import DECODE_TIMEOUT_S
from ichfast.prepare.pseudonyms import default_key_path, read_or_make_key
from ichfast.prepare.workers import convert_units
from ichfast.sources.listing import Listing
from ichfast.sources.remote import check_reachable
from ichfast.sources.sources import list_entries
from ichfast.store.header import StoreHeader, intake_path, read_header
from ichfast.store.shards import Shard, shard_path
from ichfast.store.verify import find_damage, shard_damage
from ichfast.system.files import atomic_path
from ichfast.system.signals import signals_interrupt

NUM_SHOWN = 3
"""Number of problems named in an error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairReport:
    """The result of `repair_store`."""

    store: str
    """The store's folder."""
    repaired: tuple[str, ...]
    """Repaired files, relative to the store."""
    bytes: int
    """Total size of the repaired files."""
    seconds: float
    """Duration of the repair."""


def repair_store(
    path: Path,
    sources: Sequence[Path | str],
    *,
    workers: int = 1,
    id_key: Path | None = None,
) -> RepairReport:
    """Rebuild the damaged shards of a store.

    Args:
        path: the store's folder.
        sources: the sources of the store, as for prepare. They may have been moved.
        workers: number of decoding processes.
        id_key: file with the key of the hashed ids, unless it is beside the store.

    Raises:
        StoreError: the key is missing or another one; or, after all possible repairs,
            a table is damaged, or a shard whose files are not in `sources` or give
            other bytes. Or the store cannot be written, or the repair was interrupted;
            then the same command continues.
        SourceError: a source cannot be read.
    """
    started_s = time.monotonic()
    check_reachable(sources)
    header = read_header(path)
    scratch = path / REPAIR
    repaired: list[Path] = []
    with only_writer(path), signals_interrupt(), _repeatable(path, repaired):
        remove_temporaries(path)
        _remove(path, scratch)
        try:
            problems = _repair(path, header, sources, id_key, workers, repaired)
        finally:
            _remove(path, scratch)
    if problems:
        raise _not_repaired(path, len(repaired), problems)
    return RepairReport(
        store=str(path),
        repaired=tuple(str(file.relative_to(path)) for file in repaired),
        bytes=sum(file.stat().st_size for file in repaired),
        seconds=time.monotonic() - started_s,
    )


def _repair(
    path: Path,
    header: StoreHeader,
    sources: Sequence[Path | str],
    id_key: Path | None,
    workers: int,
    repaired: list[Path],
) -> list[str]:
    """Add the files that are repaired to `repaired`; return the problems that stay."""
    found = find_damage(path)
    problems = [f"{d.problem}, not to be rebuilt" for d in found if not d.shard]
    damaged = sorted({(d.shard, d.level) for d in found if d.shard})
    if not damaged:
        return problems
    scratch = path / REPAIR
    shard_of = {shard.name: shard for shard in header.shards}
    key = _key(path, header, id_key)
    intake = read_intake(intake_path(path), header.entries_crc32c)
    numbers = {shard_of[name].unit for name, _ in damaged}
    units, lost = _units(intake, list_entries(sources), key, numbers)
    problems += lost
    read = partial(read_file, accept=accepted_codes(header.plan))
    journal = Journal(scratch, header.levels, header.is_packed)
    # Names are for rejected.csv, which a repair does not write.
    name_of = partial(entry_name, keep_ids=False, first_unit=0)
    select = planned_selection(header.plan)
    job = Job(journal, key, read, DECODE_TIMEOUT_S, name_of, select)
    _convert(job, units, workers)
    for name, level in damaged:
        if _put_back(path, scratch, shard_of[name], level):
            repaired.append(shard_path(path, name, level))
        elif shard_of[name].unit in {unit.number for unit in units}:
            problems.append(
                f"{shard_path(path, name, level)}: the sources give other bytes than "
                "it was written with"
            )
    return problems


@contextmanager
def _repeatable(path: Path, repaired: Sequence[Path]) -> Iterator[None]:
    """Turn an interruption or a write error into a StoreError with the progress."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise StoreError(
            f"stopped with {len(repaired)} file(s) of {path} repaired; the same "
            "command continues"
        ) from error
    except OSError as error:
        raise StoreError(
            f"cannot write {path} ({error.strerror}) with {len(repaired)} file(s) "
            "repaired; make room or mend the disk, then the same command continues"
        ) from error


def _not_repaired(path: Path, num_repaired: int, problems: list[str]) -> StoreError:
    shown = "; ".join(problems[:NUM_SHOWN])
    return StoreError(
        f"{path}: {num_repaired} file(s) repaired, {len(problems)} problem(s) stay: "
        f"{shown}. Give the sources that the store was made from, or delete it and run "
        "`ichfast prepare` again"
    )


def _key(path: Path, header: StoreHeader, id_key: Path | None) -> bytes | None:
    """The key of the store's hashed ids; None where ids are kept."""
    if header.keep_ids:
        return None
    key = read_or_make_key(id_key or default_key_path(path), is_begun=True)
    check_plan(path, header.plan, {"ids": ids_plan(key)})
    return key


def _units(
    intake: Intake, entries: Listing, key: bytes | None, numbers: Collection[int]
) -> tuple[list[Unit], list[str]]:
    """The units with these numbers, and a line for each one with missing files."""
    units, lost = [], []
    for number, found in _find(intake, entries, key, numbers).items():
        present = [index for index in found if index is not None]
        if len(present) == len(found):
            units.append(Unit(number, 0, entries.take(present)))
        else:
            lost.append(
                f"unit {number}: {len(found) - len(present)} of its {len(found)} "
                "files are not in the sources"
            )
    return units, lost


def _find(
    intake: Intake, entries: Listing, key: bytes | None, numbers: Collection[int]
) -> dict[int, list[int | None]]:
    """The indices in `entries` of the entries of units; None for a missing one."""
    at_place = {p: e for e, p in enumerate(place_digests(entries, key).tolist())}
    by_name: defaultdict[int, deque[int]] = defaultdict(deque)
    for index, name in enumerate(name_digests(entries, key).tolist()):
        by_name[name].append(index)
    found: dict[int, list[int | None]] = {number: [] for number in sorted(numbers)}
    for number, name, place in zip(
        intake.unit_E.tolist(),
        intake.name_E.tolist(),
        intake.place_E.tolist(),
        strict=True,
    ):
        # Files with one name are matched in the order of the intake and the listing.
        moved = by_name[name].popleft() if by_name[name] else None
        if number in found:
            found[number].append(at_place.get(place, moved))
    return found


def _convert(job: Job, units: Sequence[Unit], workers: int) -> None:
    """Write the shards of units as a run of prepare does."""
    job.journal.store.mkdir(parents=True)
    job.journal.begin({}, may_restart=False)
    convert_units(job, units, workers)


def _remove(path: Path, scratch: Path) -> None:
    remove_own(path, scratch)
    with suppress(OSError):
        scratch.rmdir()


def _put_back(path: Path, scratch: Path, shard: Shard, level: int) -> bool:
    """Replace a damaged file by the one in `scratch`, if that is not damaged."""
    if shard_damage(scratch, shard, level, None):
        return False
    with atomic_path(shard_path(path, shard.name, level)) as temporary:
        shutil.copyfile(shard_path(scratch, shard.name, level), temporary)
    return True
