"""Where DICOM bytes come from: folders, files, and archives read in place.

A source is a folder of any nesting, a file, or an archive: ``.zip``, ``.tar``,
``.tar.gz``, ``.tar.xz``, ``.tar.bz2``; on this machine, or at a URL
(`ichfast.sources.remote`). Archives inside a folder are looked into as well (known by
suffix, then by content); archives inside archives are not.

Promises:

1. The listing depends on the sources only: sorted by source and key, in plain
   code point order, the same on every platform and in every process.
2. Hidden files and folders (a name that begins with a dot) are left out. Links
   are followed, each folder is visited once, so loops end.
3. Nothing above `MAX_BYTES` is read or unpacked.
4. Reading gives each entry once: its bytes, or a `RejectError` with one of
   ``too-large``, ``unreadable-file``, ``unreadable-archive``.
5. A broken archive is a `SourceError` when it was asked for. Found in a folder, it
   is one entry that reads as ``unreadable-archive``, in addition to the members
   that could be listed.
6. A local file is read without the packages that URLs need. Remote files are
   fetched several at once, at most `FETCH_BYTES` together.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ichfast.errors import RejectError, SourceError
from ichfast.sources import archives
from ichfast.sources.listing import Entry, Found, Listing, place_of
from ichfast.sources.remote import Container, Remote, locate, read_files
from ichfast.system.limits import LimitedProcess
from ichfast.system.terminal import printable

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
        SourceError: a source or one of its folders does not exist or cannot be
            read, an archive that was asked for is broken, a URL needs a package
            that is not installed, a tar lies in the memory of this process
            (``memory://``), or there is no file.
    """
    places = [locate(source) for source in sources]
    with archives.lister() as process:
        walk = _Walk(without, process)
        entries = Listing.of(walk.files(place) for place in places)
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


class _Walk:
    """Finds the files of sources.

    Args:
        without: files and folders to leave out.
        process: lists tars, see `archives.lister`.
    """

    def __init__(self, without: Sequence[Path], process: LimitedProcess) -> None:
        self._without = frozenset(map(place_of, without))
        self._process = process

    def files(self, place: Container) -> Iterator[Found]:
        """The files of one source, in any order."""
        with _source_errors(place):
            is_folder = place.is_dir()
        if isinstance(place, Path) and self._leaves_out(place):
            return
        if not is_folder:
            yield from self._single(place)
        elif isinstance(place, Remote):
            yield from self._remote_folder(place)
        else:
            yield from self._folder(place)

    def _remote_folder(self, top: Remote) -> Iterator[Found]:
        with _source_errors(top):
            for file, key, size in top.files():
                if not _is_hidden(key):
                    yield from self._child(top, file, key, size)

    def _folder(self, top: Path) -> Iterator[Found]:
        seen: set[tuple[int, int]] = set()
        waiting = [(top, "")]
        while waiting:
            folder, prefix = waiting.pop()
            if self._leaves_out(folder):
                continue
            with _source_errors(folder):
                status = folder.stat()
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                left_out = self._names_in(folder)
                folders = []
                # One child at a time: a folder may hold a million.
                with os.scandir(folder) as children:
                    for child in children:
                        name = child.name
                        found = None if name.startswith(".") else _status(child)
                        if found is None:
                            continue
                        if stat.S_ISDIR(found.st_mode):
                            folders.append(name)
                        elif stat.S_ISREG(found.st_mode) and name not in left_out:
                            yield from self._child(
                                folder, name, prefix + name, found.st_size
                            )
            # The order decides through which of several links a folder is visited.
            waiting.extend((folder / n, f"{prefix}{n}/") for n in sorted(folders))

    def _leaves_out(self, path: Path) -> bool:
        """Whether a path is left out, or lies in a folder that is."""
        absolute = f"{place_of(path)}{os.sep}"
        return any(absolute.startswith(f"{other}{os.sep}") for other in self._without)

    def _names_in(self, folder: Path) -> set[str]:
        """The names that are left out of a folder."""
        parts = map(os.path.split, self._without)
        absolute = place_of(folder)
        return {name for parent, name in parts if parent == absolute}

    def _child(
        self, home: Container, file: str, key: str, size: int
    ) -> Iterator[Found]:
        if key.lower().endswith(archives.SUFFIXES):
            path = home / file
            try:
                if kind := archives.archive_kind(path):
                    yield from self._members(path, key, kind)
                    return
            except archives.BROKEN:
                pass  # listed as a file; `_read_files` rejects it
        yield Found(home, file, "", printable(key), size)

    def _single(self, path: Container) -> Iterator[Found]:
        with _source_errors(path):
            if isinstance(path, Path) and not stat.S_ISREG(path.stat().st_mode):
                raise OSError("it is a pipe or a device, not a file")
            if kind := archives.archive_kind(path):
                yield from self._members(path, path.name, kind)
            else:
                size = path.size() if isinstance(path, Remote) else path.stat().st_size
                yield Found(path, "", "", printable(path.name), size)

    def _members(self, path: Container, key: str, kind: str) -> Iterator[Found]:
        for member, size, offset in archives.list_members(path, kind, self._process):
            if not _is_hidden(member):
                name = printable(f"{key}/{member}")
                yield Found(path, "", member, name, size, offset)


def _status(child: os.DirEntry[str]) -> os.stat_result | None:
    """Status of a file; None if it is gone, or a link to nothing or to itself."""
    try:
        return child.stat()
    except FileNotFoundError:
        return None
    except OSError:
        if child.is_symlink():
            return None
        raise


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


def _read_file(path: Path) -> bytes | OSError:
    try:
        with path.open("rb", buffering=0) as file:
            num_bytes = os.fstat(file.fileno()).st_size
            if num_bytes > MAX_BYTES:
                return OSError(f"it has grown to {num_bytes:,} bytes")
            return file.read()
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
        return RejectError("unreadable-file", _reason(content))
    if _has_suffix(entry) and archives.kind_of(content):
        return _broken_archive()
    return content


def _oversized(entry: Entry) -> RejectError:
    """The reason why a file or member above `MAX_BYTES` is not read."""
    try:
        is_file = entry.archive is None and _has_suffix(entry)
        if is_file and archives.archive_kind(entry.container):
            return _broken_archive()
    except OSError as error:
        return RejectError("unreadable-file", _reason(error))
    return RejectError(
        "too-large", f"{entry.size:,} bytes; at most {MAX_BYTES:,} are read"
    )


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
        stream = container.open("rb")
    except OSError as error:
        yield from _reject_all(entries, _reason(error))
        return
    with stream:
        if kind == "packed":
            yield from _read_packed(container, entries)
            return
        read = archives.READERS.get(kind)
        if read is None:
            yield from _reject_all(entries, "it is no longer an archive")
            return
        for entry in entries:
            try:
                content = read(stream, entry.offset, entry.size)
            except archives.BROKEN as error:
                yield entry, RejectError("unreadable-archive", _reason(error))
            else:
                yield entry, content
                del content  # before the next one is read


def _read_packed(
    container: Container, entries: list[Entry]
) -> Iterator[tuple[Entry, bytes | RejectError]]:
    left = {entry.offset: entry for entry in entries}
    try:
        for offset, content in archives.read_packed_members(container, list(left)):
            yield left.pop(offset), content
            del content  # before the next one is read
    except archives.BROKEN as error:
        yield from _reject_all(left.values(), _reason(error))


def _reject_all(
    entries: Iterable[Entry], reason: str
) -> Iterator[tuple[Entry, RejectError]]:
    return ((entry, RejectError("unreadable-archive", reason)) for entry in entries)


@contextmanager
def _source_errors(path: Container) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise SourceError(
            f"no source at {path}; give a folder, a DICOM file, a .zip or a .tar"
        ) from error
    except archives.BROKEN as error:
        raise SourceError(
            f"cannot read {path}: {_reason(error)}; check its permissions, or copy it "
            "again from its origin"
        ) from error


def _is_hidden(member: str) -> bool:
    return any(
        part.startswith(".") and part not in (".", "..") for part in member.split("/")
    )


def _reason(error: Exception) -> str:
    strerror = getattr(error, "strerror", None)
    return strerror or str(error) or type(error).__name__
