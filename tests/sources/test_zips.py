"""A zip's table of contents is the one that `zipfile` finds, read in no memory."""

from __future__ import annotations

import io
import random
import struct
import tracemalloc
import zipfile
from collections.abc import Callable

import pytest

from ichfast.sources.archives import BROKEN
from ichfast.sources.zips import list_zip, read_zip_member

CONTENTS = {
    "b/2.dcm": b"two" * 99,
    "folder/": b"",
    "a.dcm": b"",
    "\u00e4.dcm": b"umlaut",
    "\u9aa8.dcm": b"no cp437 letter",
    "nul\0hidden": b"x",
    "": b"nameless",
}

Listed = list[tuple[str, int, int]]


def plain(
    method: int = zipfile.ZIP_STORED,
    comment: bytes = b"",
    info: type[zipfile.ZipInfo] = zipfile.ZipInfo,
) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in CONTENTS.items():
            archive.writestr(info(name), content, method)
        archive.comment = comment
    return packed.getvalue()


class OldInfo(zipfile.ZipInfo):
    """Writes names without the UTF-8 flag, like old programs."""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:
        return self.filename.encode("cp437", "replace"), self.flag_bits


def with_zip64(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A zip with every number in a ZIP64 field, and a ZIP64 end."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 4)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    content = plain(zipfile.ZIP_DEFLATED)
    assert b"PK\6\6" in content
    return content


BUILDERS: dict[str, Callable[[pytest.MonkeyPatch], bytes]] = {
    "stored": lambda _: plain(),
    "deflated": lambda _: plain(zipfile.ZIP_DEFLATED),
    "comment": lambda _: plain(comment=b"c" * 0xFFFF),
    "prefix": lambda _: b"#!/bin/sh\n" * 99 + plain(),
    "cp437": lambda _: plain(info=OldInfo),
    "zip64": with_zip64,
    "zip64 after a prefix": lambda patch: b"prefix" + with_zip64(patch),
    "no member": lambda _: b"PK\5\6" + bytes(18),
}


def by_zipfile(content: bytes) -> Listed:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [
            (member.filename, member.file_size, member.header_offset)
            for member in archive.infolist()
            if not member.filename.endswith("/")
        ]


def by_list_zip(content: bytes) -> Listed:
    return list(list_zip(io.BytesIO(content)))


@pytest.mark.parametrize("name", BUILDERS)
def test_the_table_is_the_one_that_zipfile_finds(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = BUILDERS[name](monkeypatch)
    assert by_list_zip(content) == by_zipfile(content)
    assert len(by_list_zip(content)) == (
        0 if name == "no member" else len(CONTENTS) - 1
    )


@pytest.mark.parametrize("name", BUILDERS)
def test_members_are_read_from_where_they_are_listed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.BytesIO(BUILDERS[name](monkeypatch))
    listed = list(list_zip(stream))
    found = [read_zip_member(stream, at, size) for _, size, at in listed]
    files = [content for key, content in CONTENTS.items() if not key.endswith("/")]
    assert found == (files if found else [])


@pytest.mark.parametrize("name", BUILDERS)
def test_a_damaged_table_is_an_error_or_reads_as_in_zipfile(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(name)
    whole = BUILDERS[name](monkeypatch)
    num_refused = 0
    for _ in range(1500):
        cut = draw.choice([len(whole), draw.randrange(1, len(whole))])
        content = bytearray(whole[:cut])
        for _ in range(draw.randrange(4)):
            # Most of the damage near the end, where the table is.
            at = min(draw.randrange(len(content)), draw.randrange(2000)) + 1
            content[-min(at, len(content))] = draw.randrange(256)
        try:
            found = by_list_zip(bytes(content))
        except BROKEN:
            num_refused += 1
            continue
        try:
            expected = by_zipfile(bytes(content))
        except (*BROKEN, NotImplementedError):
            continue  # it also refuses unknown versions
        assert found == expected
    assert num_refused


def test_a_long_table_is_never_in_memory() -> None:
    packed = io.BytesIO()
    num_members = 4000
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(num_members):
            archive.writestr(f"stage_2_train/ID_{number:09}.dcm", b"")
    stream = io.BytesIO(packed.getvalue())
    tracemalloc.start()
    try:
        assert sum(1 for _ in list_zip(stream)) == num_members
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200_000  # the end is read with room for a comment of 64 KiB


def end_of(content: bytes) -> int:
    return content.rindex(b"PK\5\6")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[:-30], "no table of contents"),
        (lambda c: c[: end_of(c) + 12], "no table of contents"),
        (lambda c: put(c, end_of(c) + 4, "<H", 1), "several parts"),
        (lambda c: put(c, end_of(c) + 12, "<I", 2**31), "larger than the file"),
        (lambda c: put(c, c.index(b"PK\1\2") + 42, "<I", len(c)), "lies outside it"),
        (lambda c: put(c, end_of(c) + 16, "<I", len(c)), "lies outside it"),
        (lambda c: put(c, c.index(b"PK\1\2") + 24, "<I", 2**32 - 1), "ZIP64 field"),
        (lambda c: c.replace(b"PK\1\2", b"PK\1\3"), "table of contents is damaged"),
    ],
)
def test_the_message_names_the_damage(
    change: Callable[[bytes], bytes], message: str
) -> None:
    with pytest.raises(zipfile.BadZipFile, match=message):
        by_list_zip(change(plain()))


def put(content: bytes, at: int, layout: str, number: int) -> bytes:
    changed = bytearray(content)
    struct.pack_into(layout, changed, at, number)
    return bytes(changed)


def test_a_size_beyond_63_bits_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = with_zip64(monkeypatch)
    at = content.index(b"PK\1\2")
    name_bytes = len("b/2.dcm")
    field = at + 46 + name_bytes + 4
    with pytest.raises(zipfile.BadZipFile, match="promise more than it can hold"):
        by_list_zip(put(content, field, "<Q", 2**63))


def test_a_failing_disk_is_not_reported_as_damage() -> None:
    class FailingDisk(io.BytesIO):
        def read(self, _size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        list(list_zip(FailingDisk(plain())))


def test_members_that_overlap_are_refused() -> None:
    content = bytearray(plain())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        infos = archive.infolist()
    packed = sum(info.compress_size for info in infos)
    table = content.index(b"PK\1\2")
    assert packed <= table
    put_size = struct.Struct("<I")
    # The first member claims all packed bytes, which leaves none for the others.
    put_size.pack_into(content, table + 20, table)
    with pytest.raises(zipfile.BadZipFile, match="its members overlap"):
        by_list_zip(bytes(content))


def test_a_size_that_deflate_cannot_reach_is_refused() -> None:
    content = bytearray(plain())
    table = content.index(b"PK\1\2")
    struct.pack_into("<I", content, table + 24, 1033 * table)
    with pytest.raises(zipfile.BadZipFile, match="promise more than it can hold"):
        by_list_zip(bytes(content))


def test_a_member_of_zeros_fits_what_deflate_can_pack() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("zeros", bytes(10**7))
    assert [size for _, size, _ in list_zip(stream)] == [10**7]


def test_empty_deflate_blocks_are_not_read_to_their_end() -> None:
    local = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 8, 0, 0, 0, 0, 1, 0, 0)
    stream = io.BytesIO(local + b"\0\0\0\xff\xff" * 10**6)
    with pytest.raises(EOFError, match="hold too little"):
        read_zip_member(stream, 0, 1)
    assert stream.tell() < 2**18
