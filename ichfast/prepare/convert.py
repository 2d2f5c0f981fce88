"""Converting the files of one unit to shards and a page of the journal.

This runs in a worker process. Worker and parent share a `Watch`: the parent sees the
worker's progress and the file that ended it, the worker sees a request to stop.

Memory and time are limited for each file, so that a hostile file costs only itself:

1. Memory above `MAX_DECODE_BYTES` and twice the file's size is a MemoryError, which
   rejects the file as ``too-large``, or the end of the process inside a decoder.
2. A decoder that exceeds the job's timeout ends the process, by a timer of the kernel.
3. `ichfast.prepare.pool` starts a process that ended again, and rejects the file.
4. A file that gives nothing for `Job.stall_s` is rejected as ``timeout``, without the
   end of the process. `MAX_STALLS` such files in a row end the run, because then it is
   the disk or the network; their unit is not done.
"""

from __future__ import annotations

import ctypes
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import pyarrow as pa

from ichfast.dicom.series_header import SeriesHeader
from ichfast.dicom.slices import Slice, read_slices
from ichfast.errors import RejectError, SourceError
from ichfast.nifti.header import is_nifti
from ichfast.nifti.volume import read_volume
from ichfast.prepare.journal import Journal, Page, Reject
from ichfast.prepare.plan import Unit
from ichfast.prepare.pseudonyms import plain_text, stored_id
from ichfast.prepare.selection import Selection
from ichfast.sources.dicomweb import WebStudy
from ichfast.sources.listing import Entry
from ichfast.sources.places import Place
from ichfast.sources.sources import read_entries
from ichfast.store.levels import checksum_column
from ichfast.store.writer import UnitWriter
from ichfast.system.fork_server import Channel
from ichfast.system.memory import limit_memory
from ichfast.system.timeouts import limit_stalls, stall_limit

MAX_DECODE_BYTES = 2**30
"""Memory that decoding a file may map, beyond twice the size of the file. A sound file
that is deflated to little and inflates to 256 MiB needs 0.94 GiB."""

FILE_TIMEOUTS = 10
"""Upper limit of a file's decoding time, in timeouts of one slice. The largest file,
64 slices of 4096x4096, takes two minutes with a slow decoder."""

MAX_STALLS = 10
"""Files and archives in a row that may give nothing."""

_PACKED_ROWS = 4096
"""Rows collected as dicts before they become an Arrow table, which takes a twentieth of
the memory."""

_BAN_DETAILS = {
    "decoder-crash": "the decoder ended its process, twice",
    "timeout": "the decoder did not finish in time, twice",
}

_TOO_LARGE = (
    f"decoding it takes more than {MAX_DECODE_BYTES:,} bytes of memory and twice its "
    "size"
)


@dataclass(frozen=True, slots=True)
class Job:
    """Settings of a run that all its units share."""

    journal: Journal

    key: bytes | None
    """Key of the hashed ids; None keeps ids."""

    decode: Callable[[bytes, str], Iterator[Slice]]
    """Gives the slices of a file by its bytes and its name, see `read_file`."""

    timeout_s: float
    """Upper limit of the time to decode one slice, seconds. A file has `FILE_TIMEOUTS`
    times as long."""

    name: Callable[[Entry], str]
    """Gives the name of an entry in `rejected.csv`."""

    select: Selection | None = None
    """Which slices are stored; None: all."""

    stall_s: float = field(default_factory=stall_limit)
    """Upper limit of the time in which a file gives nothing, seconds."""


class Watch(ctypes.Structure):
    """Memory shared by a worker and its parent."""

    _fields_ = (
        # The position in its unit of the entry being decoded; -1 between entries.
        ("position", ctypes.c_longlong),
        # time.monotonic() when the last decode began.
        ("since_s", ctypes.c_double),
        # Entries of the unit that are done, and how many of them were rejected.
        ("num_done", ctypes.c_longlong),
        ("num_rejected", ctypes.c_longlong),
        # Set by the parent to stop the worker.
        ("stop", ctypes.c_bool),
    )


class StoppedError(Exception):
    """The parent asked the worker to stop."""


_watch = Watch()


def serve_units(caller: Channel, shared: memoryview) -> None:
    """Convert the units that a caller sends; the main function of a worker.

    Args:
        caller: sends jobs with units; gets None for each unit, or its error.
        shared: memory of the worker's `Watch`.
    """
    global _watch
    _watch = Watch.from_buffer(shared)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    while True:
        try:
            job, unit = caller.receive()
        except EOFError:
            return
        limit_stalls(job.stall_s)
        try:
            convert_unit(job, unit)
        except Exception as error:  # noqa: BLE001  raised by the caller
            caller.send(error)
        else:
            caller.send(None)


def read_file(
    content: bytes, name: str, accept: frozenset[str] = frozenset()
) -> Iterator[Slice]:
    """Read the slices of a DICOM file or of a NIfTI volume; its bytes tell which.

    Args:
        content: the whole file.
        name: key of its entry, from which a volume has its ids.
        accept: some of `KIND_CODES`, whose images are read all the same.

    Raises:
        RejectError: the file cannot become slices.
    """
    if is_nifti(content):
        return read_volume(content, name, accept)
    return read_slices(content, accept)


def convert_unit(job: Job, unit: Unit) -> None:
    """Decode a unit's entries, and write its shards and its page of the journal.

    Args:
        job: the settings of the run.
        unit: the unit.

    Raises:
        StoppedError: the parent asked the worker to stop. No file of the unit is left.
        SourceError: `MAX_STALLS` files in a row give nothing.
    """
    journal = job.journal
    packed = [pa.Table.from_pylist([], schema=journal.schema)]
    rows: list[dict[str, Any]] = []
    rejects: list[Reject] = [
        (unit.first + at, job.name(unit.entries[at]), code, _BAN_DETAILS[code])
        for at, code in unit.banned.items()
    ]
    entries = list(unit.entries)
    position_of = {(e.source, e.number): at for at, e in enumerate(entries)}
    readable = [e for at, e in enumerate(entries) if at not in unit.banned]
    stalled: set[Place] = set()
    with UnitWriter(
        journal.store, unit.number, journal.levels, packed=journal.packed
    ) as writer:
        for entry, content in read_entries(readable):
            if _watch.stop:
                raise StoppedError
            _count_stalls(job, stalled, entry, content)
            position = position_of[entry.source, entry.number]
            index = unit.first + position
            _watch.position = position
            try:
                # If a later frame fails, the file's first frames get no rows either.
                added, codes = _write_slices(
                    job,
                    index,
                    _of_study(entry, _decode(job, entry.key, content)),
                    writer,
                )
                rows += added
                rejects += [(index, job.name(entry), *code) for code in codes]
            except RejectError as error:
                detail = plain_text(error.detail)
                rejects.append((index, job.name(entry), error.code, detail))
            except MemoryError:
                rejects.append((index, job.name(entry), "too-large", _TOO_LARGE))
            if len(rows) >= _PACKED_ROWS:
                packed.append(pa.Table.from_pylist(rows, schema=journal.schema))
                rows.clear()
            del content  # before the next file is read: two take up to 1 GiB
            _watch.position = -1
            _watch.num_done += 1
            _watch.num_rejected = len(rejects)
    packed.append(pa.Table.from_pylist(rows, schema=journal.schema))
    # Members of a compressed tar come in the archive's order. This sort is stable.
    table = pa.concat_tables(packed).sort_by("entry")
    journal.write(unit, Page(rows=table, rejects=sorted(rejects), shards=writer.shards))


def _count_stalls(
    job: Job, stalled: set[Place], entry: Entry, content: bytes | RejectError
) -> None:
    """Add to the files and archives in a row that gave nothing, or begin again."""
    if not (isinstance(content, RejectError) and content.code == "timeout"):
        stalled.clear()
        return
    stalled.add(entry.container)
    if len(stalled) == MAX_STALLS:
        raise SourceError(
            f"{MAX_STALLS} files in a row give nothing for {job.stall_s:.0f} s, the "
            f"last is {job.name(entry)}; check the disk or the server that they are "
            "on, then the same command continues"
        )


def _write_slices(
    job: Job, index: int, slices: Iterator[Slice], writer: UnitWriter
) -> tuple[list[dict[str, Any]], tuple[tuple[str, str], ...]]:
    """Write the slices of an entry; give their rows, and codes of what is left out."""
    rows: list[dict[str, Any]] = []
    codes: tuple[tuple[str, str], ...] = ()
    left_out: list[str] = []
    for slice_ in slices:
        codes = slice_.rejected_frames
        row = _row(job, index, slice_)
        if job.select and not job.select.keeps(row):
            left_out.append(job.select.describe(row))
        else:
            rows.append({**row, **_place(writer.add(slice_.stored_HW))})
    if left_out:
        num_slices = len(left_out) + len(rows)
        share = f"{len(left_out)} of {num_slices} slices: " if num_slices > 1 else ""
        codes = (*codes, ("not-selected", share + left_out[0]))
    return rows, codes


def _decode(job: Job, name: str, content: bytes | RejectError) -> Iterator[Slice]:
    if isinstance(content, RejectError):
        raise content
    # Counted from here: memory that an earlier file left mapped is not this file's.
    limit_memory(MAX_DECODE_BYTES + 2 * len(content))
    slices = job.decode(content, name)
    left_s = FILE_TIMEOUTS * job.timeout_s
    while not _watch.stop:
        if left_s <= 0:
            raise RejectError("timeout", "its slices did not decode in time together")
        # The kernel ends the process after this time, even inside a decoder that never
        # returns to Python. The parent sees the worker's death.
        _watch.since_s = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, job.timeout_s)
        try:
            slice_ = next(slices, None)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if slice_ is None:
            return
        left_s -= time.monotonic() - _watch.since_s
        yield slice_
    raise StoppedError


def _of_study(entry: Entry, slices: Iterator[Slice]) -> Iterator[Slice]:
    """The slices, which a server must not send of another study."""
    for slice_ in slices:
        study = slice_.series_header.study_uid
        if isinstance(entry.container, WebStudy) and study != entry.container.study:
            raise RejectError(
                "unreadable-file", "the server sent a file of another study"
            )
        yield slice_


def _row(job: Job, entry: int, slice_: Slice) -> dict[str, Any]:
    """The row of a slice without its place in the store."""
    return {
        **_common_columns(job.key, slice_.series_header),
        "entry": entry,
        "slice_id": stored_id(job.key, slice_.slice_id),
        "position_mm": slice_.position_mm,
        # IS has up to 12 characters; a longer number could overflow the column.
        "instance_number": slice_.instance_number
        if abs(slice_.instance_number) < 10**12
        else -1,
        "rescale_slope": slice_.rescale_slope,
        "rescale_intercept": slice_.rescale_intercept,
        "transfer_syntax_uid": slice_.transfer_syntax_uid,
        "exposure_mas": slice_.exposure_mas,
        "quirks": ";".join(slice_.quirks),
    }


def _place(written: tuple[str, int, Mapping[int, int]]) -> dict[str, Any]:
    shard, row_in_shard, sums = written
    return {
        "shard": shard,
        "row_in_shard": row_in_shard,
        **{checksum_column(level): crc32c for level, crc32c in sums.items()},
    }


@lru_cache(maxsize=64)
def _common_columns(key: bytes | None, common: SeriesHeader) -> Mapping[str, Any]:
    """The columns that all rows of a series share."""
    return {
        "patient": stored_id(key, common.patient_id),
        "study": stored_id(key, common.study_uid),
        "series": stored_id(key, common.series_uid),
        "rows": common.layout.rows,
        "columns": common.layout.columns,
        "bits_stored": common.layout.bits_stored,
        "is_signed": common.layout.is_signed,
        "row_spacing_mm": common.row_spacing_mm,
        "column_spacing_mm": common.column_spacing_mm,
        "thickness_mm": common.thickness_mm,
        "tilt_deg": _tilt_deg(common.orientation),
        "window_center": common.window_center,
        "window_width": common.window_width,
        **asdict(common.acquisition),
    }


def _tilt_deg(orientation: Sequence[float]) -> float:
    """The angle between the slice's columns and the axial plane, degrees.

    Source:
        DICOM PS3.3 C.7.6.2.1.1: the last three cosines are the direction of columns, z
        points to the head.
    """
    if not orientation:
        return math.nan
    return math.degrees(math.asin(min(1.0, max(-1.0, orientation[5]))))
