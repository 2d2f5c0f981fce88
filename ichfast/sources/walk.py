"""Finding the files of a source: a walk through folders and archives."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ichfast.errors import SourceError
from ichfast.sources import archives
from ichfast.sources.dicomweb import WebStudy
from ichfast.sources.places import Place
from ichfast.sources.remote import Container, Remote
from ichfast.system.limits import LimitedProcess
from ichfast.system.terminal import printable
from ichfast.system.timeouts import call_with_timeout, note_progress

BATCH_CHILDREN = 1024
"""Children of a folder that are in memory at a time; a folder may hold a million."""


class Found(NamedTuple):
    """A file as a walk through a source finds it; `Entry` explains the other fields."""

    home: Place
    """Its folder or study; or the archive that holds it; or a source that is a file."""

    file: str
    """Its path below the folder, ``/`` between parts; empty for any other home."""

    member: str
    key: str
    size: int
    offset: int = -1


def find_files(place: Place, without: Sequence[Path]) -> Iterator[Found]:
    """Find the files of one source, in any order.

    Args:
        place: a folder, file or archive, or a study on a server.
        without: files and folders to leave out, each folder with all it holds.

    Raises:
        SourceError: it or one of its folders does not exist, cannot be read or does
            not answer, or it is a broken archive.
    """
    if isinstance(place, WebStudy):
        with _source_errors(place):
            yield from (Found(place, key, "", key, 0) for key in place.list_keys())
        return
    with archives.lister() as process:
        yield from _Walk(without, process).files(place)


def place_of(home: Place) -> str:
    """Where a folder, file or archive lies: an absolute path, or a URL and path."""
    if isinstance(home, WebStudy):
        return f"{home.server}\0{home.study}"
    if isinstance(home, Path):
        return os.path.abspath(home)  # noqa: PTH100  links stay as they are
    return f"{home}\0{home.path}"


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
            if isinstance(place, Remote):
                is_folder = place.is_dir()
            else:
                is_folder = call_with_timeout(place.is_dir)
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
                status = call_with_timeout(folder.stat)
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                left_out = self._names_in(folder)
                folders = []
                for name, found in _children(folder):
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
            if isinstance(path, Remote):
                size = path.size()
            else:
                status = call_with_timeout(path.stat)
                size = status.st_size
                if not stat.S_ISREG(status.st_mode):
                    raise OSError("it is a pipe or a device, not a file")
            with archives.open_container(path) as stream:
                head = stream.read(archives.HEAD_BYTES)
            is_volume = path.name.lower().endswith(archives.VOLUME_SUFFIX)
            is_file = is_volume or archives.is_gzipped_dicom(head)
            if not is_file and (kind := archives.kind_of(head)):
                yield from self._members(path, path.name, kind)
            else:
                yield Found(path, "", "", printable(path.name), size)

    def _members(self, path: Container, key: str, kind: str) -> Iterator[Found]:
        for member, size, offset in archives.list_members(path, kind, self._process):
            if not _is_hidden(member):
                name = printable(f"{key}/{member}")
                yield Found(path, "", member, name, size, offset)


def _children(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Names and status of what a folder holds, without hidden names."""
    scan = _Scan(folder)
    while True:
        try:
            batch = call_with_timeout(scan.next_batch)
        except TimeoutError as error:
            raise _no_answer(folder / scan.at, error) from error
        yield from batch
        if scan.is_done:
            return


class _Scan:
    """A folder that is being listed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: Iterator[os.DirEntry[str]] | None = None
        self.at = ""
        """Name of the child that was asked for last; empty between children."""
        self.is_done = False

    def next_batch(self) -> list[tuple[str, os.stat_result]]:
        """Names and status of up to `BATCH_CHILDREN` children."""
        if self._children is None:
            self._children = os.scandir(self._folder)
        batch = []
        self.is_done = True
        for child in itertools.islice(self._children, BATCH_CHILDREN):
            self.is_done = False
            self.at = child.name
            if not child.name.startswith(".") and (status := _status(child)):
                batch.append((child.name, status))
            self.at = ""
            note_progress()
        return batch


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


@contextmanager
def _source_errors(path: Place) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        problem = f"no source at {path}; give a folder, a DICOM file, a .zip or a .tar"
        if isinstance(path, WebStudy):
            problem = f"{path} is not there; check its StudyInstanceUID"
        raise SourceError(problem) from error
    except TimeoutError as error:
        raise _no_answer(path, error) from error
    except archives.BROKEN as error:
        advice = (
            "check the URL and the server"
            if isinstance(path, WebStudy)
            else "check its permissions, or copy it again from its origin"
        )
        raise SourceError(
            f"cannot read {path}: {archives.reason_of(error)}; {advice}"
        ) from error


def _no_answer(path: Place, error: TimeoutError) -> SourceError:
    return SourceError(
        f"cannot read {path}: {archives.reason_of(error)}; check the disk or the "
        "server that it is on, or leave it out"
    )


def _is_hidden(member: str) -> bool:
    return any(
        part.startswith(".") and part not in (".", "..") for part in member.split("/")
    )
