"""Studies on a DICOMweb server read like folders, and their UIDs are not shown."""

from __future__ import annotations

import logging
import pickle
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from ichfast.errors import RejectError, SourceError, StoreError
from ichfast.prepare.prepare import prepare_store
from ichfast.sources import dicomweb
from ichfast.sources.dicomweb import WebStudy, name_studies
from ichfast.sources.sources import list_entries, read_entries
from ichfast.store.header import read_header
from ichfast.store.verify import verify_store
from tests.cli.test_cli import ok, refused
from tests.conftest import check_same_files
from tests.sources.dicomweb_server import StubServer, serving
from tests.sources.test_sources import read_all, write_folder

pytest.importorskip("dicomweb_client", reason="needs the extra pacs")
requests = pytest.importorskip("requests", reason="needs the extra pacs")

FILES = {"1.88.1/1.99.1.dcm": b"one", "1.88.1/1.99.10.dcm": b"\r\n--x", "2/3.dcm": b""}
STUDY = "1.77.1"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicomweb, "PAUSES_S", (0.0, 0.0))


@pytest.fixture
def server() -> Iterator[StubServer]:
    with serving(StubServer({STUDY: FILES, "1.77.2": {"4/5.dcm": b"five"}})) as stub:
        yield stub


def study_at(server: StubServer, uid: str = STUDY) -> str:
    return f"{server.url}/studies/{uid}"


@pytest.mark.parametrize(("page", "has_offsets"), [(1000, True), (2, True), (9, False)])
def test_a_study_reads_like_a_folder_of_its_series(
    server: StubServer, tmp_path: Path, page: int, has_offsets: bool
) -> None:
    server.page, server.has_offsets = page, has_offsets
    entries = list_entries([study_at(server)])
    folder = list_entries([write_folder(tmp_path, FILES)])
    assert [entry.key for entry in entries] == [entry.key for entry in folder]
    assert {entry.size for entry in entries} == {0}
    assert read_all(entries) == read_all(folder) == FILES
    again = pickle.loads(pickle.dumps(entries))
    assert list(again) == list(entries)


def test_only_studies_that_were_named_are_asked_for(
    server: StubServer, tmp_path: Path
) -> None:
    listed = tmp_path / "studies.txt"
    listed.write_text("\ufeff1.77.2\r\n\r\n1.77.1\n1.77.2\n", "utf-8")
    urls = name_studies([server.url, "folder", f"{server.url}/studies/9"], listed)
    assert urls == [
        *(f"{server.url}/studies/1.77.1#3", f"{server.url}/studies/1.77.2#1"),
        *("folder", f"{server.url}/studies/9"),
    ]
    entries = list_entries(urls[:2])
    assert [entry.source for entry in entries] == [0, 0, 0, 1]
    assert len(read_all(entries)) == 4
    with pytest.raises(SourceError, match="is asked for no study; name the studies"):
        list_entries([server.url])
    assert all("/studies/1.77." in path for path in server.paths)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; write a StudyInstanceUID in each line"),
        (b"1.2\nStudy of Somebody\n", "line 2 of .* is no StudyInstanceUID"),
        (b"1.2/../../x\n", "line 1 of .* is no StudyInstanceUID"),
        (b"\xff\xfe", "it is no text"),
        (None, "No such file"),
    ],
)
def test_a_list_of_something_else_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    listed = tmp_path / "studies.txt"
    if content is not None:
        listed.write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        name_studies(["dicomweb://host/pacs"], listed)
    assert "Somebody" not in str(caught.value)


def test_a_list_without_a_server_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no source is a DICOMweb server"):
        name_studies(["folder", "dicomweb://host/studies/1.2"], tmp_path / "none.txt")


def test_a_failure_that_passes_is_tried_again(server: StubServer) -> None:
    server.statuses = [503, 429, 200, 502]
    server.cut_bytes = [0, 4, 30]
    assert read_all(list_entries([study_at(server)])) == FILES
    assert server.statuses == server.cut_bytes == []


@pytest.mark.parametrize(
    ("statuses", "code", "detail"),
    [
        ([503] * 3, "timeout", "the server answers with HTTP status 503"),
        ([404], "unreadable-file", "the server does not have it"),
        ([403], "unreadable-file", "the server denies access to it"),
        ([500], "unreadable-file", "the server answers with HTTP status 500"),
    ],
)
def test_an_instance_that_cannot_be_fetched_is_rejected(
    server: StubServer, statuses: list[int], code: str, detail: str
) -> None:
    entries = list_entries([study_at(server)])
    server.statuses = statuses
    [(_, found), *others] = read_entries(entries)
    assert isinstance(found, RejectError)
    assert found.code == code
    assert found.detail.startswith(detail)
    assert [content for _, content in others] == list(FILES.values())[1:]


def test_a_reply_is_not_read_beyond_the_limit(
    server: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = list_entries([study_at(server)])
    monkeypatch.setattr("ichfast.sources.sources.MAX_BYTES", 50)
    details = [str(found) for _, found in read_entries(entries)]
    assert ["it has more than 50 bytes" in detail for detail in details] == [True] * 3


def test_a_server_that_is_gone_ends_a_run(server: StubServer) -> None:
    gone = "dicomweb+http://127.0.0.1:9/studies/1.2"
    entry = replace(
        list_entries([study_at(server)])[0], container=WebStudy(gone, "a/b")
    )
    for ask in (lambda: list_entries([gone]), lambda: [*read_entries([entry])]):
        with pytest.raises(SourceError) as caught:
            ask()
        assert str(caught.value) == (
            "cannot read dicomweb+http://127.0.0.1:9: it accepts no connection; check "
            "that it runs, then type the same command again"
        )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (requests.ReadTimeout(), "the server gives no answer in time"),
        (requests.ConnectionError("reset"), "the server ends the connection"),
        (
            requests.exceptions.SSLError(
                "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"
            ),
            "it has a certificate that .* set REQUESTS_CA_BUNDLE to a file",
        ),
        (
            requests.exceptions.SSLError("[SSL: WRONG_VERSION_NUMBER]"),
            r"it does not encrypt as https does; .* write dicomweb\+http://",
        ),
    ],
)
def test_failures_of_the_network_are_told_without_urls(
    server: StubServer,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    message: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(requests.Session, "get", fail)
    with pytest.raises(SourceError, match=message) as caught:
        list_entries([study_at(server)])
    assert STUDY not in str(caught.value)


def test_no_redirect_is_followed(server: StubServer) -> None:
    entries = list_entries([study_at(server)])
    server.headers["Location"] = "/elsewhere?secret=1.77"
    for ask in (lambda: list_entries([study_at(server)]), lambda: read_all(entries)):
        server.statuses = [302]
        server.paths.clear()
        with pytest.raises(SourceError) as caught:
            ask()
        assert str(caught.value).endswith(
            "/pacs: it sends requests to another address; name that one"
        )
        assert len(server.paths) == 1


def test_a_compressed_reply_is_refused(server: StubServer) -> None:
    entries = list_entries([study_at(server)])
    server.headers["Content-Encoding"] = "gzip"
    [(_, found)] = read_entries(entries[:1])
    assert isinstance(found, RejectError)
    assert "the server compresses its reply, which was not asked for" in found.detail


def test_a_server_that_never_answers_is_given_up(
    server: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = list_entries([study_at(server)])
    is_over = threading.Event()
    monkeypatch.setattr("ichfast.sources.web_requests.SERVER_S", 0.05)
    monkeypatch.setattr(server, "reply", lambda *_: is_over.wait() and (500, "", b""))
    try:
        [(_, found)] = read_entries(entries[:1])
    finally:
        is_over.set()
    assert isinstance(found, RejectError)
    assert (found.code, found.detail) == (
        "timeout",
        "the server gives no answer in time",
    )


def test_the_reply_to_a_search_has_an_upper_limit(
    server: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ichfast.sources.web_requests.MAX_SEARCH_BYTES", 99)
    with pytest.raises(SourceError, match="it has more than 99 bytes; check the URL"):
        list_entries([study_at(server)])


def test_instances_that_a_server_lists_twice_do_not_hide_others(
    server: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [[*FILES][:1], [*FILES][:2], [*FILES][2:], []]
    asked = []

    def search(_: object, offset: int) -> list[str]:
        asked.append(offset)
        return found.pop(0)

    monkeypatch.setattr(dicomweb, "_search", search)
    assert WebStudy(study_at(server)).list_keys() == [*FILES]
    assert asked == [0, 1, 3, 4]


def test_a_list_that_ends_at_the_limit_is_an_error(
    server: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicomweb, "PAGE", 2)
    assert len(list_entries([study_at(server)])) == 3
    server.has_offsets = False
    with pytest.raises(SourceError, match="lists 2 instances, then the same ones"):
        list_entries([study_at(server)])


def test_a_study_has_an_upper_limit_of_instances(
    server: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicomweb, "MAX_INSTANCES", 2)
    with pytest.raises(SourceError, match="it has more than 2 instances"):
        list_entries([study_at(server)])


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        ("application/dicom", b"file", b"file"),
        ("multipart/related; boundary=b", b"--b\r\n\r\nfile\r\n--b--", b"file"),
        (
            "multipart/related; boundary=b",
            b"--b\r\n\r\n1\r\n--b\r\n\r\n2\r\n--b--",
            "is not understood (ValueError)",
        ),
        ("text/html", b"<html>", "is not understood (ValueError)"),
    ],
)
def test_a_reply_is_the_file_or_one_part_with_it(
    server: StubServer,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    body: bytes,
    expected: bytes | str,
) -> None:
    entries = list_entries([study_at(server)])
    monkeypatch.setattr(server, "reply", lambda *_: (200, kind, body))
    [(_, found)] = read_entries(entries[:1])
    if isinstance(found, RejectError):
        assert found.detail.endswith(str(expected))
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((200, "text/html", b"<html>"), "is not understood"),
        ((200, "application/json", b"[{}]"), "is not understood .KeyError"),
        ((200, "application/json", b"null"), "is not understood .TypeError"),
        ((200, "application/json", b"[[7]]"), "is not understood .TypeError"),
        ((200, "application/json", b"[" * 10**6), "is not understood .RecursionErr"),
        ((200, "application/json", b"\xff["), "is not understood"),
        (
            (
                200,
                "application/json",
                b'[{"0020000E": {"Value": ["../x"]}, "00080018": {"Value": ["1"]}}]',
            ),
            "is not understood .ValueError",
        ),
        ((204, "application/json", b""), "check its StudyInstanceUID"),
        ((404, "text/plain", b""), "check its StudyInstanceUID"),
    ],
)
def test_a_search_with_another_reply_is_an_error_of_one_line(
    server: StubServer,
    monkeypatch: pytest.MonkeyPatch,
    reply: tuple[int, str, bytes],
    message: str,
) -> None:
    monkeypatch.setattr(server, "reply", lambda *_: reply)
    with pytest.raises(SourceError, match=message) as caught:
        list_entries([study_at(server)])
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(
        ("check its StudyInstanceUID", "check the URL and the server")
    )


def test_a_user_is_taken_from_the_url_and_not_shown(server: StubServer) -> None:
    server.login = "me:w@rd"
    url = study_at(server)
    assert read_all(list_entries([url.replace("//", "//me:w%40rd@")])) == FILES
    entries = list_entries([url.replace("//", "//me:w%40rd@")])
    server.login = "me:another"
    for ask in (
        lambda: list_entries([url.replace("//", "//me:wrong@")]),
        lambda: [*read_entries(entries)],  # not one rejected file after the other
    ):
        with pytest.raises(SourceError, match="it denies access; name a us") as caught:
            ask()
        assert "wr" not in str(caught.value)
        assert "rd" not in str(caught.value)
    server.login = "m\u00fc:\u738b"
    assert list_entries([url.replace("//", "//m\u00fc:\u738b@")])


def test_no_uid_is_shown_or_logged(
    server: StubServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    entries = list_entries([study_at(server)])
    read_all(entries)
    server.statuses = [503] * 9
    with pytest.raises(SourceError) as caught:
        list_entries([f"{study_at(server)}#7"])
    assert "the study in line 7 of the list at dicomweb+http://127.0.0.1" in str(
        caught.value
    )
    shown = f"{caught.value} {entries[0].container!r} {caplog.text}"
    assert "1.77" not in shown
    assert "1.99" not in shown


def test_an_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ichfast.sources.web_requests", raising=False)
    monkeypatch.setitem(sys.modules, "dicomweb_client.api", None)
    with pytest.raises(SourceError, match=r"pip install 'ichfast\[pacs\]'$") as caught:
        list_entries(["dicomweb://me:word@host/studies/1.2"])
    assert "word" not in str(caught.value)


# A whole run of prepare


@pytest.fixture(scope="module")
def heads() -> dict[str, dict[str, bytes]]:
    """Files of two real series, by study."""
    folder = Path(__file__).parents[3] / "shared" / "data" / "headct_series"
    if not folder.is_dir():
        pytest.skip("the real series of ../shared/data are not here")
    studies: dict[str, dict[str, bytes]] = {}
    for archive in sorted(folder.glob("*.tar.xz")):
        with tarfile.open(archive) as tar:
            for member in list(filter(tarfile.TarInfo.isfile, tar))[:6]:
                opened = tar.extractfile(member)
                assert opened
                content = opened.read()
                opened.seek(0)
                header = dcmread(opened, stop_before_pixels=True)
                key = f"{header.SeriesInstanceUID}/{header.SOPInstanceUID}.dcm"
                studies.setdefault(header.StudyInstanceUID, {})[key] = content
    return studies


@pytest.mark.slow
@pytest.mark.usefixtures("units_of_four")
def test_a_store_made_from_a_server_is_that_of_the_folders_also_after_an_end(
    tmp_path: Path, heads: dict[str, dict[str, bytes]]
) -> None:
    options: dict[str, Any] = {"labels": None, "workers": 1, "keep_ids": True}
    folders = [
        write_folder(tmp_path / study, files) for study, files in sorted(heads.items())
    ]
    local, remote = tmp_path / "local", tmp_path / "remote"
    prepare_store(folders, local, **options)
    listed = tmp_path / "studies.txt"
    listed.write_text("\n".join(sorted(heads, reverse=True)))
    with serving(StubServer(heads)) as stub:
        urls = name_studies([stub.url], listed)
        # Two requests list a study, then four fetch a unit.
        stub.interrupt_at = 2 * len(heads) + 9
        with pytest.raises(StoreError, match="the same command continues"):
            prepare_store(urls, remote, **options)
        stub.paths.clear()
        prepare_store(urls, remote, **options)
        assert len(stub.paths) == 2 * len(heads) + 4
        assert prepare_store(urls, remote, **options).already_finished
    assert verify_store(remote) == []
    # Their digests are of sizes, which a server does not tell, and of places.
    apart = {"journal/entries.parquet", "store.json"}
    check_same_files(remote, local, apart=apart)
    headers = [read_header(store) for store in (remote, local)]
    plans = [{**header.plan, "listing": ""} for header in headers]
    ours_header, theirs_header = (
        replace(header, entries_crc32c=0, plan=plan)
        for header, plan in zip(headers, plans, strict=True)
    )
    assert ours_header == theirs_header
    assert headers[0].counts["slices"] == 12


@pytest.mark.slow
def test_slices_of_another_study_are_rejected(
    tmp_path: Path, heads: dict[str, dict[str, bytes]]
) -> None:
    (asked, files), (_, others) = sorted(heads.items())
    mixed = {**files, "1.88/1.99.dcm": next(iter(others.values()))}
    with serving(StubServer({asked: mixed})) as stub:
        report = prepare_store(
            [f"{stub.url}/studies/{asked}"],
            tmp_path / "store",
            labels=None,
            workers=1,
            keep_ids=True,
            max_rejected="100%",
        )
    assert report.rejected == {"unreadable-file": 1}
    assert report.slices == len(files)
    listed = (tmp_path / "store" / "rejected.csv").read_text()
    assert "the server sent a file of another study" in listed


@pytest.mark.slow
def test_the_commands_take_a_list_of_studies(tmp_path: Path, source: Path) -> None:
    studies: dict[str, dict[str, bytes]] = {}
    for path in source.iterdir():
        header = dcmread(path, specific_tags=["StudyInstanceUID"])
        key = f"1.88/{path.stem}.dcm"
        studies.setdefault(header.StudyInstanceUID, {})[key] = path.read_bytes()
    first, last = sorted(studies)
    listed, store = tmp_path / "studies.txt", tmp_path / "store"
    with serving(StubServer(studies)) as stub:
        prepare = ("prepare", stub.url, "--studies", listed, "--store", store)
        listed.write_text(last)
        assert ok(*prepare, "--workers", "1")["slices"] == len(studies[last])
        listed.write_text(f"{first}\n{last}")
        stub.paths.clear()
        assert ok(*prepare, "--workers", "1", "--append")["slices"] == 23
        fetched = [path for path in stub.paths if not path.endswith("/instances")]
        assert len(fetched) == len(studies[first])
        with next(store.glob("level-512/*.npy")).open("r+b") as shard:
            shard.write(b"damage")
        repair = ("verify", store, "--repair", stub.url, "--studies", listed)
        assert ok(*repair)["repaired"]
    said = refused("verify", store, "--studies", listed, status=2)
    assert "--studies is for --repair" in said
    said = refused("prepare", source, "--studies", listed, "--store", tmp_path / "new")
    assert "no source is a DICOMweb server" in said


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("dicomweb://host:x/rs/studies/1", "is not understood; give dicomweb://HOST:P"),
        ("dicomweb://[me:word@host/studies/1", "is not understood; give dicomweb://H"),
        ("dicomweb:///studies/1", "is asked for no study"),
        ("dicomweb://me:word@host/studies/a/b", "dicomweb://host is asked for no st"),
    ],
)
def test_a_url_that_is_none_is_refused(url: str, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        list_entries([url])
    assert "word" not in str(caught.value)
