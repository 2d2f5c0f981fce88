"""A file is written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from ichfast.errors import StoreError
from ichfast.store.writer import UnitWriter
from ichfast.system.files import (
    atomic_path,
    begin_flush,
    beside,
    make_folder,
    output_path,
    remove_file,
    remove_leftovers,
    write_private_once,
    write_text_atomically,
)
from tests.system.killed_process import killed_process


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text_atomically(path, "old")

    def fail_half_way() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_output_has_its_folder_made_and_its_failure_named(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    with output_path(path, StoreError) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    message = f"cannot write {path}/b: File exists; try another"
    with (
        pytest.raises(StoreError, match=message),
        output_path(path / "b", StoreError, "; try another"),
    ):
        pass


@pytest.mark.parametrize("folder", ["heads/store", "heads/store/", ".", "journal/.."])
def test_a_file_beside_a_folder_lies_outside_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    store = tmp_path / "heads" / "store"
    (store / "journal").mkdir(parents=True)
    monkeypatch.chdir(store if folder.startswith((".", "j")) else tmp_path)
    assert beside(Path(folder), ".key").absolute() == tmp_path / "heads/store.key"


def test_a_private_file_is_written_once_and_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_private_once(path, b"first")
    write_private_once(path, b"second")
    assert path.read_bytes() == b"first"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_flushed_before_it_is_renamed_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    replace = Path.replace

    def note_flush(descriptor: int) -> None:
        flushed = Path(f"/proc/self/fd/{descriptor}").readlink()
        steps.append("flush file" if flushed.suffix == ".tmp" else f"flush {flushed}")

    def note_rename(path: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_flush)
    monkeypatch.setattr(Path, "replace", note_rename)
    write_text_atomically(tmp_path / "a", "text")
    assert steps == ["flush file", "rename", f"flush {tmp_path}"]
    steps.clear()
    make_folder(tmp_path / "folder")
    make_folder(tmp_path / "folder")
    assert steps == [f"flush {tmp_path}"]
    remove_file(tmp_path / "a")
    remove_file(tmp_path / "a")
    assert steps == [f"flush {tmp_path}"] * 2
    assert not (tmp_path / "a").exists()
    steps.clear()
    write_private_once(tmp_path / "key", b"key")
    assert steps == ["flush file", f"flush {tmp_path}"]


def test_what_the_disk_begins_to_write_stays_as_it_is_and_in_the_cache(
    tmp_path: Path,
) -> None:
    content = os.urandom(2**20)
    with (tmp_path / "shard").open("w+b", buffering=0) as file:
        file.write(content)
        begin_flush(file.fileno())
        found = bytearray(len(content))
        try:
            num_read = os.preadv(file.fileno(), [found], 0, os.RWF_NOWAIT)
        except OSError as error:  # EAGAIN is the failure looked for
            if error.errno != errno.EOPNOTSUPP:
                raise
            pytest.skip("this file system cannot say what is in the cache")
    assert found[:num_read] == content


def test_a_file_system_that_takes_no_advice_is_no_error() -> None:
    reader, writer = os.pipe()
    try:
        begin_flush(writer)
    finally:
        os.close(reader)
        os.close(writer)


def test_a_shard_is_begun_to_be_written_while_its_unit_is_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    monkeypatch.setattr("ichfast.store.shard_file.FLUSH_BYTES", 4 * 64 * 64 * 2)
    monkeypatch.setattr(
        "ichfast.store.shard_file.begin_flush",
        lambda descriptor: sizes.append(os.fstat(descriptor).st_size),
    )
    with UnitWriter(tmp_path, 0, (512,)) as writer:
        for _ in range(9):
            writer.add(np.zeros((64, 64), np.uint16))
    assert sizes == [4096 + count * 64 * 64 * 2 for count in (4, 8)]


WRITE = """
import sys
from pathlib import Path
from ichfast.errors import StoreError
from ichfast.system.files import output_path
with output_path(Path(sys.argv[1]), StoreError) as temporary:
    temporary.write_text("half")
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_has_left_of_an_output_goes_with_the_next(
    tmp_path: Path,
) -> None:
    path = tmp_path / "p.csv"
    others = {".q.csv.0123456789ab.tmp", ".p.csv.tmp", ".p.csv.0123456789abc.tmp"}
    for name in others:
        (tmp_path / name).touch()

    def names() -> set[str]:
        return {each.name for each in tmp_path.iterdir()} - others

    with killed_process(WRITE, str(path)):
        with output_path(path, StoreError) as temporary:
            temporary.write_text("whole")
        # That of a process that lives stays.
        assert len(names()) == 2
    assert len(names()) == 2
    with output_path(path, StoreError) as temporary:
        temporary.write_text("new")
        assert names() == {"p.csv", temporary.name}
    assert names() == {"p.csv"}
    assert others <= {each.name for each in tmp_path.iterdir()}
    assert path.read_text() == "new"


def test_an_output_is_locked_until_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, path = Path.replace, tmp_path / "p.csv"

    def clear_and_replace(self: Path, target: Path) -> Path:
        remove_leftovers(path)  # as another process may at any moment
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", clear_and_replace)
    with output_path(path, StoreError) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole"
