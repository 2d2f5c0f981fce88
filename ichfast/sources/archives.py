"""Archives read in place: a table of contents, then members by their offset.

Promises:

1. A member of a ``.zip`` or ``.tar`` costs one seek, however large the archive;
   its table of contents is read once, by `list_members`, and not kept. A compressed
   tar has no such table: reading some of its members is one pass, up to the last of
   them.
2. Names are labels, never paths, so ``../`` and absolute names are harmless.
   Links, devices and sparse members of a tar are left out.
3. Nothing is unpacked beyond the size that was listed, whatever the data say.
4. Damage is never silent: what cannot be trusted raises one of `BROKEN`.
5. A member is in memory once while it is read. What else an archive asks memory or
   time for, headers, names or a dictionary, is bounded: a few bytes do not unpack to
   work for hours.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import IO, Any

from ichfast.sources import zips
from ichfast.sources.remote import Container

SUFFIXES = (
    *(".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz"),
    *(".tar.bz2", ".tbz", ".tbz2"),
)
"""Names of files that are worth a look inside."""

BROKEN = (
    *(OSError, EOFError, ValueError, RuntimeError, struct.error),
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
"""What this module and the standard library raise on damage."""

_PACKED_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")
_CHUNK_BYTES, _PACKED_CHUNK_BYTES = 2**20, 2**14
"""What is read at a time; less of an ``.xz``, whose rest is copied at each end of a
stream, and 32 bytes can be one."""
_TAR_EXTENSIONS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
_MAX_EXTENSION_BYTES = 2**20
"""Most bytes of extended headers of one member of a tar; tarfile reads them whole."""
_MAX_GLOBAL_BYTES = 2**16
"""Most bytes of extended headers for all members; tarfile copies them to each."""
_MAX_HEADER_BYTES = 2**26
"""Most bytes of all headers of a tar, besides as many as it has packed bytes: those
of 130,000 members, and more if there is something in them. Each unit of work reads
a compressed tar from its beginning."""
_MAX_NAME = 2**10
"""Longest name of a member, characters: macOS takes no longer path. A listing has
2**14 of them in memory, and each character can take ten bytes."""
_MAX_DIGITS = 2**8
"""Longest run of digits in an extended header: the time that tarfile takes for one
grows with its square (CVE-2024-6232)."""
_MAX_UNPACKED_BYTES, _MOST_UNPACKED_RATIO = 2**30, 1100
"""A tar may unpack to so many bytes, besides so many for each packed one: gzip cannot
reach 1,033, bzip2 can reach a million."""
_MAX_XZ_BYTES = 2**28
"""Memory that unpacking an ``.xz`` may take; ``xz -9`` wants a quarter of it."""


def archive_kind(path: Container) -> str:
    """Say by its first bytes what a file is: see `kind_of`."""
    with path.open("rb") as stream:
        return kind_of(stream.read(tarfile.BLOCKSIZE))


def kind_of(content: bytes) -> str:
    """Say by its first bytes what a file holds.

    Returns:
        ``zip``, ``tar``, ``packed`` (compressed, so presumably a tar), or "".
    """
    head = content[: tarfile.BLOCKSIZE]
    if head.startswith(zips.MAGIC):
        return "zip"
    if head.startswith(_PACKED_MAGIC):
        return "packed"
    try:
        tarfile.TarInfo.frombuf(head, tarfile.ENCODING, "surrogateescape")
    except tarfile.TarError:
        return ""
    return "tar"


def list_members(path: Container, kind: str) -> Iterator[tuple[str, int, int]]:
    """List the files in an archive, in its own order.

    Args:
        path: the archive.
        kind: as `archive_kind` says, not "".

    Yields:
        Name, unpacked size in bytes, and offset: of the local header in a zip, of
        the data in the (unpacked) tar.
    """
    for name, size, offset in _members(path, kind):
        if len(name) > _MAX_NAME:
            raise ValueError(f"a member has a name of {len(name):,} characters")
        yield name, size, offset


def _members(path: Container, kind: str) -> Iterator[tuple[str, int, int]]:
    if kind == "zip":
        with path.open("rb") as stream:
            yield from zips.list_zip(stream)
    else:
        with _open_tar(path, kind) as tar:
            for info in _regular_members(tar):
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
    with _open_tar(path, "packed") as tar:
        for info in _regular_members(tar):
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


class _BoundedTar(tarfile.TarFile):
    """Counts what its headers take.

    Args:
        options: as of `tarfile.TarFile`.
        num_bytes: of the archive, packed.
    """

    def __init__(self, *options: Any, num_bytes: int, **more_options: Any) -> None:
        self._most_header_bytes = _MAX_HEADER_BYTES + num_bytes
        self._most_bytes = _MAX_UNPACKED_BYTES + _MOST_UNPACKED_RATIO * num_bytes
        self._num_header_bytes = self._num_global_bytes = self._num_extension_bytes = 0
        super().__init__(*options, **more_options)

    def count_header(self, info: tarfile.TarInfo) -> None:
        """Count a header before anything of what follows is read.

        Raises:
            ReadError: all of them are too large.
        """
        extension_bytes = info.size if info.type in _TAR_EXTENSIONS else 0
        if extension_bytes < 0:
            raise tarfile.ReadError(f"an extended header of {extension_bytes:,} bytes")
        if info.type in _TAR_EXTENSIONS:
            self._num_extension_bytes += extension_bytes
        else:
            self._num_extension_bytes = 0
        if info.type == tarfile.XGLTYPE:
            self._num_global_bytes += extension_bytes
        self._num_header_bytes += tarfile.BLOCKSIZE + extension_bytes
        for kind, num_bytes, most in (
            ("extended", self._num_extension_bytes, _MAX_EXTENSION_BYTES),
            ("global", self._num_global_bytes, _MAX_GLOBAL_BYTES),
            ("all", self._num_header_bytes, self._most_header_bytes),
        ):
            if num_bytes > most:
                raise tarfile.ReadError(
                    f"{kind} headers of {num_bytes:,} bytes, at most {most:,} are read"
                )

    def check_place(self, info: tarfile.TarInfo) -> None:
        """Check that a member can lie where its header says.

        Raises:
            ReadError: it ends before it begins, or beyond what can be unpacked.
        """
        size = 0 if info.issparse() else info.size
        end: int = self.offset
        if not (0 <= size <= self._most_bytes and info.offset < end):
            raise tarfile.ReadError(f"a member of {size:,} bytes")
        if end > self._most_bytes:
            raise tarfile.ReadError(f"it unpacks to {end:,} bytes or more")


class _Ahead:
    """Stands for a tar's stream until what was read ahead of it is taken."""

    def __init__(self, tar: _BoundedTar, content: bytes) -> None:
        self._tar, self._stream, self._content = tar, tar.fileobj, content

    def read(self, num_bytes: int) -> bytes:
        assert num_bytes >= len(self._content)
        self._tar.fileobj = self._stream
        return self._content


class _StrictTarInfo(tarfile.TarInfo):
    """Raises on a damaged header in the middle, where tarfile just stops.

    Where tarfile would read without end, this class steps in: all methods of a
    header's own are private there.
    """

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _StrictTarInfo:
        assert isinstance(tarfile_, _BoundedTar)
        try:
            info = super().fromtarfile(tarfile_)
        except (
            tarfile.InvalidHeaderError,  # type: ignore[attr-defined]
            tarfile.TruncatedHeaderError,  # type: ignore[attr-defined]
        ) as error:
            raise tarfile.ReadError(f"damaged header: {error}") from error
        tarfile_.check_place(info)
        return info

    def _proc_member(self, tar: _BoundedTar) -> tarfile.TarInfo:
        tar.count_header(self)
        return super()._proc_member(tar)  # type: ignore[misc]

    def _proc_pax(self, tar: _BoundedTar) -> tarfile.TarInfo:
        stream = tar.fileobj
        assert stream is not None
        content = stream.read(self._block(self.size))  # type: ignore[attr-defined]
        if max(map(len, re.findall(rb"\d+", content)), default=0) > _MAX_DIGITS:
            raise tarfile.ReadError("an extended header of digits")
        tar.fileobj = _Ahead(tar, content)  # type: ignore[assignment]
        return super()._proc_pax(tar)  # type: ignore[misc]

    def _proc_sparse(self, tar: _BoundedTar) -> tarfile.TarInfo:
        """Step over the map of a sparse member, of which tarfile would keep all."""
        _, is_continued, size = self._sparse_structs  # type: ignore[attr-defined]
        stream = tar.fileobj
        assert stream is not None
        num_blocks = 0
        while is_continued:
            block = stream.read(tarfile.BLOCKSIZE)
            num_blocks += 1
            if (
                len(block) < tarfile.BLOCKSIZE
                or num_blocks * tarfile.BLOCKSIZE > _MAX_EXTENSION_BYTES
            ):
                raise tarfile.ReadError("the map of a sparse member has no end")
            is_continued = bool(block[504])
        self.sparse = b""  # not None, so that it counts as sparse
        self.offset_data = stream.tell()
        tar.offset = self.offset_data + self._block(self.size)  # type: ignore[attr-defined]
        self.size = size
        return self

    def _proc_gnusparse_10(self, member: tarfile.TarInfo, *_: object) -> None:
        """Leave the map, part of the member's data, where it is."""
        member.sparse = b""


@contextmanager
def _open_tar(path: Container, kind: str) -> Iterator[tarfile.TarFile]:
    with path.open("rb") as stream:
        num_bytes = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        options: Any = {"tarinfo": _StrictTarInfo, "num_bytes": num_bytes}
        if kind == "tar":
            with _BoundedTar.open(fileobj=stream, mode="r:", **options) as tar:
                yield tar
            return
        with (
            _unpacked(stream) as unpacked,
            _BoundedTar.open(
                fileobj=unpacked, mode="r|", bufsize=_CHUNK_BYTES, **options
            ) as tar,
        ):
            yield tar


class _XzReader(io.RawIOBase):
    """Unpacks an ``.xz`` in bounded memory; lzma's own reader takes what it says."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._unpacker = lzma.LZMADecompressor(memlimit=_MAX_XZ_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = b""
        while not content:
            packed = b""
            if self._unpacker.eof:  # another stream may follow, behind zeros
                packed = self._unpacker.unused_data.lstrip(b"\0")
                while not packed and (chunk := self._stream.read(_PACKED_CHUNK_BYTES)):
                    packed = chunk.lstrip(b"\0")
                if not packed:
                    break
                self._unpacker = lzma.LZMADecompressor(memlimit=_MAX_XZ_BYTES)
            elif self._unpacker.needs_input:
                packed = self._stream.read(_PACKED_CHUNK_BYTES)
                if not packed:
                    raise EOFError("its data end too early")
            content = self._unpacker.decompress(packed, len(buffer))
        buffer[: len(content)] = content
        return len(content)


def _unpacked(stream: IO[bytes]) -> gzip.GzipFile | bz2.BZ2File | _XzReader:
    head = stream.read(3)
    stream.seek(0)
    if head == _PACKED_MAGIC[1]:
        return bz2.BZ2File(stream)
    if head.startswith(_PACKED_MAGIC[0]):
        return gzip.GzipFile(fileobj=stream)
    return _XzReader(stream)


def _regular_members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (info := tar.next()) is not None:
        # tarfile would keep every header it has seen.
        tar.members.clear()  # type: ignore[attr-defined]
        if info.isreg() and not info.issparse():
            yield info
