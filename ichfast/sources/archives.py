"""Archives read in place: a table of contents, then members by their offset.

Promises:

1. A member of a ``.zip`` or ``.tar`` costs one seek, however large the archive.
   `list_members` reads the table of contents once; it is not kept. A compressed tar
   has no such table: reading some of its members is one pass, up to the last of them.
2. Names are labels, never paths, so ``../`` and absolute names are harmless.
   Links, devices and sparse members of a tar are left out.
3. Nothing is unpacked beyond the size that was listed.
4. Damage is never silent: it raises one of `BROKEN`.
5. A member is in memory once while it is read.
6. A small archive cannot ask for much. A tar is listed in a process with limits of
   memory and processor time (`lister`), and refused if it claims sizes that it cannot
   hold.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ichfast.errors import RejectError
from ichfast.sources import zips
from ichfast.sources.remote import Container, Remote, check_reachable
from ichfast.system.limits import LimitedProcess, extend_timer
from ichfast.system.timeouts import open_file

SUFFIXES = (
    *(".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz"),
    *(".tar.bz2", ".tbz", ".tbz2"),
)
"""Suffixes of files that may be archives; their first bytes decide."""

VOLUME_SUFFIX = ".nii.gz"
"""Suffix of a packed file that is no archive, but one NIfTI volume."""

BROKEN = (
    *(OSError, EOFError, ValueError, RuntimeError, ArithmeticError, LookupError),
    *(struct.error, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
"""What this module and the standard library raise on damage."""

LIST_BYTES = 2**29
"""Upper limit of the memory for listing tars, bytes: twice `_MAX_XZ_BYTES`."""

LIST_S = 10.0
"""Upper limit of the processor time for listing a tar, seconds, in addition to that
for its bytes at `_MIN_LIST_RATE`."""

_MIN_LIST_RATE = 2**22
"""Lower limit of the speed of listing a tar, unpacked bytes per second of processor
time. Measured are 25 MB/s for headers (0.02 ms each) and 25 MB/s for bzip2."""

_CHUNK_BYTES = 2**20
"""Unpacked bytes that are read at a time."""

_XZ_CHUNK_BYTES = 2**14
"""Packed bytes that are read at a time of an ``.xz``. The rest of a chunk is copied at
the end of each stream, and a stream can have 32 bytes."""

_MAX_XZ_BYTES = 2**28
"""Upper limit of the memory for unpacking an ``.xz``; ``xz -9`` takes a quarter."""

_MAX_NAME = 2**10
"""Upper limit of a member's name, characters; macOS takes no longer path."""

_MAX_EXTENSION_BYTES = 2**20
"""Upper limit of the headers of one member of a tar, bytes."""

_MAX_GLOBAL_FIELDS = 2**8
"""Upper limit of the fields that a tar sets for all members. tarfile goes through them
for each member."""

_MAX_HEADER_BYTES = 2**26
"""Upper limit of all headers of a tar, beyond its packed size, bytes: those of 130,000
empty members. Each unit of work reads a compressed tar from its beginning."""

_MAX_UNPACKED_BYTES = 2**30
"""Upper limit of what any tar unpacks to, bytes; `_MAX_UNPACKED_RATIO` adds to it."""

_MAX_UNPACKED_RATIO = 1100
"""Unpacked bytes per packed byte that a tar may have. gzip reaches 1,032, bzip2 a
million."""


HEAD_BYTES = 2**16
"""First bytes of a file that tell whether it is a compressed DICOM file."""

MAX_GZIP_BYTES = 2**28
"""Upper limit of what a compressed DICOM file unpacks to, bytes."""

_GZIP = b"\x1f\x8b"
_GZIP_WBITS = 16 + zlib.MAX_WBITS
"""Tells zlib to expect the header of gzip."""

_DICOM_START = 132
"""Bytes of a DICOM file up to the end of its prefix ``DICM``.

Source:
    DICOM PS3.10 7.1.
"""


def reason_of(error: Exception) -> str:
    """The reason of a failure, without the path that it failed on."""
    strerror = getattr(error, "strerror", None)
    return strerror or str(error) or type(error).__name__


def open_container(path: Container) -> io.BufferedReader:
    """Open an archive for reading.

    Raises:
        OSError: it cannot be opened; a `TimeoutError` if there is no answer.
    """
    return open_file(path) if isinstance(path, Path) else path.open("rb")


def archive_kind(path: Container) -> str:
    """Tell from its first bytes what a file is: see `kind_of`."""
    with open_container(path) as stream:
        return kind_of(stream.read(tarfile.BLOCKSIZE))


def kind_of(content: bytes) -> str:
    """Tell from its first bytes what a file holds.

    Returns:
        ``zip``, ``tar``, ``packed`` (compressed, so presumably a tar), or "".
    """
    head = content[: tarfile.BLOCKSIZE]
    if head.startswith(zips.MAGIC):
        return "zip"
    if head.startswith(tuple(_UNPACKERS)):
        return "packed"
    try:
        tarfile.TarInfo.frombuf(head, tarfile.ENCODING, "surrogateescape")
    except tarfile.TarError:
        return ""
    return "tar"


def is_gzipped_dicom(head: bytes) -> bool:
    """Whether a file is one DICOM file that gzip has compressed.

    Args:
        head: its first `HEAD_BYTES`, or more.
    """
    if not head.startswith(_GZIP):
        return False
    unpacker = zlib.decompressobj(_GZIP_WBITS)
    try:
        start = unpacker.decompress(head[:HEAD_BYTES], _DICOM_START)
    except zlib.error:
        return False
    return start.endswith(b"DICM") and len(start) == _DICOM_START


def unpack_dicom(content: bytes) -> bytes:
    """Unpack a DICOM file that gzip has compressed; give any other file as it is.

    Raises:
        RejectError: ``too-large`` for more than `MAX_GZIP_BYTES`, or
            ``unreadable-file`` for damage.
    """
    if not is_gzipped_dicom(content):
        return content
    unpacker, unpacked = zlib.decompressobj(_GZIP_WBITS), io.BytesIO()
    try:
        for at in range(0, len(content), _CHUNK_BYTES):
            packed = content[at : at + _CHUNK_BYTES]
            while packed and not unpacker.eof:
                unpacked.write(unpacker.decompress(packed, _CHUNK_BYTES))
                packed = unpacker.unconsumed_tail
                if unpacked.tell() > MAX_GZIP_BYTES:
                    raise RejectError(
                        "too-large",
                        f"gzip unpacks it to more than {MAX_GZIP_BYTES:,} bytes",
                    )
    except zlib.error as error:
        raise RejectError(
            "unreadable-file", f"its gzip data are damaged: {error}"
        ) from error
    if not unpacker.eof:
        raise RejectError("unreadable-file", "its gzip data end too early")
    return unpacked.getvalue()


def lister() -> LimitedProcess:
    """The process in which tars are listed; close it. It starts when it is needed."""
    return LimitedProcess(extra_bytes=LIST_BYTES, timeout_s=LIST_S)


def list_members(
    path: Container, kind: str, process: LimitedProcess
) -> Iterator[tuple[str, int, int]]:
    """List the files in an archive, in its own order.

    Args:
        path: the archive.
        kind: as `archive_kind` tells, not "".
        process: in which a tar is listed, see `lister`.

    Yields:
        Name, unpacked size in bytes, and offset: of the local header in a zip, of
        the data in the (unpacked) tar.

    Raises:
        SourceError: the archive is a tar in the memory of this process.
    """
    for name, size, offset in _members(path, kind, process):
        if len(name) > _MAX_NAME:
            raise ValueError(f"a member has a name of {len(name):,} characters")
        yield name, size, offset


def _members(
    path: Container, kind: str, process: LimitedProcess
) -> Iterator[tuple[str, int, int]]:
    if kind == "zip":
        with open_container(path) as stream:
            yield from zips.list_zip(stream)
        return
    if isinstance(path, Remote):
        check_reachable([path.url])
    yield from process.iterate(_list_tar, path, kind)


def _list_tar(path: Container, kind: str) -> Iterator[tuple[str, int, int]]:
    with _open_tar(path, kind) as (tar, num_bytes):
        for info in _regular_members(tar, num_bytes):
            extend_timer((tarfile.BLOCKSIZE + info.size) / _MIN_LIST_RATE)
            yield info.name, info.size, info.offset_data


def read_tar_member(stream: IO[bytes], offset: int, size: int) -> bytes:
    """Read one member of an open, uncompressed tar.

    Args:
        stream: the archive.
        offset: where the member's bytes begin.
        size: its bytes.
    """
    stream.seek(offset)
    content = stream.read(size)
    if len(content) != size:
        raise EOFError(f"{len(content):,} of {size:,} bytes are there")
    return content


READERS = {"zip": zips.read_zip_member, "tar": read_tar_member}
"""How to read a member of an archive with a table of contents, by its kind."""


def read_packed_members(
    path: Container, offsets: Collection[int]
) -> Iterator[tuple[int, bytes]]:
    """Read some members of a compressed tar in one pass.

    Args:
        path: the archive.
        offsets: the wanted members, as `list_members` gives them.

    Yields:
        Offset and bytes, in the archive's order; stops after the last one wanted.
    """
    left = set(offsets)
    with _open_tar(path, "packed") as (tar, num_bytes):
        for info in _regular_members(tar, num_bytes):
            if info.offset_data in left:
                left.remove(info.offset_data)
                stream = tar.extractfile(info)
                assert stream is not None  # a regular member
                content = io.BytesIO()
                shutil.copyfileobj(stream, content, _CHUNK_BYTES)
                yield info.offset_data, content.getvalue()
            if not left:
                return
    raise EOFError(f"{len(left)} members are no longer there")


class _StrictTarInfo(tarfile.TarInfo):
    """Raises on a damaged header in the middle of a tar, where tarfile just stops."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _StrictTarInfo:
        try:
            return super().fromtarfile(tarfile_)
        except (
            tarfile.InvalidHeaderError,  # type: ignore[attr-defined]
            tarfile.TruncatedHeaderError,  # type: ignore[attr-defined]
        ) as error:
            if tarfile_.offset == 0:
                raise tarfile.ReadError(
                    "it is compressed, and holds neither a tar nor a DICOM file"
                ) from error
            raise tarfile.ReadError(f"damaged header: {error}") from error


@contextmanager
def _open_tar(path: Container, kind: str) -> Iterator[tuple[tarfile.TarFile, int]]:
    """Open a tar; also give its size as a file, bytes."""
    with open_container(path) as stream:
        num_bytes = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        options: Any = {"tarinfo": _StrictTarInfo, "bufsize": _CHUNK_BYTES}
        if kind == "tar":
            with tarfile.open(fileobj=stream, mode="r:", **options) as tar:
                yield tar, num_bytes
            return
        with (
            _unpacked(stream) as unpacked,
            tarfile.open(fileobj=unpacked, mode="r|", **options) as tar,
        ):
            yield tar, num_bytes


def _regular_members(tar: tarfile.TarFile, num_bytes: int) -> Iterator[tarfile.TarInfo]:
    """The members that are plain files, in the tar's order.

    A header is checked after tarfile has read it; only the limits of the process bound
    what that takes.

    Args:
        tar: just opened.
        num_bytes: size of the archive as a file.
    """
    max_header_bytes = _MAX_HEADER_BYTES + num_bytes
    max_bytes = _MAX_UNPACKED_BYTES + _MAX_UNPACKED_RATIO * num_bytes
    end = num_header_bytes = 0
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
        size = 0 if info.issparse() else info.size
        if not (0 <= size <= max_bytes and end < tar.offset <= max_bytes):
            raise tarfile.ReadError(
                f"a member of {size:,} bytes that ends at byte {tar.offset:,}; an "
                f"archive of {num_bytes:,} bytes holds {max_bytes:,} at most"
            )
        member_header_bytes = info.offset_data - end
        num_header_bytes += member_header_bytes
        for name, found, limit in (
            ("headers of a member, bytes", member_header_bytes, _MAX_EXTENSION_BYTES),
            ("headers, bytes", num_header_bytes, max_header_bytes),
            ("global header fields", len(tar.pax_headers), _MAX_GLOBAL_FIELDS),
        ):
            if found > limit:
                raise tarfile.ReadError(
                    f"{name}: {found:,}, at most {limit:,} are read"
                )
        end = tar.offset
        if info.isreg() and not info.issparse():
            yield info


class _XzReader(io.RawIOBase):
    """Unpacks an ``.xz`` of several streams, with zeros between them.

    `lzma.LZMAFile` ends at the first zeros, and takes any memory that it is told to.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._unpacker = lzma.LZMADecompressor(memlimit=_MAX_XZ_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = b""
        while not content:
            packed = b""
            if self._unpacker.eof:  # another stream may follow, after zeros
                packed = self._unpacker.unused_data.lstrip(b"\0")
                while not packed and (chunk := self._stream.read(_XZ_CHUNK_BYTES)):
                    packed = chunk.lstrip(b"\0")
                if not packed:
                    break
                self._unpacker = lzma.LZMADecompressor(memlimit=_MAX_XZ_BYTES)
            elif self._unpacker.needs_input:
                packed = self._stream.read(_XZ_CHUNK_BYTES)
                if not packed:
                    raise EOFError("its data end too early")
            content = self._unpacker.decompress(packed, len(buffer))
        buffer[: len(content)] = content
        return len(content)


_UNPACKERS: dict[bytes, Callable[[IO[bytes]], io.IOBase]] = {
    b"\x1f\x8b": lambda stream: gzip.GzipFile(fileobj=stream),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": _XzReader,
}
"""How to unpack a compressed file, by its first bytes."""


def _unpacked(stream: IO[bytes]) -> Any:
    head = stream.read(max(map(len, _UNPACKERS)))
    stream.seek(0)
    for magic, unpacker in _UNPACKERS.items():
        if head.startswith(magic):
            return unpacker(stream)
    raise tarfile.ReadError("it is no longer compressed")
