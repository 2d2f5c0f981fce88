"""What a small archive must not be able to ask for; see also test_sources.py."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ichfast.errors import SourceError
from ichfast.sources import archives
from ichfast.sources.archives import list_members, lister
from ichfast.sources.remote import connect_to
from ichfast.system.limits import LimitedProcess, LimitError


@pytest.fixture(scope="module")
def process() -> Iterator[LimitedProcess]:
    with lister() as process:
        yield process


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
    """A sparse member of 0 bytes; its map has `num_blocks` blocks after its header."""
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
    "many extended headers of one member": pax(("a", "b" * 2**19)) * 3 + header(),
    "many global fields": pax(
        *((f"{k:03}", "b") for k in range(300)), kind=tarfile.XGLTYPE
    )
    + header(),
    "a long name": header("l", tarfile.GNUTYPE_LONGNAME, 4096)
    + b"n" * 4095
    + b"\0"
    + header(),
    "a sparse map without end": sparse_map(3000),
}


def write_tar(path: Path, content: bytes) -> str:
    """Write a tar, packed as its name says.

    Returns:
        Its kind.
    """
    whole = content + bytes(1024)
    if path.suffix == ".gz":
        whole = gzip.compress(whole)
    if path.suffix == ".bz2":
        whole = bz2.compress(whole)
    path.write_bytes(whole)
    return "tar" if path.suffix == ".tar" else "packed"


def listed(
    path: Path, content: bytes, process: LimitedProcess
) -> Sequence[tuple[str, int, int]]:
    return [*list_members(path, write_tar(path, content), process)]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_tar_cannot_ask_for_much(
    tmp_path: Path, bomb: str, suffix: str, process: LimitedProcess
) -> None:
    with pytest.raises(archives.BROKEN) as caught:
        listed(tmp_path / f"a.{suffix}", BOMBS[bomb], process)
    # It is refused for what it claims, before it reaches a limit.
    assert not isinstance(caught.value, LimitError)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_header_that_takes_hours_is_ended_by_the_timer(
    tmp_path: Path, suffix: str
) -> None:
    digits = pax(("a", "1" * 10**5)) + header()  # CVE-2024-6232: quadratic
    with (
        LimitedProcess(extra_bytes=archives.LIST_BYTES, timeout_s=1) as process,
        pytest.raises(LimitError, match="processor time"),
    ):
        listed(tmp_path / f"a.{suffix}", digits, process)


@pytest.mark.slow
def test_a_header_that_takes_memory_is_ended_by_the_limit(
    tmp_path: Path, process: LimitedProcess
) -> None:
    path = tmp_path / "a.tar.gz"
    zeros = gzip.compress(bytes(2**24))
    name = header("l", tarfile.GNUTYPE_LONGNAME, archives.LIST_BYTES)
    path.write_bytes(gzip.compress(name) + zeros * (archives.LIST_BYTES // 2**24))
    with pytest.raises(LimitError, match="more than 512 MiB of memory"):
        list(list_members(path, "packed", process))
    assert len(listed(tmp_path / "b.tar", header(), process)) == 1


def test_a_sparse_map_that_is_cut_is_damage(
    tmp_path: Path, process: LimitedProcess
) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(sparse_map(2)[:1024])
    with pytest.raises(archives.BROKEN):
        list(list_members(path, "tar", process))


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_sparse_members_are_stepped_over(
    tmp_path: Path, suffix: str, process: LimitedProcess
) -> None:
    version = ("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")
    newer = pax(*version, ("GNU.sparse.realsize", str(2**40)))
    newer += header("s", size=1024) + filled(b"1\n0\n512\n") + b"d" * 512
    content = header("a") + sparse_map(40) + newer + header("b")
    members = listed(tmp_path / f"a.{suffix}", content, process)
    assert [(name, size) for name, size, _ in members] == [("a", 0), ("b", 0)]


def test_the_extended_headers_of_each_member_are_counted_alone(
    tmp_path: Path, process: LimitedProcess
) -> None:
    content = (pax(("a", "b" * 2**19)) + header()) * 5
    assert len(listed(tmp_path / "a.tar.gz", content, process)) == 5


def members_of(path: Path, kind: str) -> list[tuple[str, int, int]]:
    """Members as the process lists them, but listed here, with patched limits."""
    return list(archives._list_tar(path, kind))


def test_headers_are_few_for_the_bytes_of_an_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_MAX_HEADER_BYTES", 2**16)
    content = header() * 10_000
    whole, packed = tmp_path / "a.tar", tmp_path / "a.tar.gz"
    assert len(members_of(whole, write_tar(whole, content))) == 10_000
    with pytest.raises(tarfile.ReadError, match="headers, bytes: "):
        members_of(packed, write_tar(packed, content))


def test_a_tar_does_not_unpack_to_much_more_than_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_MAX_UNPACKED_BYTES", 2**20)
    content = (header(size=2**20) + bytes(2**20)) * 20
    paths = [tmp_path / f"a.{suffix}" for suffix in ("tar", "tar.gz", "tar.bz2")]
    kinds = [write_tar(path, content) for path in paths]
    assert len(members_of(paths[0], kinds[0])) == 20
    assert len(members_of(paths[1], kinds[1])) == 20
    with pytest.raises(tarfile.ReadError, match="that ends at byte"):
        members_of(paths[2], kinds[2])


def test_an_xz_of_many_streams_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a"))
    empty = lzma.compress(b"")
    content = empty * 2**12 + lzma.compress(stream.getvalue())
    path = tmp_path / "a.tar.xz"
    path.write_bytes(content)
    num_copied = 0
    decompressor = lzma.LZMADecompressor

    class Counting:
        """Counts the bytes that are given to decompressors."""

        def __init__(self, memlimit: int) -> None:
            self._inner = decompressor(memlimit=memlimit)

        def __getattr__(self, name: str) -> object:
            return getattr(self._inner, name)

        def decompress(self, packed: bytes, max_length: int) -> bytes:
            nonlocal num_copied
            num_copied += len(packed)
            return self._inner.decompress(packed, max_length)

    monkeypatch.setattr(lzma, "LZMADecompressor", Counting)
    assert [name for name, _, _ in members_of(path, "packed")] == ["a"]
    # At the end of each stream, what is left of a chunk is given once more.
    assert num_copied < 2**12 * archives._XZ_CHUNK_BYTES


def test_a_tar_in_the_memory_of_this_process_is_refused(
    process: LimitedProcess,
) -> None:
    fsspec = pytest.importorskip("fsspec", reason="needs the extra cloud")
    fsspec.filesystem("memory").pipe_file("/a.tar", header() + bytes(1024))
    container = connect_to("memory://a.tar")
    with pytest.raises(SourceError, match="lies in the memory of this process"):
        list(list_members(container, "tar", process))
