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
5. A member is in memory once while it is read. What else an archive asks memory for,
   an extended header or a dictionary, is bounded.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import IO, Any

from ichfast import zips
from ichfast.remote import Container

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
_CHUNK_BYTES = 2**20
_TAR_EXTENSIONS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
_MAX_EXTENSION_BYTES = 2**20
"""Largest extended header of a tar; tarfile reads them whole."""
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


class _StrictTarInfo(tarfile.TarInfo):
    """Raises on a damaged header in the middle, where tarfile just stops."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _StrictTarInfo:
        try:
            return super().fromtarfile(tarfile_)
        except (
            tarfile.InvalidHeaderError,  # type: ignore[attr-defined]
            tarfile.TruncatedHeaderError,  # type: ignore[attr-defined]
        ) as error:
            raise tarfile.ReadError(f"damaged header: {error}") from error

    @classmethod
    def frombuf(
        cls, buf: bytes | bytearray, encoding: str, errors: str
    ) -> _StrictTarInfo:
        info = super().frombuf(buf, encoding, errors)
        if info.type in _TAR_EXTENSIONS and info.size > _MAX_EXTENSION_BYTES:
            raise tarfile.ReadError(f"an extended header of {info.size:,} bytes")
        return info


@contextmanager
def _open_tar(path: Container, kind: str) -> Iterator[tarfile.TarFile]:
    with path.open("rb") as stream:
        if kind == "tar":
            with tarfile.open(fileobj=stream, mode="r:", tarinfo=_StrictTarInfo) as tar:
                yield tar
            return
        with (
            _unpacked(stream) as unpacked,
            tarfile.open(
                fileobj=unpacked,
                mode="r|",
                bufsize=_CHUNK_BYTES,
                tarinfo=_StrictTarInfo,
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
                while not packed and (chunk := self._stream.read(_CHUNK_BYTES)):
                    packed = chunk.lstrip(b"\0")
                if not packed:
                    break
                self._unpacker = lzma.LZMADecompressor(memlimit=_MAX_XZ_BYTES)
            elif self._unpacker.needs_input:
                packed = self._stream.read(_CHUNK_BYTES)
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
