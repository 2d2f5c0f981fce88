"""Every entry is listed once, in one order, and read from where it lies."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import random
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ichfast.errors import RejectError, SourceError
from ichfast.sources import archives, sources
from ichfast.sources.listing import Entry
from ichfast.sources.sources import list_entries, read_entries
from ichfast.sources.walk import find_files

CONTENTS = {
    "b/2.dcm": b"two",
    "b/10.dcm": b"ten" * 70_000,
    "B.dcm": b"capital",
    "a": b"",
    "\u00e4.dcm": b"umlaut",
}
ARCHIVES = ("zip", "tar", "tar.gz", "tar.xz", "tar.bz2")


def write_archive(path: Path, contents: dict[str, bytes]) -> Path:
    """Pack `contents` in the order given."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
        return path
    mode = path.name.partition(".tar")[2].replace(".", ":")
    with tarfile.open(path, f"w{mode}") as tar:  # type: ignore[call-overload]
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_folder(path: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def read_all(entries: Sequence[Entry]) -> dict[str, bytes | str]:
    """For each key its bytes, or the code of its rejection."""
    return {
        entry.key: found.code if isinstance(found, RejectError) else found
        for entry, found in read_entries(entries)
    }


def test_a_folder_is_listed_in_code_point_order(tmp_path: Path) -> None:
    entries = list_entries([write_folder(tmp_path, CONTENTS)])
    assert [e.key for e in entries] == [
        *("B.dcm", "a", "b/10.dcm", "b/2.dcm", "\u00e4.dcm"),
    ]
    assert [e.size for e in entries] == [7, 0, 210_000, 3, 6]
    assert read_all(entries) == CONTENTS


@pytest.mark.parametrize("suffix", ARCHIVES)
def test_an_archive_gives_what_a_folder_gives(tmp_path: Path, suffix: str) -> None:
    path = write_archive(tmp_path / f"heads.{suffix}", CONTENTS)
    entries = list_entries([path])
    assert [e.key for e in entries] == sorted(f"heads.{suffix}/{k}" for k in CONTENTS)
    assert read_all(entries) == {f"{path.name}/{k}": v for k, v in CONTENTS.items()}


@pytest.mark.parametrize("suffix", ARCHIVES)
def test_any_part_of_an_archive_can_be_read_alone(tmp_path: Path, suffix: str) -> None:
    write_archive(tmp_path / f"heads.{suffix}", CONTENTS)
    entries = list_entries([tmp_path])
    for entry in entries:
        assert read_all([entry]) == {entry.key: CONTENTS[entry.member]}
    backwards = entries[:0:-2]
    assert len(read_all(backwards)) == len(backwards) == 2


def test_sources_are_kept_apart_and_in_the_order_given(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "x.tar.gz", {"m": b"1"})
    file = tmp_path / "y"
    file.write_bytes(b"2")
    entries = list_entries([file, archive, archive])
    assert [(e.source, e.key) for e in entries] == [
        *((0, "y"), (1, "x.tar.gz/m"), (2, "x.tar.gz/m")),
    ]
    assert [found for _, found in read_entries(entries)] == [b"2", b"1", b"1"]


def test_each_archive_is_opened_once_for_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("p.tar.xz", "q.tar.xz"):
        write_archive(tmp_path / name, CONTENTS)
    entries = list_entries([tmp_path])
    opened: list[str] = []
    original = archives.read_packed_members

    def counted(path: Path, offsets: list[int]) -> object:
        opened.append(path.name)
        return original(path, offsets)

    monkeypatch.setattr(archives, "read_packed_members", counted)
    assert len(read_all(entries)) == 10
    assert opened == ["p.tar.xz", "q.tar.xz"]


def test_hidden_names_are_left_out(tmp_path: Path) -> None:
    names = ["seen", ".hidden", ".git/config", "__MACOSX/._seen"]
    write_folder(tmp_path / "f", dict.fromkeys(names, b"x"))
    write_archive(tmp_path / "f" / "z.zip", dict.fromkeys(names, b"x"))
    keys = [e.key for e in list_entries([tmp_path / "f"])]
    assert keys == ["seen", "z.zip/seen"]


def test_links_are_followed_but_loops_end(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", {"a/1": b"1"})
    (folder / "a" / "up").symlink_to(folder)
    (folder / "self").symlink_to("self")
    (folder / "nowhere").symlink_to("missing")
    (tmp_path / "elsewhere").write_bytes(b"2")
    (folder / "b").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(folder / "pipe")
    assert read_all(list_entries([folder])) == {"a/1": b"1", "b": b"2"}


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz"])
def test_hostile_member_names_are_only_labels(tmp_path: Path, suffix: str) -> None:
    names = ["../../up", "/absolute", "a/../../b", "line\nbreak", "n" * 300]
    path = write_archive(tmp_path / f"h.{suffix}", {n: n.encode() for n in names})
    before = sorted(tmp_path.rglob("*"))
    found = read_all(list_entries([path]))
    assert sorted(found.values(), key=str) == sorted(
        (n.encode() for n in names), key=str
    )
    assert f"h.{suffix}/line\\nbreak" in found
    assert sorted(tmp_path.rglob("*")) == before


def test_a_zip_member_without_a_name_is_listed_and_spoils_no_other(
    tmp_path: Path,
) -> None:
    path = tmp_path / "h.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(""), b"nameless")
        archive.writestr("a", b"1")
    entries = list_entries([path])
    assert [(e.key, e.size) for e in entries] == [("h.zip/", 8), ("h.zip/a", 1)]
    assert read_all(entries) == {"h.zip/": b"nameless", "h.zip/a": b"1"}


def test_names_that_are_not_text_are_escaped(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.dcm")).write_bytes(b"x")
    assert read_all(list_entries([tmp_path])) == {"\\udcff.dcm": b"x"}


def test_a_duplicated_member_is_read_twice(tmp_path: Path) -> None:
    path = tmp_path / "d.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for content in (b"first", b"second"):
            info = tarfile.TarInfo("m")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    found = [content for _, content in read_entries(list_entries([path]))]
    assert found == [b"first", b"second"]


@pytest.mark.slow
def test_a_folder_of_many_files_is_never_in_memory(tmp_path: Path) -> None:
    num_files = 8000
    for number in range(num_files):
        (tmp_path / f"ID_{number * 7919 % num_files:09}.dcm").touch()
    list_entries([tmp_path])  # caches are filled before the count
    tracemalloc.start()
    try:
        entries = list_entries([tmp_path])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(entries) == num_files
    assert peak < 250 * num_files  # a file's name, path and status take 700


def test_names_that_look_alike_are_sorted_by_their_bytes(
    tmp_path: Path,
) -> None:
    for name in ("a\\n", "a\n"):
        (tmp_path / name).write_text(name)
    entries = list_entries([tmp_path])
    assert [e.key for e in entries] == ["a\\n", "a\\n"]
    assert [content for _, content in read_entries(entries)] == [b"a\n", b"a\\n"]


def test_links_in_a_tar_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "l.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("file"))
    assert [e.member for e in list_entries([path])] == ["file"]


def test_a_streamed_zip_is_read_and_its_checksum_is_checked(tmp_path: Path) -> None:
    class Unseekable(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: int) -> int:
            raise io.UnsupportedOperation

    packed = Unseekable()
    with zipfile.ZipFile(packed, "w") as archive:
        for method, name in ((zipfile.ZIP_STORED, "s"), (zipfile.ZIP_DEFLATED, "d")):
            archive.writestr(name, b"0123456789", method)
    path = tmp_path / "streamed.zip"
    path.write_bytes(packed.getvalue())
    entries = list_entries([path])
    assert set(read_all(entries).values()) == {b"0123456789"}
    path.write_bytes(packed.getvalue().replace(b"0123456789", b"0123456780", 1))
    assert read_all(entries) == {
        "streamed.zip/d": b"0123456789",
        "streamed.zip/s": "unreadable-archive",
    }


def test_a_zip64_is_read_in_place(tmp_path: Path) -> None:
    path = tmp_path / "big.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("m", "w", force_zip64=True) as member,
    ):
        member.write(b"large")
    assert read_all(list_entries([path])) == {"big.zip/m": b"large"}


def test_an_encrypted_member_says_so(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "e.zip", {"m": b"secret"})
    content = bytearray(path.read_bytes())
    content[6] |= 1
    path.write_bytes(content)
    [(_, found)] = read_entries(list_entries([path]))
    assert isinstance(found, RejectError)
    assert "encrypted" in found.detail


@pytest.mark.parametrize("suffix", ["zip", "tar.gz", ""])
def test_what_is_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(sources, "MAX_BYTES", 100)
    contents = {"bomb": bytes(101), "fits": bytes(100)}
    if suffix:
        write_archive(tmp_path / f"a.{suffix}", contents)
    else:
        write_folder(tmp_path, contents)
    found = [content for _, content in read_entries(list_entries([tmp_path]))]
    assert isinstance(found[0], RejectError)
    assert found[0].code == "too-large"
    assert found[1] == bytes(100)


def test_a_zip_member_never_unpacks_beyond_its_listed_size(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "bomb.zip", {"m": bytes(50 * 2**20)})
    [entry] = list_entries([path])
    lying = Entry(entry.source, path, "m", entry.key, 1000, entry.offset)
    tracemalloc.start()
    try:
        found = read_all([lying])
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == {entry.key: "unreadable-archive"}
    assert peak_bytes < 2**20


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ARCHIVES)
def test_a_member_is_in_memory_once(tmp_path: Path, suffix: str) -> None:
    num_bytes = 32 * 2**20
    path = write_archive(tmp_path / f"a.{suffix}", {"m": bytes(num_bytes)})
    entries = list_entries([path])
    tracemalloc.start()
    try:
        [(_, content)] = read_entries(entries)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert content == bytes(num_bytes)
    assert peak_bytes < 1.75 * num_bytes  # xz has a dictionary of 8 MiB


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz"])
def test_a_member_is_gone_before_the_next_is_read(tmp_path: Path, suffix: str) -> None:
    num_bytes = 10 * 2**20
    contents = {name: bytes(num_bytes) for name in "abc"}
    path = write_archive(tmp_path / f"d.{suffix}", contents)
    del contents
    entries = list(list_entries([path]))
    num_read = 0
    tracemalloc.start()
    try:
        for _, content in read_entries(entries):
            num_read += len(content) if isinstance(content, bytes) else 0
            del content
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert num_read == 3 * num_bytes
    assert peak_bytes < 1.75 * num_bytes


def test_a_file_that_has_grown_beyond_the_limit_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(b"abc")
    monkeypatch.setattr(sources, "MAX_BYTES", 4)
    entries = list_entries([tmp_path])
    path.write_bytes(b"abcde")
    assert read_all(entries) == {"a.dcm": "unreadable-file"}


def test_a_pipe_is_no_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="pipe: it is a pipe or a device"):
        list_entries([tmp_path / "pipe"])
    with pytest.raises(SourceError, match="/dev/zero: it is a pipe or a device"):
        list_entries(["/dev/zero"])


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_giant_header_of_a_tar_is_refused(
    tmp_path: Path, suffix: str, kind: bytes
) -> None:
    header = tarfile.TarInfo("header")
    header.type, header.size = kind, 2**20 + 1
    content = header.tobuf(tarfile.GNU_FORMAT) + b"n" * header.size
    content += bytes(-len(content) % 512) + tarfile.TarInfo("a").tobuf() + bytes(1024)
    path = tmp_path / f"h.{suffix}"
    path.write_bytes(gzip.compress(content) if suffix == "tar.gz" else content)
    with pytest.raises(SourceError, match=r"cannot read .*header"):
        list_entries([path])


def test_an_xz_that_asks_for_much_memory_is_not_unpacked(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "d.tar.xz", CONTENTS)
    content = bytearray(path.read_bytes())
    assert content[14:16] == b"\x21\x01"  # a filter, LZMA2; then its dictionary
    content[16] = 37  # 1.5 GiB
    content[20:24] = struct.pack("<I", zlib.crc32(content[12:20]))
    path.write_bytes(content)
    with pytest.raises(SourceError, match="Memory usage limit exceeded"):
        list_entries([path])


def test_an_xz_of_several_streams_is_one_archive(tmp_path: Path) -> None:
    tar = write_archive(tmp_path / "s.tar", CONTENTS).read_bytes()
    parts = [lzma.compress(part) + bytes(8) for part in (tar[:700], tar[700:])]
    path = tmp_path / "s.tar.xz"
    path.write_bytes(b"".join(parts))
    assert read_all(list_entries([path])) == {
        f"s.tar.xz/{name}": content for name, content in CONTENTS.items()
    }
    without_end = tar[: -(-len(tar.rstrip(b"\0")) // 512) * 512]
    path.write_bytes(lzma.compress(without_end) + bytes(2**21))
    assert len(list_entries([path])) == len(CONTENTS)


def cut(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


def damage_a_header(content: bytes) -> bytes:
    second = content.index(b"2.dcm", 600)
    return content[:second] + bytes([255]) * 200 + content[second + 200 :]


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        *(("zip", cut), ("tar", cut), ("tar.gz", cut), ("tar.xz", cut)),
        *(("tar.bz2", cut), ("tar", damage_a_header)),
    ],
)
def test_a_broken_archive_is_an_error_where_asked_for_and_a_reject_where_found(
    tmp_path: Path, suffix: str, damage: Callable[[bytes], bytes]
) -> None:
    noise = random.Random(0).randbytes(5000)
    contents = {f"{number}.dcm": noise for number in range(1, 4)}
    path = write_archive(tmp_path / f"broken.{suffix}", contents)
    path.write_bytes(damage(path.read_bytes()))
    (tmp_path / "whole.dcm").write_bytes(b"whole")

    with pytest.raises(SourceError, match=f"cannot read .*broken.{suffix}"):
        list_entries([path])
    found = read_all(list_entries([tmp_path]))
    assert found.pop("whole.dcm") == b"whole"
    assert found.pop(path.name) == "unreadable-archive"
    assert {v for v in found.values() if v != "unreadable-archive"} <= {noise}


def test_a_compressed_tar_is_read_no_further_than_needed(tmp_path: Path) -> None:
    noise = random.Random(0).randbytes(3 * 2**20)
    path = write_archive(tmp_path / "n.tar.gz", {"1": b"first", "2": noise})
    first, second = list_entries([path])
    path.write_bytes(path.read_bytes()[: 2 * 2**20])
    found = list(archives.read_packed_members(path, [first.offset]))
    assert found == [(first.offset, b"first")]
    assert read_all([second]) == {"n.tar.gz/2": "unreadable-archive"}


def test_a_broken_archive_above_the_limit_is_no_large_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_archive(tmp_path / "whole.zip", {"large": bytes(200)})
    content = write_archive(tmp_path / "half.zip", CONTENTS).read_bytes()
    (tmp_path / "half.zip").write_bytes(content[: len(content) // 2])
    (tmp_path / "none.zip").write_bytes(b"no archive" * 20)
    entries = list_entries([tmp_path])
    monkeypatch.setattr(sources, "MAX_BYTES", 100)
    assert read_all(entries) == {
        "half.zip": "unreadable-archive",
        "none.zip": "too-large",
        "whole.zip/large": "too-large",
    }
    (tmp_path / "half.zip").unlink()
    assert read_all(entries)["half.zip"] == "unreadable-file"


def test_a_file_that_is_gone_before_it_is_looked_at_is_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone:
        name = "gone.dcm"

        def stat(self) -> os.stat_result:
            return (tmp_path / self.name).stat()

    (tmp_path / "here.dcm").write_bytes(b"x")
    scandir = os.scandir

    def scan(folder: Path) -> Iterator[Any]:
        return iter([*scandir(folder), Gone()])

    monkeypatch.setattr("ichfast.sources.walk.os.scandir", scan)
    assert [found.key for found in find_files(tmp_path, ())] == ["here.dcm"]


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz"])
def test_an_archive_that_vanishes_rejects_its_members(
    tmp_path: Path, suffix: str
) -> None:
    path = write_archive(tmp_path / f"v.{suffix}", CONTENTS)
    entries = list_entries([path])
    path.write_bytes(b"something else")
    assert set(read_all(entries).values()) == {"unreadable-archive"}
    path.unlink()
    assert set(read_all(entries).values()) == {"unreadable-archive"}


def test_a_file_that_vanishes_is_rejected(tmp_path: Path) -> None:
    entries = list_entries([write_folder(tmp_path, {"a": b"1", "b": b"2"})])
    (tmp_path / "a").unlink()
    assert read_all(entries) == {"a": "unreadable-file", "b": b"2"}


def test_a_file_that_is_only_named_like_an_archive_is_a_file(tmp_path: Path) -> None:
    write_folder(tmp_path, {"x.zip": b"no zip", "x.tar.gz": b""})
    assert read_all(list_entries([tmp_path])) == {"x.zip": b"no zip", "x.tar.gz": b""}


def test_an_archive_that_was_asked_for_needs_no_suffix(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "download.zip", {"m": b"1"})
    renamed = path.rename(tmp_path / "download")
    assert read_all(list_entries([renamed])) == {"download/m": b"1"}


# ---- a single file that gzip has compressed ----

DICOM = bytes(128) + b"DICM" + bytes(range(256)) * 9000


@pytest.mark.parametrize("is_named", [True, False])
def test_a_gzip_compressed_dicom_file_reads_as_the_file(
    tmp_path: Path, *, is_named: bool
) -> None:
    path = tmp_path / "1.dcm.gz"
    path.write_bytes(gzip.compress(DICOM))
    entries = list_entries([path if is_named else tmp_path])
    assert read_all(entries) == {"1.dcm.gz": DICOM}
    assert entries[0].size == path.stat().st_size


@pytest.mark.parametrize("suffix", ARCHIVES)
def test_a_compressed_dicom_file_in_an_archive_reads_as_the_file(
    tmp_path: Path, suffix: str
) -> None:
    packed = {"1.dcm.gz": gzip.compress(DICOM)}
    path = write_archive(tmp_path / f"a.{suffix}", packed)
    assert read_all(list_entries([path])) == {f"a.{suffix}/1.dcm.gz": DICOM}


def test_other_compressed_files_stay_as_they_are(tmp_path: Path) -> None:
    contents = {"a.nii.gz": gzip.compress(bytes(999)), "b.gz": b"\x1f\x8b no gzip"}
    contents |= {"c.gz": gzip.compress(DICOM[:131])}
    assert read_all(list_entries([write_folder(tmp_path, contents)])) == contents


@pytest.mark.parametrize(
    ("change", "code", "detail"),
    [
        (lambda c: c[:-9], "unreadable-file", "its gzip data end too early"),
        (lambda c: c[:-8] + bytes(8), "unreadable-file", "its gzip data are damaged"),
        (
            lambda _: gzip.compress(DICOM + bytes(3 * 2**20)),
            "too-large",
            "gzip unpacks it to more than 4,194,304 bytes",
        ),
    ],
)
def test_a_compressed_dicom_file_that_is_damaged_or_large_is_rejected(
    change: Callable[[bytes], bytes],
    code: str,
    detail: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(archives, "MAX_GZIP_BYTES", 2**22)
    (tmp_path / "1.dcm.gz").write_bytes(change(gzip.compress(DICOM)))
    [(_, found)] = read_entries(list_entries([tmp_path]))
    assert isinstance(found, RejectError)
    assert found.code == code
    assert found.detail.startswith(detail)


def test_memory_that_ends_while_gzip_unpacks_rejects_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_content: bytes) -> bytes:
        raise MemoryError

    (tmp_path / "1.dcm.gz").write_bytes(gzip.compress(DICOM))
    entries = list_entries([tmp_path])
    monkeypatch.setattr(archives, "unpack_dicom", full)
    assert read_all(entries) == {"1.dcm.gz": "too-large"}


def test_a_compressed_file_that_was_asked_for_is_named_as_what_it_is_not(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"a letter" * 99))
    with pytest.raises(SourceError, match="neither a tar nor a DICOM file"):
        list_entries([tmp_path / "a.gz"])


@pytest.mark.parametrize(
    ("method", "name"), [(9, "Deflate64"), (12, "bzip2"), (77, "an unknown method")]
)
def test_a_zip_of_another_compression_names_it(
    tmp_path: Path, method: int, name: str
) -> None:
    path = write_archive(tmp_path / "a.zip", {"m": b"content"})
    content = bytearray(path.read_bytes())
    content[8] = method
    path.write_bytes(content)
    [(_, found)] = read_entries(list_entries([path]))
    assert isinstance(found, RejectError)
    assert found.detail == (
        f"the zip is packed by {name} (method {method}), only deflate is read; unpack "
        "it, and name the folder"
    )


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no source at .*nowhere; give a folder"):
        list_entries([tmp_path / "nowhere"])


def test_an_empty_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no file in"):
        list_entries([tmp_path])
    with pytest.raises(SourceError, match="empty list"):
        list_entries([])


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.xz"])
def test_no_damage_escapes_as_another_error(tmp_path: Path, suffix: str) -> None:
    draw = random.Random(7)
    whole = write_archive(tmp_path / f"w.{suffix}", CONTENTS).read_bytes()
    entries = list_entries([tmp_path])
    path = tmp_path / f"w.{suffix}"
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for number in range(60):
        content = bytearray(whole)
        for _ in range(draw.choice([1, 4, 30])):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content[: draw.choice([len(content), draw.randrange(9999)])])
        assert len(read_all(entries)) == len(entries)
        path.rename(damaged / f"{number}.{suffix}")
    found = read_all(list_entries([damaged]))
    numbers = {key.partition(".")[0] for key in found}
    assert numbers == {str(number) for number in range(60)}


def test_a_zip_member_costs_one_seek_and_not_the_table_of_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_archive(tmp_path / "m.zip", CONTENTS)
    entries = list_entries([path])
    directory_at = path.read_bytes().index(struct.pack("<I", 0x02014B50))
    with path.open("r+b") as stream:
        stream.truncate(directory_at)
    monkeypatch.delattr(zipfile, "ZipFile")
    assert list(read_all(entries).values()) == [CONTENTS[e.member] for e in entries]
