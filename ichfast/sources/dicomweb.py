"""Studies on a DICOMweb server, such as that of a PACS.

A study is a URL: ``dicomweb://HOST/PATH/studies/UID``, or ``dicomweb+http://`` where
the server does not encrypt. The extra ``pacs`` has dicomweb-client and requests, which
are imported when such a URL is used.

Promises:

1. A study that was not named is never asked for. Slices of another study, which a
   broken server sends, are rejected (`ichfast.prepare.convert`).
2. The instances of a study have the keys ``SERIES/INSTANCE.dcm``, as in a folder of
   that layout, and the bytes that the server stores: nothing is transcoded. A listing
   has no sizes, so all are 0.
3. User names, passwords and UIDs are in no message, no name and no repr.
4. A failure that may pass is tried again after each of `PAUSES_S`. Where every other
   request would fail too, it is a `SourceError` then, which ends `prepare`; the same
   command goes on. Every other failure is an `OSError`, like that of a local file.
5. Every wait ends: for a server after `web_requests.SERVER_S`, for a call that makes no
   progress after `ichfast.system.timeouts.STALL_S`.

dicomweb-client lists instances. It is not used to fetch them, because it parses a file
and gives a data set: the bytes would not be those of the file, and a hostile one would
be parsed outside the limits of `prepare`.

Source:
    DICOM PS3.18: 10.6 search (QIDO-RS), 10.4 retrieve (WADO-RS), 8.6.1.2.1 multipart.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from ichfast.errors import SourceError
from ichfast.system.timeouts import call_with_timeout, read_file

if TYPE_CHECKING:
    from ichfast.sources.web_requests import RequestError, Server

T = TypeVar("T")

SCHEMES = {"dicomweb": "https", "dicomweb+http": "http"}
"""Schemes of such URLs, and those of the requests."""

PAUSES_S = (1.0, 5.0, 15.0)
"""Time before each new try, seconds."""

PAGE = 1000
"""Instances that are asked for at once."""

MAX_INSTANCES = 100_000
"""Upper limit of the instances of a study."""

MAX_LIST_BYTES = 2**24
"""Upper limit of a list of studies, bytes: 250,000 UIDs."""

_STUDIES = "/studies/"
_SUFFIX = ".dcm"

_UID = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.-]{0,63}")
"""UIDs, and ids in their place such as RSNA's. They become parts of a URL and of a key.
"""

_SERIES_TAG, _INSTANCE_TAG = "0020000E", "00080018"


@dataclass(frozen=True, slots=True)
class WebStudy:
    """A study on a DICOMweb server, or one instance of it."""

    url: str = field(repr=False)
    """URL of the study. A fragment is its line in a list of studies, for messages."""

    file: str = field(default="", repr=False)
    """Key of the instance in the study; empty for the study itself."""

    def __str__(self) -> str:
        line = urlsplit(self.url).fragment
        place = f" in line {line} of the list" if line else ""
        return f"the study{place} at {self.server}"

    __repr__ = __str__

    def __truediv__(self, file: str) -> WebStudy:
        """An instance of this study."""
        return WebStudy(self.url, file)

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.file.rpartition("/")[2]

    @property
    def server(self) -> str:
        """URL of the server, as it is shown."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{_host(parts)}{_root(parts)}"

    @property
    def study(self) -> str:
        """StudyInstanceUID."""
        return urlsplit(self.url).path.rpartition(_STUDIES)[2]

    def list_keys(self) -> list[str]:
        """List the keys of the instances of this study, unsorted.

        Raises:
            FileNotFoundError: the server does not have it.
            OSError: it cannot be read.
            SourceError: the server cannot be connected to.
        """
        keys: dict[str, None] = {}
        found: list[str] = []
        num_found = 0
        while num_found <= MAX_INSTANCES:
            found = _ask(_search, self, num_found)
            num_found += len(found)
            num_before = len(keys)
            keys.update(dict.fromkeys(found))
            if len(keys) == num_before:  # also of a server that ignores offsets
                break
        else:
            raise OSError(errno.EFBIG, f"it has more than {MAX_INSTANCES:,} instances")
        if len(found) == PAGE:
            raise OSError(
                errno.EIO,
                f"the server lists {PAGE:,} instances, then the same ones again",
            )
        if not keys:
            raise FileNotFoundError(errno.ENOENT, "the server does not have it")
        return list(keys)

    def read(self, max_bytes: int) -> bytes:
        """Fetch this instance, as the server stores it.

        Args:
            max_bytes: upper limit of its size.

        Raises:
            OSError: it is larger, or cannot be read.
            SourceError: the server cannot be connected to.
        """
        return _ask(_fetch, self, max_bytes)


def is_web_study(source: str) -> bool:
    """Whether a source is the URL of a DICOMweb server, or of a study there."""
    return source.partition("://")[0] in SCHEMES


def web_study(url: str) -> WebStudy:
    """Check the URL of a study.

    Raises:
        SourceError: it names no study or no server, or a package is missing.
    """
    study = WebStudy(url)
    try:
        parts = urlsplit(url)
        has_server = parts.hostname and parts.port != 0  # a ValueError if no number
        has_study = has_server and _UID.fullmatch(study.study)
        if has_study:
            _server(url)
    except ImportError as error:
        raise SourceError(
            f"cannot read {study.server}: a package is missing ({error}); "
            "pip install 'ichfast[pacs]'"
        ) from None
    except ValueError:
        raise SourceError(
            "the URL of a DICOMweb server is not understood; give "
            f"dicomweb://HOST:PORT/PATH{_STUDIES}UID"
        ) from None
    if not has_study:
        raise SourceError(
            f"{study.server} is asked for no study; name the studies with --studies "
            f"FILE, or one as dicomweb://HOST/PATH{_STUDIES}UID"
        )
    return study


def name_studies(sources: Sequence[str], listed: Path) -> list[str]:
    """Ask each DICOMweb server among some sources for the studies of a list.

    Args:
        sources: as the user gave them. URLs of servers become URLs of studies.
        listed: text file with a StudyInstanceUID in each line.

    Returns:
        The sources; of each server its studies, sorted by UID.

    Raises:
        SourceError: the list cannot be read, is empty, or a line is no UID; or no
            source is a server.
    """
    servers = [each for each in filter(is_web_study, sources) if _STUDIES not in each]
    if not servers:
        raise SourceError(
            f"{listed} names studies, but no source is a DICOMweb server; give "
            "dicomweb://HOST/PATH"
        )
    numbers = _read_list(listed)
    urls: list[str] = []
    for source in sources:
        root = source.rstrip("/")
        urls += (
            [f"{root}{_STUDIES}{uid}#{numbers[uid]}" for uid in sorted(numbers)]
            if source in servers
            else [source]
        )
    return urls


def _read_list(path: Path) -> dict[str, int]:
    """The UIDs of a list, and the number of the line of each."""
    try:
        lines = read_file(path, MAX_LIST_BYTES).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise SourceError(
            f"cannot read the list of studies {path}: {reason}; name a text file with "
            "a StudyInstanceUID in each line"
        ) from error
    numbers: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line:
            continue
        if not _UID.fullmatch(line):
            raise SourceError(
                f"line {number} of {path} is no StudyInstanceUID; write one in each "
                "line, and nothing else"
            )
        numbers.setdefault(line, number)
    if not numbers:
        raise SourceError(f"{path} is empty; write a StudyInstanceUID in each line")
    return numbers


def _host(parts: SplitResult) -> str:
    """Host and port, without the user."""
    return parts.netloc.rpartition("@")[2]


def _root(parts: SplitResult) -> str:
    return parts.path.partition(_STUDIES)[0].rstrip("/")


def _server(study_url: str) -> Server:
    from ichfast.sources.web_requests import Server

    parts = urlsplit(study_url)
    return Server(
        root=f"{SCHEMES[parts.scheme]}://{_host(parts)}{_root(parts)}",
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
    )


def _ask(function: Callable[..., T], study: WebStudy, *arguments: object) -> T:
    """Call a function that asks a server, again where its failure may pass."""
    from ichfast.sources.web_requests import RequestError, plain

    pauses = iter(PAUSES_S)
    while True:
        try:
            return call_with_timeout(function, study, *arguments)
        except Exception as raised:  # noqa: BLE001  a reply may be anything
            error = plain(raised)
        if not isinstance(error, RequestError):
            raise error
        pause_s = next(pauses, None)
        if not error.may_pass or pause_s is None:
            raise _failure(study, error)
        time.sleep(pause_s)


def _failure(study: WebStudy, error: RequestError) -> Exception:
    """A failure of a request that is not tried again."""
    if error.is_of_server:
        return SourceError(f"cannot read {study.server}: it {error.reason}")
    if error.may_pass:
        return TimeoutError(errno.ETIMEDOUT, error.reason)
    return OSError(errno.EIO, error.reason)


def _search(study: WebStudy, offset: int) -> list[str]:
    """The keys of at most `PAGE` instances of a study."""
    found = _server(study.url).search(study.study, limit=PAGE, offset=offset)
    return [*map(_key, found)]


def _key(found: Any) -> str:
    """The key of an instance in the reply to a search."""
    series, instance = (
        str(found[tag]["Value"][0]) for tag in (_SERIES_TAG, _INSTANCE_TAG)
    )
    if not _UID.fullmatch(series) or not _UID.fullmatch(instance):
        raise ValueError("a UID of the server is none")
    return f"{series}/{instance}{_SUFFIX}"


def _fetch(study: WebStudy, max_bytes: int) -> bytes:
    series, _, instance = study.file.removesuffix(_SUFFIX).partition("/")
    path = f"{_STUDIES}{study.study}/series/{series}/instances/{instance}"
    return _only_part(*_server(study.url).fetch(path, max_bytes))


def _only_part(body: bytearray, content_type: str) -> bytes:
    """The file in the reply to a request for one instance."""
    from ichfast.sources.web_requests import RequestError

    header = Message()
    header["Content-Type"] = content_type
    if header.get_content_type() == "application/dicom":  # of some servers
        return bytes(body)
    boundary = header.get_boundary()
    if header.get_content_type() != "multipart/related" or not boundary:
        raise ValueError("the reply is no multipart message")
    delimiter = f"\r\n--{boundary}".encode()
    start = body.find(b"\r\n\r\n") + 4
    end = body.find(delimiter + b"--", start)
    if start < 4 or end < 0:
        raise RequestError("the server ends its reply too early", may_pass=True)
    if body.find(delimiter, start) != end:
        raise ValueError("the reply has several parts")
    return bytes(memoryview(body)[start:end])
