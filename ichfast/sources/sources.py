"""Where DICOM bytes come from: folders, files, and archives read in place.

A source is a folder of any nesting, a file, or an archive: ``.zip``, ``.tar``,
``.tar.gz``, ``.tar.xz``, ``.tar.bz2``; on this machine, or at a URL
(`ichfast.sources.remote`); or a study on a DICOMweb server
(`ichfast.sources.dicomweb`). Archives inside a folder are looked into as well (known by
suffix, then by content); archives inside archives are not. One DICOM file that gzip
has compressed is no archive: it reads as that file.

Promises:

1. The listing depends on the sources only: sorted by source and key, in plain
   code point order, the same on every platform and in every process.
2. Hidden files and folders (a name that begins with a dot) are left out. Links
   are followed, each folder is visited once, so loops end.
3. Nothing above `MAX_BYTES` is read or unpacked.
4. Reading gives each entry once: its bytes, or a `RejectError` with one of
   ``too-large``, ``unreadable-file``, ``unreadable-archive``, ``timeout``.
5. A broken archive is a `SourceError` when it was asked for. Found in a folder, it
   is one entry that reads as ``unreadable-archive``, in addition to the members
   that could be listed.
6. A local file is read without the packages that URLs need. Remote files are
   fetched several at once, at most `FETCH_BYTES` together.
7. Every wait for a local file ends after `ichfast.system.timeouts.STALL_S` without
   progress. In the listing that is a `SourceError`, for an entry a ``timeout``. An
   archive that stalls is not tried again for its other members.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ichfast.errors import RejectError, SourceError
from ichfast.sources import archives
from ichfast.sources.dicomweb import WebStudy
from ichfast.sources.listing import Entry, Listing
from ichfast.sources.places import Place, locate
from ichfast.sources.remote import Container, Remote, read_files
from ichfast.sources.walk import Found, find_files
from ichfast.system.limits import LimitedProcess
from ichfast.system.timeouts import read_file

MAX_BYTES = 512 * 2**20
"""Upper limit of a file or member that is read, bytes; a slice has 0.5 MB."""

FETCH_BYTES = 32 * 2**20
"""Upper limit of remote files fetched together, bytes; a larger file comes alone."""

FETCH_FILES = 32
"""Upper limit of remote files fetched together."""


def list_entries(
    sources: Sequence[Path | str], without: Sequence[Path] = ()
) -> Listing:
    """List every file of the sources, including the members of archives.

    Args:
        sources: folders, files and archives, in any mixture; paths, or URLs as
            texts.
        without: files and folders to leave out, each folder with all it holds.

    Returns:
        Sorted by source, then key, then offset.

    Raises:
        SourceError: a source or one of its folders does not exist, cannot be read
            or does not answer, an archive that was asked for is broken, a URL needs
            a package that is not installed, a tar lies in the memory of this
            process (``memory://``), or there is no file.
    """
    places = [locate(source) for source in sources]
    with LimitedProcess() as process:
        entries = Listing.of(_find(place, without, process) for place in places)
    if not entries:
        names = ", ".join(map(str, places)) or "an empty list of sources"
        beside = "".join(f", outside {path}" for path in without)
        raise SourceError(
            f"no file in {names}{beside}; give a folder, a DICOM file, a .zip or a "
            ".tar (hidden files do not count)"
        )
    return entries


def read_entries(
    entries: Sequence[Entry],
) -> Iterator[tuple[Entry, bytes | RejectError]]:
    """Read entries, opening each archive once for a run of neighbours.

    Args:
        entries: as `list_entries` gives them, or any part of that.

    Yields:
        Each entry once, with its bytes or the reason why there are none. In the
        order given, except that members of one compressed tar come in the
        archive's order.
    """
    for (_, archive), run in itertools.groupby(
        entries, lambda entry: (entry.source, entry.archive)
    ):
        fitting = []
        for entry in run:
            if entry.size > MAX_BYTES:
                yield entry, _oversized(entry)
            else:
                fitting.append(entry)
        if archive and fitting:
            yield from _read_members(archive, fitting)
        else:
            yield from _read_files(fitting)


def _find(
    place: Place, without: Sequence[Path], process: LimitedProcess
) -> Iterator[Found]:
    """The files of a source. Local ones are listed in `process`.

    If the kernel never answers there, this process can still end.
    """
    if isinstance(place, Path):
        return process.iterate(find_files, place, without)
    return find_files(place, without)


def _read_files(
    entries: Iterable[Entry],
) -> Iterator[tuple[Entry, bytes | RejectError]]:
    remote: list[tuple[Entry, Remote]] = []
    for entry in entries:
        if isinstance(entry.container, Remote):
            remote.append((entry, entry.container))
        else:
            yield entry, _checked(entry, _read_file(entry.container))
    for batch in _batches(remote):
        found = read_files([file for _, file in batch])
        for (entry, _), content in zip(batch, found, strict=True):
            yield entry, _checked(entry, content)


def _read_file(file: Path | WebStudy) -> bytes | OSError:
    try:
        if isinstance(file, WebStudy):
            return file.read(MAX_BYTES)
        return read_file(file, MAX_BYTES)
    except OSError as error:
        return error


def _batches(
    files: Iterable[tuple[Entry, Remote]],
) -> Iterator[list[tuple[Entry, Remote]]]:
    batch: list[tuple[Entry, Remote]] = []
    num_bytes = 0
    for entry, file in files:
        num_bytes += entry.size
        if batch and (num_bytes > FETCH_BYTES or len(batch) == FETCH_FILES):
            yield batch
            batch, num_bytes = [], entry.size
        batch.append((entry, file))
    if batch:
        yield batch


def _checked(entry: Entry, content: bytes | OSError) -> bytes | RejectError:
    if isinstance(content, OSError):
        return _unreadable(content, "unreadable-file")
    if _has_suffix(entry) and archives.kind_of(content):
        return _broken_archive()
    return _plain(content)


def _plain(content: bytes) -> bytes | RejectError:
    """The bytes of a file, unpacked if it is a DICOM file that gzip has compressed."""
    try:
        return archives.unpack_dicom(content)
    except RejectError as error:
        return error
    except MemoryError:
        return RejectError("too-large", "gzip unpacks it to more than memory holds")


def _oversized(entry: Entry) -> RejectError:
    """The reason why a file or member above `MAX_BYTES` is not read."""
    try:
        file = entry.container
        is_file = entry.archive is None and _has_suffix(entry)
        if is_file and not isinstance(file, WebStudy) and archives.archive_kind(file):
            return _broken_archive()
    except OSError as error:
        return _unreadable(error, "unreadable-file")
    return RejectError(
        "too-large", f"{entry.size:,} bytes; at most {MAX_BYTES:,} are read"
    )


def _unreadable(error: Exception, code: str) -> RejectError:
    """The rejection for a failed read: `code`, or ``timeout`` without an answer."""
    if isinstance(error, TimeoutError):
        code = "timeout"
    return RejectError(code, archives.reason_of(error))


def _broken_archive() -> RejectError:
    """The reason for an archive in a folder that could not be listed to its end."""
    return RejectError("unreadable-archive", "it is damaged; copy it again")


def _has_suffix(entry: Entry) -> bool:
    """Whether the file, or the archive it lies in, is named like an archive."""
    return entry.container.name.lower().endswith(archives.SUFFIXES)


def _read_members(
    container: Container, entries: list[Entry]
) -> Iterator[tuple[Entry, bytes | RejectError]]:
    try:
        kind = archives.archive_kind(container)
        stream = archives.open_container(container)
    except OSError as error:
        yield from _reject_all(entries, error)
        return
    with stream:
        if kind == "packed":
            yield from _read_packed(container, entries)
            return
        read = archives.READERS.get(kind)
        if read is None:
            yield from _reject_all(entries, ValueError("it is no longer an archive"))
            return
        for entry in entries:
            try:
                content = read(stream, entry.offset, entry.size)
            except archives.BROKEN as error:
                yield entry, _unreadable(error, "unreadable-archive")
            else:
                yield entry, _plain(content)
                del content  # before the next one is read


def _read_packed(
    container: Container, entries: list[Entry]
) -> Iterator[tuple[Entry, bytes | RejectError]]:
    left = {entry.offset: entry for entry in entries}
    try:
        for offset, content in archives.read_packed_members(container, list(left)):
            yield left.pop(offset), _plain(content)
            del content  # before the next one is read
    except archives.BROKEN as error:
        yield from _reject_all(left.values(), error)


def _reject_all(
    entries: Iterable[Entry], error: Exception
) -> Iterator[tuple[Entry, RejectError]]:
    return ((entry, _unreadable(error, "unreadable-archive")) for entry in entries)
