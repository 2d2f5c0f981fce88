"""Reading a file or a folder that does not answer ends, and costs nothing else."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ichfast.errors import RejectError, SourceError
from ichfast.sources.sources import list_entries, read_entries
from ichfast.system.timeouts import limit_stalls, stall_limit
from tests.sources.blocking_files import blocking_folder, leased_file

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _short_limit() -> Iterator[None]:
    before = stall_limit()
    limit_stalls(0.4)
    yield
    limit_stalls(before)


def read_all(folder: Path) -> dict[str, bytes | str]:
    """For each key its bytes, or the code of its rejection."""
    return {
        entry.key: found.code if isinstance(found, RejectError) else found
        for entry, found in read_entries(list_entries([folder]))
    }


def zipped(names: list[str]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return content.getvalue()


def tarred(names: list[str], mode: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as archive:  # type: ignore[call-overload]
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return content.getvalue()


def test_a_file_that_blocks_when_it_is_opened_is_a_timeout(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text(name)
    with leased_file(tmp_path / "b"):
        assert read_all(tmp_path) == {"a": b"a", "b": "timeout", "c": b"c"}
    assert read_all(tmp_path) == {"a": b"a", "b": b"b", "c": b"c"}


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz"])
def test_an_archive_that_blocks_is_a_timeout_in_a_folder_and_an_error_if_asked_for(
    tmp_path: Path, suffix: str
) -> None:
    names = ["m", "n"]
    archive = tmp_path / f"b.{suffix}"
    archive.write_bytes(
        zipped(names)
        if suffix == "zip"
        else tarred(names, "w:gz" if suffix == "tar.gz" else "w")
    )
    (tmp_path / "c").write_text("c")
    entries = list_entries([tmp_path])
    with leased_file(archive):
        assert read_all(tmp_path) == {f"b.{suffix}": "timeout", "c": b"c"}
        found = {
            entry.key: getattr(content, "code", content)
            for entry, content in read_entries(entries)
        }
        with pytest.raises(SourceError) as raised:
            list_entries([archive])
    assert found == {
        **{f"b.{suffix}/{name}": "timeout" for name in names},
        "c": b"c",
    }
    assert str(raised.value).startswith(f"cannot read {archive}: no answer for 0 s; ")


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    folder = tmp_path / "mount"
    folder.mkdir()
    return folder


def test_a_file_system_that_never_answers_costs_its_files_and_no_other(
    mount: Path,
) -> None:
    files = {
        "a": b"a" * 10_000_000,
        "blocked-open": b"b",
        "blocked-read": b"c",
        "blocked-read.zip": zipped(["m"]),
        "d.zip": zipped(["m"]),
    }
    with blocking_folder(mount, files):
        assert read_all(mount) == {
            "a": files["a"],
            "blocked-open": "timeout",
            "blocked-read": "timeout",
            "blocked-read.zip": "timeout",
            "d.zip/m": b"m",
        }


@pytest.mark.parametrize("name", ["blocked-list", "blocked-stat"])
def test_a_folder_that_cannot_be_listed_is_an_error_that_names_what_blocks(
    mount: Path, name: str
) -> None:
    with (
        blocking_folder(mount, {"a": b"a", name: b""}),
        pytest.raises(SourceError) as raised,
    ):
        list_entries([mount])
    assert str(raised.value) == (
        f"cannot read {mount / name}: no answer for 0 s; check the disk or the server "
        "that it is on, or leave it out"
    )
