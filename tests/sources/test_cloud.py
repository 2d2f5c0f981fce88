"""Files at URLs read like local files, and no secret of a URL is shown."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import os
import pickle
import random
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ichfast.errors import RejectError, SourceError
from ichfast.prepare.prepare import prepare_store
from ichfast.sources.listing import Entry
from ichfast.sources.remote import Remote, without_secrets
from ichfast.sources.sources import list_entries, read_entries
from ichfast.store.header import read_header
from ichfast.store.verify import verify_store
from tests.conftest import check_same_files
from tests.sources.test_sources import (
    ARCHIVES,
    CONTENTS,
    read_all,
    write_archive,
    write_folder,
)

fsspec = pytest.importorskip("fsspec", reason="needs the extra cloud")

SERVER_START_S = 20


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def upload(system: Any, folder: Path, top: str) -> str:
    """Copy a local folder under `top`."""
    for path in folder.rglob("*"):
        if path.is_file():
            system.pipe_file(f"{top}/{path.relative_to(folder)}", path.read_bytes())
    return top


def by_key(source: Path | str) -> dict[str, bytes | str]:
    return read_all(list_entries([source]))


def test_a_folder_at_a_url_reads_like_a_local_one(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "heads", {**CONTENTS, ".hidden/x": b"h"})
    for suffix in ARCHIVES:
        write_archive(folder / f"in.{suffix}", CONTENTS)
    (folder / "broken.zip").write_bytes((folder / "in.zip").read_bytes()[:-30])
    # fsspec's local files: a `Remote` that the process that lists tars sees too.
    local, remote = list_entries([folder]), list_entries([f"local://{folder}"])
    assert isinstance(remote[0].container, Remote)
    assert [(e.key, e.member, e.size, e.offset) for e in remote] == [
        (e.key, e.member, e.size, e.offset) for e in local
    ]
    assert read_all(remote) == read_all(local)
    assert read_all(remote)["broken.zip"] == "unreadable-archive"


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.xz"])
def test_an_archive_at_a_url_is_looked_into(tmp_path: Path, suffix: str) -> None:
    path = write_archive(tmp_path / f"heads.{suffix}", CONTENTS)
    assert by_key(f"local://{path}") == by_key(path)


def test_a_file_url_is_a_local_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "two words", CONTENTS)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    url = folder.as_uri()
    assert "%20" in url
    expected = list(list_entries([folder]))
    assert list(list_entries([url])) == expected
    assert list(list_entries([str(folder)])) == expected
    with pytest.raises(SourceError, match="write file:///FOLDER"):
        list_entries(["file://heads"])


def test_the_bytes_of_an_archive_are_asked_for_by_range(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = {f"{k:02d}": random.Random(k).randbytes(2**19) for k in range(20)}
    path = write_archive(tmp_path / "heads.zip", noise)
    memory.pipe_file("/heads.zip", path.read_bytes())
    entries = list_entries(["memory://heads.zip"])
    asked: list[int] = []
    original = type(memory).cat_file

    def counted(self: Any, path: str, start: int, end: int) -> Any:
        asked.append(end - start)
        return original(self, path, start, end)

    monkeypatch.setattr(type(memory), "cat_file", counted)
    found = read_all(entries[7:9])
    assert list(found.values()) == [noise["07"], noise["08"]]
    assert sum(asked) <= 4 * 2**20


def test_an_entry_stays_small_and_opens_anywhere(memory: Any) -> None:
    for k in range(1000):
        memory.pipe_file(f"/heads/{k:04d}", b"x")
    entries = list_entries(["memory://heads"])
    packed = pickle.dumps(entries)
    assert len(packed) < 120 * len(entries)
    again: Sequence[Entry] = pickle.loads(packed)
    assert list(again) == list(entries)
    assert {content for _, content in read_entries(again)} == {b"x"}


def test_files_are_fetched_together_but_not_too_many(
    memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {f"{k:02d}": bytes(100 + k) for k in range(40)}
    for name, content in contents.items():
        memory.pipe_file(f"/heads/{name}", content)
    entries = list_entries(["memory://heads"])
    fetched: list[int] = []
    original = type(memory).cat_ranges

    def counted(self: Any, paths: list[str], *rest: Any) -> Any:
        fetched.append(len(paths))
        return original(self, paths, *rest)

    monkeypatch.setattr(type(memory), "cat_ranges", counted)
    assert read_all(entries) == contents
    assert fetched == [32, 8]
    fetched.clear()
    monkeypatch.setattr("ichfast.sources.sources.FETCH_BYTES", 250)
    assert read_all(entries) == contents
    assert set(fetched[:-1]) == {2, 1}


def test_a_remote_file_that_vanishes_is_rejected(tmp_path: Path, memory: Any) -> None:
    folder = write_folder(tmp_path, {"a": b"1", "b": b"2"})
    write_archive(folder / "c.zip", {"m": b"3"})
    entries = list_entries([upload(memory, folder, "memory://heads")])
    memory.rm_file("/heads/a")
    memory.rm_file("/heads/c.zip")
    assert read_all(entries) == {
        "a": "unreadable-file",
        "b": b"2",
        "c.zip/m": "unreadable-archive",
    }


def test_a_server_that_does_not_answer_is_a_timeout(
    memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe_file("/heads/a", b"1")
    entries = list_entries(["memory://heads"])

    def wait(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(type(memory), "cat_ranges", wait)
    assert read_all(entries) == {"a": "timeout"}


def test_a_missing_url_is_named(memory: Any) -> None:
    del memory
    with pytest.raises(SourceError, match="no source at memory://nowhere"):
        list_entries(["memory://nowhere"])


@pytest.mark.parametrize("content", [b"short", b"longer than before"])
def test_a_file_that_changes_its_size_while_it_is_open_is_an_error(
    memory: Any, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    memory.pipe_file("/heads.tar", b"0123456789")
    stream = Remote("memory://heads.tar", "/heads.tar").open("rb")
    # Like a server that answers with the whole of a file that has changed.
    monkeypatch.setattr(type(memory), "cat_file", lambda *_, **__: content)
    with pytest.raises(OSError, match="the file has changed: download it first"):
        stream.read(10)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:word@host/a.zip?sig=1#x", "https://host/a.zip"),
        ("s3://bucket/a?versionId=9", "s3://bucket/a"),
        ("zip://m::https://u@host/a.zip?k=1", "zip://m::https://host/a.zip"),
        ("blockcache::s3://b/k?x=1::memory://y", "blockcache::s3://b/k::memory://y"),
    ],
)
def test_secrets_of_a_url_are_cut(url: str, shown: str) -> None:
    assert without_secrets(url) == shown
    remote = Remote(url, url)
    assert repr(remote) == str(remote) == shown
    assert repr(Entry(0, remote, "", "a", 1)).count(shown) == 1


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = r"s3://b/k: .*pip install 'ichfast\[cloud\]'$"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "fsspec.core", None)
        with pytest.raises(SourceError, match=expected) as caught:
            list_entries(["s3://b/k?token=word"])
    assert "word" not in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(SourceError, match="nosuch://x: this URL is not understood"):
        list_entries(["nosuch://x"])


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files whole: it ignores the ranges it is asked for."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which it is served."""
    pytest.importorskip("aiohttp", reason="needs the extra cloud")
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield folder, f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(10)


def test_files_of_a_web_server_are_read(web: tuple[Path, str]) -> None:
    folder, host = web
    contents = {"a b.dcm": b"1", "c/d.dcm": b"two", "c/e.dcm": b"three"}
    write_folder(folder, contents)
    assert by_key(f"http://{host}/") == contents
    assert by_key(f"http://{host}/c/d.dcm?token=word") == {"d.dcm": b"two"}


def test_messages_of_a_web_server_hold_no_secret(web: tuple[Path, str]) -> None:
    folder, host = web
    write_archive(folder / "heads.zip", CONTENTS)
    whole = f"http://{host}/heads.zip?token=word"
    for url, message in (
        (whole, "cannot read .*/heads.zip: .*cannot read by ranges"),
        (f"http://me:word@{host}/none?token=word", "no source at .*/none;"),
        ("http://me:word@127.0.0.1:9/none?token=word", "127.0.0.1:9/none"),
    ):
        with pytest.raises(SourceError, match=message) as caught:
            list_entries([url])
        assert "word" not in str(caught.value)
        assert "me:" not in str(caught.value)


@pytest.fixture(scope="module")
def bucket() -> Iterator[tuple[Any, str]]:
    """A bucket of a local S3 server, and a file system that sees it."""
    if not (importlib.util.find_spec("moto") and importlib.util.find_spec("s3fs")):
        pytest.skip("needs moto[server] and s3fs")
    with pytest.MonkeyPatch.context() as patch, _S3Server() as address:
        patch.setenv("AWS_ENDPOINT_URL", address)
        patch.setenv("AWS_ACCESS_KEY_ID", "id")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "word")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        system = fsspec.filesystem("s3")
        system.mkdir("heads")
        yield system, address


class _S3Server:
    """A server in a process of its own, ended with the block."""

    def __enter__(self) -> str:
        code = (
            "from moto.server import ThreadedMotoServer as S; import sys; "
            "s = S('127.0.0.1', 0, verbose=False); s.start(); "
            "print(s.get_host_and_port()[1], flush=True); sys.stdin.read()"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        port = self._process.stdout.readline().decode().strip()
        address = f"http://127.0.0.1:{port}"
        deadline_s = time.monotonic() + SERVER_START_S
        while time.monotonic() < deadline_s:
            try:
                urllib.request.urlopen(f"{address}/moto-api/", timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return address
        self.__exit__()
        raise TimeoutError("the S3 server does not start")

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate(timeout=10)


@pytest.mark.slow
def test_a_bucket_reads_like_a_folder(tmp_path: Path, bucket: tuple[Any, str]) -> None:
    folder = write_folder(tmp_path / "heads", CONTENTS)
    for suffix in ARCHIVES:
        write_archive(folder / f"in.{suffix}", CONTENTS)
    url = upload(bucket[0], folder, "s3://heads/sub")
    bucket[0].pipe_file("s3://heads/sub/marker/", b"")
    assert by_key(url) == by_key(folder)
    assert by_key(f"{url}/in.zip") == by_key(folder / "in.zip")
    assert by_key(f"{url}/in.tar.gz") == by_key(folder / "in.tar.gz")


@pytest.mark.slow
def test_a_bucket_that_is_missing_or_closed_is_an_error_of_one_line(
    bucket: tuple[Any, str],
) -> None:
    del bucket
    with pytest.raises(SourceError, match=r"no source at s3://nowhere/heads") as caught:
        list_entries(["s3://nowhere/heads?versionId=word"])
    assert "word" not in str(caught.value)


def test_objects_that_vanish_are_rejected(bucket: tuple[Any, str]) -> None:
    system, _ = bucket
    system.pipe({"s3://heads/v/a": b"1", "s3://heads/v/b": b"2"})
    entries = list_entries(["s3://heads/v"])
    system.rm_file("s3://heads/v/a")
    found = dict(read_entries(entries))
    gone, left = found.values()
    assert isinstance(gone, RejectError)
    assert gone.code == "unreadable-file"
    assert left == b"2"


# A whole run of prepare


@pytest.mark.slow
def test_a_store_made_from_a_bucket_is_that_of_the_folder(
    tmp_path: Path, source: Path, bucket: tuple[Any, str]
) -> None:
    (source / "notes.txt").write_text("no image")
    write_archive(
        source / "in.zip", {"m.dcm": (source / "000.dcm").read_bytes(), "n": b"no"}
    )
    local, remote = tmp_path / "local", tmp_path / "remote"
    prepare_from(str(source), local)
    prepare_from(upload(bucket[0], source, "s3://heads/whole"), remote)
    assert verify_store(remote) == []
    # `entries.parquet` depends on the source's place; the header has its checksum.
    apart = {"journal/entries.parquet", "store.json"}
    check_same_files(remote, local, apart=apart)
    headers = [replace(read_header(s), entries_crc32c=0) for s in (remote, local)]
    assert headers[0] == headers[1]
    assert headers[0].counts["slices"] == 23
    assert headers[0].counts["duplicates"] == 1


def prepare_from(source: str, store: Path) -> None:
    """Run the command in a process with the present environment."""
    subprocess.run(
        [
            *(sys.executable, "-m", "ichfast", "prepare", source),
            *("--store", str(store), "--workers", "2"),
            *("--max-rejected", "2", "--keep-ids"),
        ],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=60,
    )


@pytest.mark.parametrize("url", ["memory://heads", "zip://::memory://heads.zip"])
def test_a_source_in_the_memory_of_this_process_is_refused(
    tmp_path: Path, url: str
) -> None:
    with pytest.raises(SourceError, match=r"^\S+ lies in the memory of this process.*"):
        prepare_store([url], tmp_path / "store", labels=None, workers=1, keep_ids=True)
    assert not (tmp_path / "store").exists()
