"""Sources of DICOM files to a slice store, in parallel and in one pass.

The sorted listing is cut into units of 1,024 consecutive entries
(`ichfast.prepare.plan`). A worker decodes a unit, writes its shards, and then its page
of the journal (`ichfast.prepare.workers`, `ichfast.prepare.convert`,
`ichfast.prepare.journal`). When every unit has its page, the pages are merged
(`ichfast.prepare.merge`).

1. Whatever kills a run, the same command again ends in the same bytes as a run
   that nothing disturbed. Units with a page are not decoded again.
2. Order, bytes and table do not depend on the number of workers.
3. `store.json` is written last. On a finished store the same command does nothing.
4. Each entry of the listing becomes slices, or one row of `rejected.csv`; a file of
   many frames both, if some of them conflict with slices of others. That includes files
   that plainly are no images, such as a csv beside the DICOM: they are rejected as
   ``not-dicom`` and count towards `max_rejected`.
5. A file that ends its worker or hangs costs itself and nothing else.
6. The same slice twice is kept once.
7. Without `keep_ids`, ids are keyed hashes before they reach the disk
   (`ichfast.prepare.pseudonyms`), and `rejected.csv` numbers the entries instead of
   naming them.
8. Appending reads what the store has not taken in yet (`ichfast.prepare.ingested`) into
   units behind the last one. Shards that are there keep their bytes, and until the
   appending ends, whatever kills it, the store is as it was.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ichfast.dicom.slices import read_slices
from ichfast.errors import SourceError, StoreError
from ichfast.labels import LabelTable
from ichfast.prepare.append import (
    adds_labels,
    check_finished,
    check_unfinished,
    give_up,
    grown_intake,
    new_entries,
    new_units,
)
from ichfast.prepare.convert import Job
from ichfast.prepare.journal import Journal
from ichfast.prepare.lock import only_writer
from ichfast.prepare.merge import Merged, finish, merge, read_base
from ichfast.prepare.plan import Unit, entry_name, label_plan, shard_plan
from ichfast.prepare.pseudonyms import default_key_path, read_or_make_key
from ichfast.prepare.report import PrepareReport, format_report, summarize
from ichfast.prepare.workers import convert_units
from ichfast.sources.remote import check_reachable
from ichfast.sources.sources import list_entries
from ichfast.store.header import read_header
from ichfast.store.levels import LEVELS, check_levels
from ichfast.store.tables import write_rejected
from ichfast.system.signals import sigterm_interrupts

log = logging.getLogger(__name__)

UNIT_ENTRIES = 1024
"""Entries of the listing in a unit of work."""

MOST_A_CORE = 16
"""Workers for each core, at most: each takes 150 MiB, and they wait for each other."""

DECODE_TIMEOUT_S = 60.0
"""A slice that takes longer to decode hangs."""


def prepare_store(  # noqa: PLR0913  the options of the command
    sources: Sequence[Path | str],
    store: Path,
    *,
    labels: LabelTable | None,
    levels: tuple[int, ...] = LEVELS,
    workers: int,
    keep_ids: bool,
    id_key: Path | None = None,
    max_rejected: str = "5%",
    limit: int | None = None,
    append: bool = False,
    scheduler: str | None = None,
) -> PrepareReport:
    """Make a store of every CT slice in `sources`, or continue making it.

    Args:
        sources: folders, files, archives and URLs, as `ichfast.sources` takes them.
        store: the store's folder; its parents are made. May lie in a source.
        labels: joined by slice id; slices without a label get nulls. When appending,
            they go to all slices that have none yet, and must not contradict others.
        levels: `LEVELS`, or (512,) to save a fifth of the disk.
        workers: decoding processes, at most `MOST_A_CORE` for each core.
        keep_ids: keep patient, study, series and slice ids as they are.
        id_key: file of the key that ids are hashed with, made if missing; outside
            the store. Without one, a file beside the store.
        max_rejected: how many files of the listing may be rejected, as a number
            (``12``) or a share (``5%``). Not part of what a store is made from:
            a refused run continues with a higher one. When appending, of those that
            are new; a rejected file is not tried again.
        limit: take only the first entries of the listing.
        scheduler: address of a Dask scheduler, whose workers decode instead.
        append: add to a finished store what is new in `sources`, which may hold what
            is in it already or not. Without a finished store, no different.

    Raises:
        SourceError: a source is missing or out of the workers' reach, nothing in it
            is a CT slice, or more files were rejected than `max_rejected` allows.
        StoreError: no or too many workers, the folder is in use, holds something
            else, was begun from other sources or options, the key is missing or not
            private, the store cannot be written, or the run was interrupted. The last
            two continue with the same command.
        LabelError: appended labels contradict those of the store.
    """
    started_s = time.monotonic()
    _check_options(levels, workers, max_rejected)
    key_path = _key_path(store, id_key, keep_ids=keep_ids)
    check_reachable(sources)
    entries = list_entries(sources, without=(store, key_path))[:limit]
    journal = Journal(store, levels)
    units: list[Unit] = []
    with only_writer(store), sigterm_interrupts(), _resumable(journal, units):
        was_finished = (store / "store.json").exists()
        is_finished = journal.publish() or was_finished
        key, num_files = None, 0
        if not keep_ids:
            key = read_or_make_key(key_path, is_begun=is_finished or journal.is_begun)
        plan = shard_plan(entries, UNIT_ENTRIES, levels, key)
        labels_plan = label_plan(labels, key)
        base = None
        if is_finished:
            check_finished(journal, plan, labels_plan, append=append)
        else:
            check_unfinished(store)
        if is_finished and append:
            base = read_base(journal)
            plan["base"] = str(base.header.entries_crc32c)
        if append or not is_finished:
            entries = new_entries(entries, base, key)
            units += new_units(entries, base, UNIT_ENTRIES)
        # Asked first: labels that contradict the store's end the run here.
        if adds_labels(base, labels, key, labels_plan) or units:
            was_finished = False
            journal.begin(plan, may_restart=base is not None)
            name = partial(
                entry_name,
                keep_ids=keep_ids,
                first_unit=base.intake.num_units if base else 0,
            )
            job = Job(journal, key, read_slices, DECODE_TIMEOUT_S, name)
            num_files = convert_units(job, units, workers, scheduler)
            merged = merge(journal, units, base, name)
            _check_rejected(journal, merged, max_rejected)
            finish(
                journal,
                merged,
                labels,
                key,
                plan | labels_plan,
                grown_intake(entries, units, base, key),
            )
        else:
            give_up(journal)
    report = summarize(
        store,
        read_header(store),
        num_files=num_files,
        seconds=time.monotonic() - started_s,
        already_finished=was_finished,
    )
    log.info("%s", format_report(report))
    return report


def _check_options(levels: tuple[int, ...], workers: int, max_rejected: str) -> None:
    most_workers = MOST_A_CORE * len(os.sched_getaffinity(0))
    if not 1 <= workers <= most_workers:
        raise StoreError(
            f"--workers is from 1 to {most_workers} here, {MOST_A_CORE} for each core, "
            f"got {workers}; one a core is the default"
        )
    try:
        check_levels(levels)
        _num_allowed(max_rejected, 0)
    except ValueError as error:
        raise StoreError(f"cannot prepare a store: {error}") from error


def _key_path(store: Path, id_key: Path | None, *, keep_ids: bool) -> Path:
    if id_key is None:
        return default_key_path(store)
    if keep_ids:
        raise StoreError(f"--keep-ids hashes nothing, leave out --id-key {id_key}")
    if store.resolve() in id_key.resolve().parents:
        raise StoreError(
            f"the key {id_key} must not lie in the store {store}, for who gets the "
            "store gets the key; name a file elsewhere as --id-key"
        )
    return id_key


def _num_allowed(max_rejected: str, num_entries: int) -> float:
    share = max_rejected.endswith("%")
    try:
        value = float(max_rejected[:-1]) if share else int(max_rejected)
    except ValueError:
        value = -1
    if not 0 <= value <= (100 if share else math.inf):
        raise ValueError(
            f"max_rejected is a number of files such as 12 or a share such as 5%, "
            f"got {max_rejected!r}"
        )
    return value * num_entries / 100 if share else value


@contextmanager
def _resumable(journal: Journal, units: Sequence[Unit]) -> Iterator[None]:
    """When the run is cut short, say how far it came and how it goes on."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise StoreError(
            f"stopped with {_how_far(journal, units)}; the same command continues"
        ) from error
    except OSError as error:
        raise StoreError(
            f"cannot write {journal.store} ({error.strerror}) with "
            f"{_how_far(journal, units)}; make room or mend the disk, then the same "
            "command continues"
        ) from error


def _how_far(journal: Journal, units: Sequence[Unit]) -> str:
    num_done = sum(len(unit.entries) for unit in journal.done(units))
    return f"{num_done:,} of {sum(len(u.entries) for u in units):,} files done"


def _check_rejected(journal: Journal, merged: Merged, max_rejected: str) -> None:
    store = journal.store
    counts = Counter(merged.rejected["reason"])
    shown = ", ".join(f"{count} {code}" for code, count in sorted(counts.items()))
    if not len(merged.rows):
        shutil.rmtree(store)
        raise SourceError(
            f"none of {merged.num_entries} files is a CT slice ({shown}); name a "
            "folder or an archive of head CT DICOM files"
        )
    folder = store if merged.base is None else journal.path
    write_rejected(folder, merged.rejected)
    if counts.total() > _num_allowed(max_rejected, merged.num_entries):
        raise SourceError(
            f"{counts.total()} of {merged.num_entries} files were rejected ({shown}), "
            f"--max-rejected allows {max_rejected}; see {folder}/rejected.csv, then "
            "repeat the command with a higher --max-rejected: nothing is decoded again"
        )
