"""Sources of DICOM files to a slice store, in parallel and in one pass.

The sorted listing is cut into units of 1,024 consecutive entries. A worker decodes
a unit, writes its shards, and then its page of the journal
(``STORE/journal/00000.parquet``: the rows, and in the file's metadata the shards
and the rejected files). When every unit has its page, the pages are merged.

1. Whatever kills a run, the same command again ends in the same bytes as a run
   that nothing disturbed. Units with a page are not decoded again.
2. Order, bytes and table do not depend on the number of workers.
3. `store.json` is written last. On a finished store the same command does nothing.
4. Each entry of the listing becomes slices, or one row of `rejected.csv`. That
   includes files that plainly are no images, such as a csv beside the DICOM: they
   are rejected as ``not-dicom`` and count towards `max_rejected`.
5. A worker that dies, or decodes one file for longer than `DECODE_TIMEOUT_S`,
   costs that file and nothing else: its unit is tried again, and the file is
   rejected (``decoder-crash``, ``timeout``) if it does the same again.
6. Two slices of one id: with equal checksums the first is kept and the other
   counted as a duplicate; else the other is rejected as ``duplicate-conflict``.
7. Without `keep_ids`, ids are keyed hashes before they reach the disk, and
   `rejected.csv` numbers the entries instead of naming them. The key stays beside
   the store (``STORE.key``); with it, the same id gives the same hash again.

Shape letters: N slices, K classes.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import hmac
import json
import logging
import math
import multiprocessing
import os
import secrets
import shutil
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ichfast.dicom import Slice, read_slices
from ichfast.errors import RejectError, SourceError, StoreError
from ichfast.files import atomic_path, write_text_atomically
from ichfast.labels import CLASSES, LabelTable
from ichfast.progress import progress
from ichfast.sources import Entry, list_entries, read_entries
from ichfast.store import (
    Shard,
    StoreHeader,
    UnitWriter,
    check_levels,
    finish_store,
    read_header,
    table_schema,
    write_rejected,
)

log = logging.getLogger(__name__)

UNIT_ENTRIES = 1024
"""Entries of the listing in a unit of work."""

DECODE_TIMEOUT_S = 60.0
"""A file that takes longer to decode hangs."""

MAX_DEATHS = 5
"""Deaths of a unit's worker, at different files, before the run gives up."""

HASH_DIGITS = 16
"""Hexadecimal digits of a hashed id: 64 bits."""

KEY_BYTES = 32

_OUR_NAMES = frozenset(
    {".lock", "journal", "level-512", "level-256", "slices.parquet", "rejected.csv"}
    | {"store.json"}
)
_ORDER = ("patient", "study", "series", "position_mm", "instance_number", "slice_id")
_AS_READ = (
    *("position_mm", "row_spacing_mm", "column_spacing_mm", "thickness_mm"),
    *("rescale_slope", "rescale_intercept", "bits_stored"),
    *("is_signed", "window_center", "window_width", "transfer_syntax_uid"),
)
"""Columns that are the fields of a `Slice`, unchanged."""
_BAN_DETAILS = {
    "decoder-crash": "the decoder ended its process, twice",
    "timeout": "the decoder did not finish in time, twice",
}
_NOTES = b"ichfast"
"""The key in a page's metadata under which its rejects and shards stand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareReport:
    """What a run of `prepare_store` made."""

    store: str
    slices: int
    series: int
    patients: int
    rejected: Mapping[str, int]
    """Rejected files for each code."""
    duplicates: int
    """Slices left out because the same one stood before."""
    labelled: int
    """Slices with labels."""
    labels_without_slice: int
    slices_without_label: int
    bytes: int
    """Size of all shards."""
    seconds: float
    """Of this run, not of the runs that it continued."""
    already_finished: bool


def prepare_store(  # noqa: PLR0913  the options of the command
    sources: Sequence[Path],
    store: Path,
    *,
    labels: LabelTable | None,
    levels: tuple[int, ...] = (512, 256),
    workers: int,
    keep_ids: bool,
    max_rejected: str = "5%",
    limit: int | None = None,
) -> PrepareReport:
    """Make a store of every CT slice in `sources`, or continue making it.

    Args:
        sources: folders, files and archives, as `ichfast.sources` takes them.
        store: the store's folder; its parents are made. May lie in a source.
        labels: joined by slice id; slices without a label get nulls.
        levels: (512, 256), or (512,) to save a fifth of the disk.
        workers: decoding processes.
        keep_ids: keep patient, study, series and slice ids as they are.
        max_rejected: how many files of the listing may be rejected, as a number
            (``12``) or a share (``5%``). Not part of what a store is made from:
            a refused run continues with a higher one.
        limit: take only the first entries of the listing.

    Raises:
        SourceError: a source is missing, nothing in it is a CT slice, or more
            files were rejected than `max_rejected` allows.
        StoreError: the folder is in use, holds something else, was begun from
            other sources or options, cannot be written, or the run was
            interrupted. The last two continue with the same command.
    """
    started_s = time.monotonic()
    _check_options(levels, max_rejected)
    entries = _list_entries(sources, store, limit)
    units = _units(entries, keep_ids=keep_ids)
    with _only_writer(store), _sigterm_interrupts():
        try:
            key = None if keep_ids else _read_or_make_key(store)
            plan = _plan(entries, levels, key)
            if (store / "store.json").exists():
                header = read_header(store)
                _check_plan(store, header.plan, plan | _label_plan(labels))
                shutil.rmtree(store / "journal", ignore_errors=True)
                return _report(store, header, started_s, already_finished=True)
            _begin_journal(store, plan)
            _convert(
                _Job(store, levels, key, read_slices, DECODE_TIMEOUT_S), units, workers
            )
            merged = _merge(store, levels, units)
            _check_rejected(store, merged, len(entries), max_rejected)
            header = _finish(store, merged, labels, key, plan | _label_plan(labels))
        except KeyboardInterrupt as error:
            raise StoreError(
                f"stopped with {_how_far(store, units)}; the same command continues"
            ) from error
        except OSError as error:
            raise StoreError(
                f"cannot write {store} ({error.strerror}) with "
                f"{_how_far(store, units)}; make room or mend the disk, then the "
                "same command continues"
            ) from error
    return _report(store, header, started_s, already_finished=False)


def _report(
    store: Path, header: StoreHeader, started_s: float, *, already_finished: bool
) -> PrepareReport:
    counts = header.counts
    report = PrepareReport(
        store=str(store),
        slices=counts["slices"],
        series=counts["series"],
        patients=counts["patients"],
        rejected=header.rejected,
        duplicates=counts["duplicates"],
        labelled=counts["labelled"],
        labels_without_slice=counts["labels_without_slice"],
        slices_without_label=counts["slices"] - counts["labelled"],
        bytes=header.num_bytes,
        seconds=time.monotonic() - started_s,
        already_finished=already_finished,
    )
    log.info(
        "%s: %d slices, %d files rejected, %d duplicates",
        "already finished" if already_finished else "finished",
        report.slices,
        sum(report.rejected.values()),
        report.duplicates,
    )
    return report


# What is to be done ---------------------------------------------------------


def _check_options(levels: tuple[int, ...], max_rejected: str) -> None:
    try:
        check_levels(levels)
        _num_allowed(max_rejected, 0)
    except ValueError as error:
        raise StoreError(f"cannot prepare a store: {error}") from error


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


def _list_entries(
    sources: Sequence[Path], store: Path, limit: int | None
) -> list[Entry]:
    """The listing without the store itself, which may lie in a source."""
    own = os.path.abspath(store)  # noqa: PTH100  a Path each costs 20 us
    own_parts = (f"{own}{os.sep}", f"{own}.key")
    entries = [
        entry
        for entry in list_entries(sources)
        if not os.path.abspath(entry.container).startswith(own_parts)  # noqa: PTH100
    ][:limit]
    if not entries:
        raise SourceError(
            f"the sources hold no file outside the store {store}; name a folder of "
            "DICOM files, and as --store a folder that holds none"
        )
    return entries


@dataclass(frozen=True, slots=True)
class _Unit:
    """Consecutive entries of the listing, and what their worker died of."""

    number: int
    first: int
    """Index of its first entry in the listing."""
    entries: Sequence[Entry]
    names: Sequence[str]
    """What `rejected.csv` calls them."""
    banned: Mapping[int, str] = field(default_factory=dict)
    """Reject codes of entries that must not be decoded, by position."""
    deaths: tuple[int, ...] = ()
    """Positions at which a worker died since the last ban; -1: not in a decoder."""


def _units(entries: Sequence[Entry], *, keep_ids: bool) -> list[_Unit]:
    if keep_ids:
        names = [_plain(entry.key) for entry in entries]
    else:
        next_of: Counter[int] = Counter()
        names = []
        for entry in entries:
            names.append(f"entry {next_of[entry.source]} of source {entry.source}")
            next_of[entry.source] += 1
    return [
        _Unit(
            first // UNIT_ENTRIES,
            first,
            entries[first : first + UNIT_ENTRIES],
            names[first : first + UNIT_ENTRIES],
        )
        for first in range(0, len(entries), UNIT_ENTRIES)
    ]


def _plain(text: str) -> str:
    """Text that UTF-8 can hold, whatever bytes a file system or a header had."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


# What a run is bound to -------------------------------------------------------


def _plan(
    entries: Sequence[Entry], levels: tuple[int, ...], key: bytes | None
) -> dict[str, str]:
    """What decides the shards and the journal, as texts that say no path."""
    listing = hashlib.sha256()
    for entry in entries:
        listing.update(_plain(f"{entry.source}\t{entry.key}\t{entry.size}\n").encode())
    return {
        "levels": ",".join(map(str, levels)),
        "ids": "kept" if key is None else f"hashed with key {_hashed(key, 'key')}",
        "unit": str(UNIT_ENTRIES),
        "entries": str(len(entries)),
        "listing": listing.hexdigest(),
    }


def _label_plan(labels: LabelTable | None) -> dict[str, str]:
    if labels is None:
        return {"labels": "none"}
    digest = hashlib.sha256("\n".join(labels.slice_ids).encode())
    digest.update(labels.labels_NK.tobytes())
    return {"labels": digest.hexdigest()}


def _check_plan(store: Path, begun: Mapping[str, str], plan: Mapping[str, str]) -> None:
    different = [name for name in plan if begun.get(name) != plan[name]]
    if different:
        shown = ", ".join(
            f"{name} ({begun.get(name, 'unknown')[:40]}, now {plan[name][:40]})"
            for name in different
        )
        raise StoreError(
            f"{store} was made from something else: {shown}; run the command it was "
            "made with, name another --store, or delete it to start again"
        )


def _begin_journal(store: Path, plan: Mapping[str, str]) -> None:
    journal = store / "journal"
    journal.mkdir(exist_ok=True)
    for left_by_a_crash in store.glob("**/.*.tmp"):
        left_by_a_crash.unlink()
    try:
        begun = json.loads((journal / "plan.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        write_text_atomically(journal / "plan.json", json.dumps(plan))
    else:
        _check_plan(store, begun, plan)


def _read_or_make_key(store: Path) -> bytes:
    """The secret of the hashed ids: a file beside the store, readable by its owner."""
    path = store.with_name(f"{store.name}.key")
    if path.exists():
        key = path.read_bytes()
        if len(key) != KEY_BYTES:
            raise StoreError(
                f"{path} has {len(key)} bytes, a key has {KEY_BYTES}; restore it, or "
                "delete it and the store to start again"
            )
        return key
    if (store / "store.json").exists() or (store / "journal" / "plan.json").exists():
        raise StoreError(
            f"{store} was begun with the key {path}, which is missing (or with "
            "--keep-ids); restore it, or delete the store to start again"
        )
    key = secrets.token_bytes(KEY_BYTES)
    with atomic_path(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:  # noqa: PTH123  a descriptor, no path
            file.write(key)
    return key


def _hashed(key: bytes | None, text: str) -> str:
    """An id as the store keeps it. An absent one stays empty."""
    plain = _plain(text)
    if key is None or not plain:
        return plain
    return hmac.digest(key, plain.encode(), "sha256").hex()[:HASH_DIGITS]


@contextmanager
def _only_writer(store: Path) -> Iterator[None]:
    """Hold the store's lock; the kernel lets go of it however the process ends."""
    if store.exists() and (
        not store.is_dir() or not _OUR_NAMES.issuperset(_names(store))
    ):
        raise StoreError(
            f"{store} holds files that no store has; name a new folder as --store"
        )
    try:
        store.mkdir(parents=True, exist_ok=True)
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


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM end the run as Ctrl-C does. Only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _how_far(store: Path, units: Sequence[_Unit]) -> str:
    done = sum(len(u.entries) for u in units if _page_path(store, u).exists())
    return f"{done:,} of {sum(len(u.entries) for u in units):,} files done"


# In the worker ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Job:
    """What every unit of a run is converted with."""

    store: Path
    levels: tuple[int, ...]
    key: bytes | None
    decode: Callable[[bytes], list[Slice]]
    timeout_s: float


class _Watch(ctypes.Structure):
    """Memory shared by a worker and the parent, who reads it when the worker dies."""

    _fields_ = (
        # Of the entry being decoded, in its unit; -1 while nothing is decoded.
        ("position", ctypes.c_longlong),
        # time.monotonic() when the last decode began.
        ("since_s", ctypes.c_double),
        # Set by the parent: give up.
        ("stop", ctypes.c_bool),
    )


class _StoppedError(Exception):
    """The parent asked the worker to give up."""


_watch = _Watch()


def _start_worker(watch: _Watch) -> None:
    global _watch
    _watch = watch
    # The parent gets Ctrl-C and SIGTERM too, and stops the workers through the watch.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _convert_unit(job: _Job, unit: _Unit) -> int:
    """Decode a unit's entries, write its shards and its page of the journal.

    Returns:
        The number of rejected entries.
    """
    rows: list[dict[str, Any]] = []
    rejects = [
        (unit.first + position, unit.names[position], code, _BAN_DETAILS[code])
        for position, code in unit.banned.items()
    ]
    position_of = {
        entry: position
        for position, entry in enumerate(unit.entries)
        if position not in unit.banned
    }
    with UnitWriter(job.store, unit.number, job.levels) as writer:
        for entry, content in read_entries(list(position_of)):
            if _watch.stop:
                raise _StoppedError
            position = position_of[entry]
            index, name = unit.first + position, unit.names[position]
            _watch.position = position
            try:
                for slice_ in _decode(job, content):
                    row = _row(job, slice_, writer.add(slice_.stored_HW))
                    rows.append({"entry": index, "path": name} | row)
            except RejectError as error:
                rejects.append((index, name, error.code, _plain(error.detail)))
            _watch.position = -1
    rows.sort(key=lambda row: int(row["entry"]))
    notes = {
        "rejects": sorted(rejects),
        "shards": [shard.to_json() for shard in writer.shards],
    }
    page = pa.Table.from_pylist(rows, schema=_page_schema(job.levels))
    page = page.replace_schema_metadata({_NOTES: json.dumps(notes)})
    with atomic_path(_page_path(job.store, unit)) as temporary:
        pq.write_table(page, temporary)
    return len(rejects)


def _decode(job: _Job, content: bytes | RejectError) -> list[Slice]:
    if isinstance(content, RejectError):
        raise content
    # The kernel ends the process when the time is over, also inside a decoder
    # that never returns to Python; the parent sees the worker die.
    _watch.since_s = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, job.timeout_s)
    try:
        return job.decode(content)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _row(
    job: _Job, slice_: Slice, written: tuple[str, int, Mapping[int, int]]
) -> dict[str, Any]:
    shard, row_in_shard, sums = written
    rows, columns = slice_.stored_HW.shape
    return {
        "slice_id": _hashed(job.key, slice_.slice_id),
        "patient": _hashed(job.key, slice_.patient_id),
        "study": _hashed(job.key, slice_.study_uid),
        "series": _hashed(job.key, slice_.series_uid),
        "rows": rows,
        "columns": columns,
        # IS has 12 characters at most; a hostile one must not overflow the column.
        "instance_number": slice_.instance_number
        if abs(slice_.instance_number) < 10**12
        else -1,
        "tilt_deg": _tilt_deg(slice_.orientation),
        "shard": shard,
        "row_in_shard": row_in_shard,
        "crc32c": sums[512],
        "crc32c_256": sums.get(256),
        "quirks": ";".join(slice_.quirks),
    } | {name: getattr(slice_, name) for name in _AS_READ}


def _tilt_deg(orientation: Sequence[float]) -> float:
    """The angle between the slice's columns and the axial plane, degrees.

    Source:
        DICOM PS3.3 C.7.6.2.1.1: the last three cosines are the columns' direction,
        z pointing to the head.
    """
    if not orientation:
        return math.nan
    return math.degrees(math.asin(min(1.0, max(-1.0, orientation[5]))))


def _page_schema(levels: Sequence[int]) -> pa.Schema:
    """The table's columns without labels, plus where a row came from."""
    fields = [pa.field("entry", pa.int64()), pa.field("path", pa.string())]
    for column in table_schema(levels):
        if column.name == "shard":
            fields.append(pa.field("shard", pa.string()))
        elif column.name not in CLASSES:
            fields.append(column)
    return pa.schema(fields)


def _page_path(store: Path, unit: _Unit) -> Path:
    return store / "journal" / f"{unit.number:05d}.parquet"


# Running the workers ---------------------------------------------------------------


class _Lane:
    """A worker process: an executor of one, so that a death names its unit."""

    def __init__(self) -> None:
        # Processes are forked from a clean server that has imported this module,
        # not from here, where threads of torch or DALI may be running.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", __name__])
        self.watch: _Watch = context.RawValue(_Watch)
        self._executor = ProcessPoolExecutor(
            1, mp_context=context, initializer=_start_worker, initargs=(self.watch,)
        )

    def submit(self, job: _Job, unit: _Unit) -> Future[int]:
        self.watch.position = -1
        return self._executor.submit(_convert_unit, job, unit)

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)


def _convert(job: _Job, units: Sequence[_Unit], workers: int) -> None:
    """Convert every unit that has no page yet, the first ones first."""
    waiting = deque(unit for unit in units if not _page_path(job.store, unit).exists())
    num_rejected = sum(
        len(_read_notes(job.store, unit)["rejects"])
        for unit in units
        if _page_path(job.store, unit).exists()
    )
    num_entries = sum(len(unit.entries) for unit in units)
    with progress("prepare", num_entries, "file") as bar:
        bar.initial = bar.n = num_entries - sum(len(unit.entries) for unit in waiting)
        for unit, rejected_in_unit in _run(job, waiting, workers):
            num_rejected += rejected_in_unit
            bar.set_postfix_str(f"{num_rejected} rejected", refresh=False)
            bar.update(len(unit.entries))


def _run(job: _Job, waiting: deque[_Unit], workers: int) -> Iterator[tuple[_Unit, int]]:
    idle = [_Lane() for _ in range(min(workers, len(waiting)))]
    running: dict[Future[int], tuple[_Lane, _Unit]] = {}
    try:
        while waiting or running:
            while waiting and idle:
                lane, unit = idle.pop(), waiting.popleft()
                running[lane.submit(job, unit)] = lane, unit
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                lane, unit = running.pop(future)
                idle.append(lane)
                try:
                    num_rejected = future.result()
                except BrokenProcessPool:
                    idle[-1] = _Lane()
                    lane.close()
                    waiting.appendleft(_after_death(job, unit, lane.watch))
                else:
                    yield unit, num_rejected
    finally:
        lanes = idle + [lane for lane, _ in running.values()]
        for lane in lanes:
            lane.watch.stop = True
        for lane in lanes:
            lane.close()


def _after_death(job: _Job, unit: _Unit, watch: _Watch) -> _Unit:
    """The unit to try again, without the entry that ended its worker twice."""
    position = watch.position
    if position >= 0 and position in unit.deaths:
        hung = time.monotonic() - watch.since_s >= job.timeout_s
        code = "timeout" if hung else "decoder-crash"
        log.warning("a file ended its worker twice and is rejected: %s", code)
        return replace(unit, banned={**unit.banned, position: code}, deaths=())
    deaths = (*unit.deaths, position)
    if len(deaths) == MAX_DEATHS or deaths.count(-1) == 2:
        raise StoreError(
            f"the worker process of unit {unit.number} died {len(deaths)} times, not "
            "because of one file; if memory ran out, use fewer --workers; the same "
            "command continues"
        )
    return replace(unit, deaths=deaths)


# Merging the journal ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Merged:
    """The journal as a whole."""

    table: pd.DataFrame
    """Sorted, without duplicates, with the columns of a page."""
    rejected: pd.DataFrame
    """Columns entry, path, reason, detail; in the order of the listing."""
    shards: tuple[Shard, ...]
    levels: tuple[int, ...]
    num_entries: int
    num_duplicates: int


def _merge(store: Path, levels: tuple[int, ...], units: Sequence[_Unit]) -> _Merged:
    notes = [_read_notes(store, unit) for unit in units]
    pages = [pq.read_table(_page_path(store, unit)) for unit in units]
    schema = _page_schema(levels)
    rows = (
        pa.concat_tables(page.replace_schema_metadata(None) for page in pages)
        .cast(schema)
        .to_pandas()
    )
    shards = [
        Shard.from_json(shard, levels) for note in notes for shard in note["shards"]
    ]
    rejected = pd.DataFrame(
        [reject for note in notes for reject in note["rejects"]],
        columns=["entry", "path", "reason", "detail"],
    )
    table, conflicts, num_duplicates = _without_repeats(rows)
    return _Merged(
        table=table.sort_values(list(_ORDER), ignore_index=True),
        rejected=pd.concat([rejected, conflicts]).sort_values(
            "entry", ignore_index=True
        ),
        shards=tuple(sorted(shards, key=lambda shard: shard.name)),
        levels=levels,
        num_entries=sum(len(unit.entries) for unit in units),
        num_duplicates=num_duplicates,
    )


def _read_notes(store: Path, unit: _Unit) -> dict[str, Any]:
    metadata = pq.read_schema(_page_path(store, unit)).metadata
    notes: dict[str, Any] = json.loads(metadata[_NOTES])
    return notes


def _without_repeats(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """First row of each slice id; the other files' rejections; equal rows dropped."""
    is_repeat = rows["slice_id"].duplicated()
    repeats = rows[is_repeat]
    firsts = rows[~is_repeat]
    originals = firsts.set_index("slice_id").loc[repeats["slice_id"]]
    pixels = ["rows", "columns", "crc32c"]
    differs = (originals[pixels].to_numpy() != repeats[pixels].to_numpy()).any(axis=1)
    conflicts = pd.DataFrame(
        {
            "entry": repeats["entry"][differs],
            "path": repeats["path"][differs],
            "reason": "duplicate-conflict",
            "detail": [
                f"same SOPInstanceUID as {path}, other pixels; that one is kept"
                for path in originals["path"][differs]
            ],
        }
    ).drop_duplicates("entry")
    return firsts, conflicts, int((~differs).sum())


def _check_rejected(
    store: Path, merged: _Merged, num_entries: int, max_rejected: str
) -> None:
    counts = Counter(merged.rejected["reason"])
    shown = ", ".join(f"{count} {code}" for code, count in sorted(counts.items()))
    if merged.table.empty:
        shutil.rmtree(store)
        raise SourceError(
            f"none of {num_entries} files is a CT slice ({shown}); name a folder or an "
            "archive of head CT DICOM files"
        )
    write_rejected(store, merged.rejected)
    if counts.total() > _num_allowed(max_rejected, num_entries):
        raise SourceError(
            f"{counts.total()} of {num_entries} files were rejected ({shown}), "
            f"--max-rejected allows {max_rejected}; see {store / 'rejected.csv'}, then "
            "repeat the command with a higher --max-rejected: nothing is decoded again"
        )


def _finish(
    store: Path,
    merged: _Merged,
    labels: LabelTable | None,
    key: bytes | None,
    plan: Mapping[str, str],
) -> StoreHeader:
    """Write the table and `store.json`, leave nothing else."""
    names = [shard.name for shard in merged.shards]
    table = merged.table.drop(columns=["entry", "path"])
    table["shard"] = pd.Index(names).get_indexer(pd.Index(table["shard"]))
    num_labels = 0 if labels is None else len(labels.slice_ids)
    num_labelled = _add_labels(table, labels, key)
    for level in merged.levels:
        for file in (store / f"level-{level}").iterdir():
            if file.name not in names:
                file.unlink()
    header = StoreHeader(
        levels=merged.levels,
        shards=merged.shards,
        counts={
            "entries": merged.num_entries,
            "slices": len(table),
            "series": table["series"].nunique(),
            "patients": table["patient"].nunique(),
            "duplicates": merged.num_duplicates,
            "labelled": num_labelled,
            "labels_without_slice": num_labels - num_labelled,
        },
        rejected=dict(sorted(Counter(merged.rejected["reason"]).items())),
        keep_ids=key is None,
        plan=plan,
        versions={name: version(name) for name in ("ichfast", "numpy", "pydicom")},
    )
    header = finish_store(store, header, table, merged.rejected)
    shutil.rmtree(store / "journal")
    return header


def _add_labels(
    table: pd.DataFrame, labels: LabelTable | None, key: bytes | None
) -> int:
    """Give `table` its six label columns, in place; return how many rows have them."""
    values_NK = np.zeros((len(table), len(CLASSES)), dtype=np.int8)
    is_labelled_N = np.zeros(len(table), dtype=np.bool_)
    if labels is not None:
        label_ids = pd.Index([_hashed(key, slice_id) for slice_id in labels.slice_ids])
        found_N = label_ids.get_indexer(pd.Index(table["slice_id"]))
        is_labelled_N = found_N >= 0
        values_NK[is_labelled_N] = labels.labels_NK[found_N[is_labelled_N]]
    for k, name in enumerate(CLASSES):
        table[name] = pd.arrays.IntegerArray(values_NK[:, k].copy(), ~is_labelled_N)
    return int(is_labelled_N.sum())
