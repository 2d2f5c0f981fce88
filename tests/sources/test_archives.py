"""What a small archive must not be able to ask for: see also test_sources.py."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from ichfast.sources import archives
from ichfast.sources.archives import list_members


def header(
    name: str = "a", kind: bytes = tarfile.REGTYPE, size: int = 0, change: bytes = b""
) -> bytes:
    """A header of a tar; `change` replaces what begins at byte 482."""
    info = tarfile.TarInfo(name)
    info.type = kind
    content = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    content[124:136] = (b"\xff" if size < 0 else b"\x80") + size.to_bytes(
        11, "big", signed=True
    )
    content[482 : 482 + len(change)] = change
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content)
    return bytes(content)


def filled(content: bytes) -> bytes:
    """`content` to the end of a block."""
    return content + bytes(-len(content) % tarfile.BLOCKSIZE)


def pax(*records: tuple[str, str], kind: bytes = tarfile.XHDTYPE) -> bytes:
    """An extended header; each record is of less than 94 bytes, or more than 99."""
    content = b""
    for name, value in records:
        text = f" {name}={value}\n".encode()
        num_digits = len(str(len(text) + 2))
        content += str(len(text) + num_digits).encode() + text
    return header("pax", kind, len(content)) + filled(content)


def sparse_map(num_blocks: int) -> bytes:
    """A sparse member of 0 bytes, with a map of so many blocks besides its header."""
    block = (b"%011o\0" % 512 * 42).ljust(504, b"\0")
    blocks = [block + bytes([at + 1 < num_blocks]) for at in range(num_blocks)]
    return header("s", tarfile.GNUTYPE_SPARSE, 0, b"\1") + b"".join(map(filled, blocks))


BOMBS = {
    "a member of 2**60 bytes": header(size=2**60),
    "a member of 2**80 bytes": header(size=2**80),
    "a member of less than nothing": header() + header(size=-1024),
    "a folder of less than nothing": header("d", tarfile.DIRTYPE, -1),
    "an extended header of less than nothing": header("l", tarfile.XHDTYPE, -1024),
    "a pax size of less than nothing": pax(("size", "-1536")) + header(),
    "a pax size of 200 digits": pax(("size", "9" * 200)) + header(),
    "a sparse size of a file that is not": pax(("GNU.sparse.realsize", "9" * 30))
    + header(),
    "digits": pax(("a", "1" * 10**6)) + header(),
    "many extended headers of one member": pax(("a", "b" * 2**19)) * 3 + header(),
    "many global headers": (pax(("a", "b" * 2**12), kind=tarfile.XGLTYPE) + header())
    * 20,
    "a long name": header("l", tarfile.GNUTYPE_LONGNAME, 4096)
    + b"n" * 4095
    + b"\0"
    + header(),
    "a sparse map without end": sparse_map(3000),
}


def listed(path: Path, content: bytes) -> Sequence[tuple[str, int, int]]:
    """List a tar, packed as its name says."""
    whole = content + bytes(1024)
    if path.suffix == ".gz":
        whole = gzip.compress(whole)
    if path.suffix == ".bz2":
        whole = bz2.compress(whole)
    path.write_bytes(whole)
    return [*list_members(path, "tar" if path.suffix == ".tar" else "packed")]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_tar_cannot_ask_for_much(tmp_path: Path, bomb: str, suffix: str) -> None:
    started_s = time.monotonic()
    with pytest.raises(archives.BROKEN):
        listed(tmp_path / f"a.{suffix}", BOMBS[bomb])
    assert time.monotonic() - started_s < 5


def test_a_sparse_map_that_is_cut_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(sparse_map(2)[:1024])
    with pytest.raises(tarfile.ReadError, match="sparse member"):
        [*list_members(path, "tar")]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_sparse_members_are_stepped_over(tmp_path: Path, suffix: str) -> None:
    version = ("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")
    newer = pax(*version, ("GNU.sparse.realsize", str(2**40)))
    newer += header("s", size=1024) + filled(b"1\n0\n512\n") + b"d" * 512
    content = header("a") + sparse_map(40) + newer + header("b")
    members = listed(tmp_path / f"a.{suffix}", content)
    assert [(name, size) for name, size, _ in members] == [("a", 0), ("b", 0)]


def test_what_a_member_has_of_extended_headers_is_counted_for_each_alone(
    tmp_path: Path,
) -> None:
    content = (pax(("a", "b" * 2**19)) + header()) * 5
    assert len(listed(tmp_path / "a.tar.gz", content)) == 5


def test_headers_are_few_for_the_bytes_of_an_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_MAX_HEADER_BYTES", 2**16)
    content = header() * 10_000
    assert len(listed(tmp_path / "a.tar", content)) == 10_000
    with pytest.raises(tarfile.ReadError, match="all headers of"):
        listed(tmp_path / "a.tar.gz", content)


def test_a_tar_does_not_unpack_to_much_more_than_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_MAX_UNPACKED_BYTES", 2**20)
    content = (header(size=2**20) + bytes(2**20)) * 20
    assert len(listed(tmp_path / "a.tar", content)) == 20
    assert len(listed(tmp_path / "a.tar.gz", content)) == 20
    with pytest.raises(tarfile.ReadError, match="it unpacks to"):
        listed(tmp_path / "a.tar.bz2", content)


def test_an_xz_of_many_streams_takes_no_time(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a"))
    content = lzma.compress(b"") * 2**18 + lzma.compress(stream.getvalue())
    path = tmp_path / "a.tar.xz"
    path.write_bytes(content)
    started_s = time.monotonic()
    assert [name for name, _, _ in list_members(path, "packed")] == ["a"]
    assert time.monotonic() - started_s < 4
