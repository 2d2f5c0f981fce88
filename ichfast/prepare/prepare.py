"""Preparing a slice store from DICOM and NIfTI, in parallel and in one pass.

The sorted listing is cut into units of 1,024 consecutive entries
(`ichfast.prepare.plan`). A worker decodes a unit, writes its shards and then its page
of the journal (`ichfast.prepare.workers`, `ichfast.prepare.convert`,
`ichfast.prepare.journal`). When every unit has a page, the pages are merged
(`ichfast.prepare.merge`).

1. After a run was killed at any moment, the same command gives the same bytes as an
   undisturbed run. Units with a page are not decoded again.
2. Order, bytes and table do not depend on the number of workers.
3. `store.json` is written last. On a finished store the same command does nothing.
4. Each entry of the listing becomes slices or one row of `rejected.csv`. A file of many
   frames can become both, if some of its frames are no slices or conflict with other
   slices. Files that are neither DICOM nor NIfTI, such as a csv, are rejected as
   ``not-dicom`` and count towards `max_rejected`.
5. A file that hangs, or ends its worker, costs only itself. So does a file that cannot
   be read because the disk or server gives nothing for five minutes; ten such files in
   a row, or a folder that cannot be listed, end the run. The same command continues.
6. Of equal slices one is kept. Slices that `ichfast.prepare.selection` leaves out are
   not written; those of series that `ichfast.prepare.series_choice` does not choose
   get no row.
7. Without `keep_ids`, ids are hashed before they reach the disk
   (`ichfast.prepare.pseudonyms`), and `rejected.csv` has numbers of entries instead of
   names.
8. Appending converts entries that are not in the intake (`ichfast.prepare.ingested`) to
   new units. Existing shards keep their bytes, and until the append is complete the
   store is unchanged, also when it is killed.
9. Nothing is removed that prepare did not make (`ichfast.prepare.own_files`). A folder
   with other files, or with files of such names that it did not begin, is refused
   unchanged.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ichfast.dicom.slices import Slice
from ichfast.errors import (
    SOUND_CODES,
    SourceError,
    StoreError,
    check_kind_codes,
    unknown,
)
from ichfast.labels import LabelTable
from ichfast.prepare.append import (
    adds_labels,
    check_finished,
    check_unfinished,
    give_up,
    grown_intake,
    new_entries,
    new_units,
    warn_again,
)
from ichfast.prepare.convert import Job, read_file
from ichfast.prepare.journal import Journal
from ichfast.prepare.lock import only_writer
from ichfast.prepare.merge import Merged, finish, keep_series, merge, read_base
from ichfast.prepare.plan import Unit, entry_name, label_plan, shard_plan
from ichfast.prepare.pseudonyms import default_key_path, read_or_make_key
from ichfast.prepare.rejected import (
    format_rejected,
    rejected_path,
    write_rejected_beside,
)
from ichfast.prepare.report import PrepareReport, summarize
from ichfast.prepare.selection import Selection, parse_selection
from ichfast.prepare.series_choice import SERIES
from ichfast.prepare.workers import convert_units
from ichfast.sources.listing import Listing
from ichfast.sources.remote import check_reachable
from ichfast.sources.sources import list_entries
from ichfast.store.header import read_header
from ichfast.store.levels import LEVELS, check_levels
from ichfast.store.tables import write_rejected
from ichfast.system.signals import signals_interrupt

log = logging.getLogger(__name__)

UNIT_ENTRIES = 1024
"""Entries of the listing per unit of work."""

MAX_WORKERS_PER_CORE = 16
"""Upper limit of workers per core. Each takes 150 MiB, and more only wait."""

NUM_SHOWN = 5
"""Upper limit of kinds of slices that an error about a selection names."""

DECODE_TIMEOUT_S = 60.0
"""Upper limit of the time to decode one slice, seconds."""


def prepare_store(  # noqa: PLR0913, PLR0915  the options and steps of the command
    sources: Sequence[Path | str],
    store: Path,
    *,
    labels: LabelTable | None,
    levels: tuple[int, ...] = LEVELS,
    packed: bool = False,
    workers: int,
    keep_ids: bool,
    id_key: Path | None = None,
    max_rejected: str = "5%",
    limit: int | None = None,
    append: bool = False,
    relabel: bool = False,
    scheduler: str | None = None,
    accept: Collection[str] = (),
    select: str = "",
    series: str = SERIES[0],
    left_out: Sequence[Path] = (),
    name_files: bool | None = None,
    rejected_file: Path | None = None,
) -> PrepareReport:
    """Make a store of the axial CT slices in `sources`, or continue an interrupted run.

    Args:
        sources: folders, files, archives and URLs, as for `ichfast.sources`.
        store: the store's folder, which may be inside a source; its parents are made.
        labels: of slices, series, studies or patients; slices without a label get
            nulls. In an append they fill what is missing, and must not contradict
            existing labels.
        levels: `LEVELS`, or (512,) to save a fifth of the disk.
        packed: pack slices without loss to a quarter of the bytes
            (`ichfast.store.packed_shards`).
        workers: number of decoding processes, up to `MAX_WORKERS_PER_CORE` per core.
        keep_ids: keep patient, study, series and slice ids. Otherwise they are hashed.
        id_key: file of the key of hashed ids, outside the store; made if it does not
            exist. None takes a file beside the store.
        max_rejected: upper limit of rejected files, as a number (``12``) or a share of
            the listing (``5%``); in an append, of its new files. Those of `SOUND_CODES`
            do not count. A run that was refused continues with a higher limit. Rejected
            files are not tried again.
        limit: number of entries to take from the start of the listing; None takes all.
        append: add new entries of `sources` to a finished store. Without a finished
            store this changes nothing.
        relabel: in an append, replace labels of the store that differ from `labels`.
        scheduler: address of a Dask scheduler, whose workers decode instead.
        accept: reject codes in `KIND_CODES`, such as ``derived``, whose images are
            stored all the same, with the code in their quirks.
        select: which slices are stored, an expression of
            `ichfast.prepare.selection` such as ``kernel != bone``; empty: all. The
            others are rejected as ``not-selected``.
        series: ``one-per-study`` stores only the series of each study that
            `ichfast.prepare.series_choice` chooses; ``all``: all.
        left_out: files and folders in `sources` that are not read, such as masks.
        name_files: write names of files to `rejected.csv`, which may be those of
            patients; otherwise their numbers. None does as `keep_ids`.
        rejected_file: csv of the rejected files if nothing can be stored; None takes
            STORE.rejected.csv.

    Raises:
        SourceError: a source is missing or cannot be reached by the workers, has no CT
            slice, or more files were rejected than `max_rejected` allows.
        StoreError: an option is invalid; the folder is in use, has other files, was
            not begun by prepare, or was begun from other sources or options; the key
            is missing or not private; the store cannot be written; or the run was
            interrupted. After the last two the same command continues.
        LabelError: appended labels contradict those of the store; labels of slices,
            series and studies contradict each other; or the file does not tell which
            study or series of a patient its labels are of.

    Example:
        >>> from pathlib import Path
        >>> import ichfast
        >>> report = ichfast.prepare_store(
        ...     [Path("heads/dicom")],
        ...     Path("example-store"),
        ...     labels=None,
        ...     workers=1,
        ...     keep_ids=True,
        ... )
        >>> report.slices
        90
    """
    # One long function, because the order of its steps keeps promises 1, 3 and 8.
    started_s = time.monotonic()
    accepted = _check_options(levels, workers, max_rejected, accept, series)
    selection = _parse_selection(select)
    _check_labels(labels, append=append, relabel=relabel)
    key_path = _key_path(store, id_key, keep_ids=keep_ids)
    rejected_file = rejected_file or rejected_path(store)
    journal = Journal(store, levels, packed)
    units: list[Unit] = []
    with signals_interrupt(), _resumable(journal, units):
        others = (store, key_path, rejected_file, *left_out)
        entries = _list(sources, others)[:limit]
    with (
        only_writer(store) as discard,
        signals_interrupt(),
        _resumable(journal, units),
    ):
        was_finished = (store / "store.json").exists()
        is_finished = journal.publish() or was_finished
        key, num_files, num_relabelled = None, 0, 0
        if not keep_ids:
            key = read_or_make_key(key_path, is_begun=is_finished or journal.is_begun)
        plan = shard_plan(entries, UNIT_ENTRIES, levels, key, accepted, selection)
        table_plan = {"series": series, **label_plan(labels, key)}
        base = None
        if is_finished:
            check_finished(journal, plan, table_plan, append=append)
        else:
            check_unfinished(store)
        if is_finished and append:
            base = read_base(journal)
            plan["base"] = str(base.header.entries_crc32c)
        if append or not is_finished:
            entries = new_entries(entries, base, key)
            units += new_units(entries, base, UNIT_ENTRIES)
        # First, because labels that contradict the store's end the run here.
        if adds_labels(base, labels, key, table_plan, relabel=relabel) or units:
            was_finished = False
            journal.begin(plan, may_restart=base is not None)
            name = partial(
                entry_name,
                keep_ids=keep_ids if name_files is None else name_files,
                first_unit=base.intake.num_units if base else 0,
            )
            job = Job(
                journal, key, _reader(accepted), DECODE_TIMEOUT_S, name, selection
            )
            num_files = convert_units(job, units, workers, scheduler)
            merged = keep_series(merge(journal, units, base, name), series, units, name)
            _check_rejected(journal, merged, max_rejected, rejected_file, discard)
            num_relabelled = finish(
                journal,
                merged,
                labels,
                key,
                plan | table_plan,
                grown_intake(entries, units, base, key),
                relabel=relabel,
            )
        else:
            give_up(journal)
            warn_again(base, labels, key)
    return summarize(
        store,
        read_header(store),
        num_files=num_files,
        num_relabelled=num_relabelled,
        seconds=time.monotonic() - started_s,
        already_finished=was_finished,
    )


def _check_options(
    levels: tuple[int, ...],
    workers: int,
    max_rejected: str,
    accept: Collection[str],
    series: str,
) -> frozenset[str]:
    """Check the options of the command; give the accepted reject codes."""
    max_workers = MAX_WORKERS_PER_CORE * len(os.sched_getaffinity(0))
    if not 1 <= workers <= max_workers:
        raise StoreError(
            f"--workers is from 1 to {max_workers} here, {MAX_WORKERS_PER_CORE} for "
            f"each core, got {workers}; one a core is the default"
        )
    try:
        check_levels(levels)
        _num_allowed(max_rejected, 0)
        if series not in SERIES:
            raise ValueError(unknown("choice of series", series, SERIES))
        return check_kind_codes(accept)
    except ValueError as error:
        raise StoreError(f"cannot prepare a store: {error}") from error


def _parse_selection(select: str) -> Selection | None:
    try:
        return parse_selection(select) if select.strip() else None
    except ValueError as error:
        raise StoreError(str(error)) from error


def _check_labels(labels: LabelTable | None, *, append: bool, relabel: bool) -> None:
    if relabel and (labels is None or not append):
        raise StoreError(
            "--relabel replaces labels of a finished store; it needs --append and "
            "--labels FILE"
        )


def _reader(accept: frozenset[str]) -> Callable[[bytes, str], Iterator[Slice]]:
    return partial(read_file, accept=accept) if accept else read_file


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


def _list(sources: Sequence[Path | str], without: Sequence[Path]) -> Listing:
    check_reachable(sources)
    return list_entries(sources, without)


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
    """Turn an interruption or a write error into a StoreError with the progress."""
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
    if not units:
        return "no file done"
    num_done = sum(len(unit.entries) for unit in journal.done(units))
    return f"{num_done:,} of {sum(len(u.entries) for u in units):,} files done"


def _check_found(
    merged: Merged, rejected_file: Path, discard: Callable[[], None]
) -> None:
    """Remove a store without a slice, but keep the list of the rejected files."""
    is_store = len(merged.rows) > 0  # which has a list of its own
    left_out = merged.rejected[:0] if is_store else merged.rejected
    is_listed = write_rejected_beside(rejected_file, left_out, StoreError)
    if is_store:
        return
    discard()
    if (merged.rejected["reason"] == "not-selected").any():
        raise SourceError(_nothing_selected(merged))
    listed = f"{rejected_file} lists them; " if is_listed else ""
    raise SourceError(
        f"none of {merged.num_entries:,} files is an axial CT slice: "
        f"{format_rejected(merged.rejected)}; {listed}mend what is named there, or "
        "name a folder or an archive of head CT DICOM files"
    )


def _check_rejected(
    journal: Journal,
    merged: Merged,
    max_rejected: str,
    rejected_file: Path,
    discard: Callable[[], None],
) -> None:
    _check_found(merged, rejected_file, discard)
    counts = Counter(merged.rejected["reason"])
    shown = format_rejected(merged.rejected)
    folder = journal.store if merged.base is None else journal.path
    write_rejected(folder, merged.rejected)
    # A study holds images of other kinds; that says nothing about its slices.
    num_failed = sum(counts[code] for code in counts.keys() - SOUND_CODES)
    if num_failed > _num_allowed(max_rejected, merged.num_entries):
        raise SourceError(
            f"{num_failed} of {merged.num_entries} files were rejected: {shown}; "
            f"--max-rejected allows {max_rejected}; see {folder}/rejected.csv, then "
            "repeat the command with a higher --max-rejected: nothing is decoded again"
        )
    if shown:
        log.info("left out: %s", shown)


def _nothing_selected(merged: Merged) -> str:
    """The message for a selection that no slice passes."""
    is_left_out = merged.rejected["reason"] == "not-selected"
    details = Counter(merged.rejected["detail"][is_left_out])
    shown = [f"{n} with {detail}" for detail, n in details.most_common(NUM_SHOWN)]
    if len(details) > NUM_SHOWN:
        shown.append(f"{len(details) - NUM_SHOWN} more kinds")
    return (
        f"--select keeps none of {is_left_out.sum()} files with slices: "
        f"{'; '.join(shown)}; change the expression, where a comparison with an "
        "unknown value is false"
    )
