"""Studies on a DICOMweb server, such as that of a PACS.

A study is a URL: ``dicomweb://HOST/PATH/studies/UID``, or ``dicomweb+http://`` where
the server does not encrypt. The extra ``pacs`` has dicomweb-client and requests, which
are imported when such a URL is used.

Promises:

1. A study that was not named is never asked for.
2. The instances of a study have the keys ``SERIES/INSTANCE.dcm``, as in a folder of
   that layout, and the bytes that the server stores: nothing is transcoded. A listing
   has no sizes, so all are 0.
3. User names, passwords and UIDs are in no message, no name and no repr.
4. A failure that may pass is tried again after each of `PAUSES_S`. A server that cannot
   be connected to is a `SourceError` then, which ends `prepare`; the same command goes
   on. Every other failure is an `OSError`, like that of a local file.
5. Every wait ends: for a server after `SERVER_S`, for a call that makes no progress
   after `ichfast.system.timeouts.STALL_S`.

dicomweb-client lists instances. It is not used to fetch them, because it parses a file
and gives a data set: the bytes would not be those of the file, and a hostile one would
be parsed outside the limits of `prepare`.

Source:
    DICOM PS3.18: 10.6 search (QIDO-RS), 10.4 retrieve (WADO-RS), 8.6.1.2.1 multipart.
"""

from __future__ import annotations

import errno
import logging
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from ichfast.errors import SourceError
from ichfast.system.timeouts import call_with_timeout, note_progress, read_file

T = TypeVar("T")

SCHEMES = {"dicomweb": "https", "dicomweb+http": "http"}
"""Schemes of such URLs, and those of the requests."""

SERVER_S = 60.0
"""Time for a server to accept a connection, and to send something, seconds."""

PAUSES_S = (1.0, 5.0, 15.0)
"""Time before each new try, seconds."""

PASSING = frozenset((408, 425, 429, 502, 503, 504))
"""HTTP statuses that may pass. A server that cannot read one instance gives 500, too.
"""

PAGE = 1000
"""Instances that are asked for at once."""

MAX_INSTANCES = 100_000
"""Upper limit of the instances of a study."""

MAX_LIST_BYTES = 2**24
"""Upper limit of a list of studies, bytes: 250,000 UIDs."""

_CHUNK_BYTES = 2**18
_STUDIES = "/studies/"
_SUFFIX = ".dcm"

_UID = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.-]{0,63}")
"""UIDs, and ids in their place such as RSNA's. They become parts of a URL and of a key.
"""

_SERIES_TAG, _INSTANCE_TAG = "0020000E", "00080018"

_AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'


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
        while len(keys) <= MAX_INSTANCES:
            num_before = len(keys)
            keys.update(dict.fromkeys(_ask(_search, self, num_before)))
            if len(keys) == num_before:  # also of a server that has no offsets
                break
        else:
            raise OSError(errno.EFBIG, f"it has more than {MAX_INSTANCES:,} instances")
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
            _client(url)
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


def _client(study_url: str) -> tuple[Any, Any]:
    """A client of the server of a study, and its session."""
    parts = urlsplit(study_url)
    return _server_client(
        f"{SCHEMES[parts.scheme]}://{_host(parts)}{_root(parts)}",
        unquote(parts.username or ""),
        unquote(parts.password or ""),
    )


@lru_cache(maxsize=8)
def _server_client(root: str, user: str, password: str) -> tuple[Any, Any]:
    import requests
    from dicomweb_client.api import DICOMwebClient

    for name in ("dicomweb_client", "retrying", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they log URLs with UIDs
    session = requests.Session()
    if user:
        session.auth = (user, password)
    client = DICOMwebClient(
        root, session=session, permissive_uid=True, timeout=SERVER_S
    )
    client.set_http_retry_params(retry=False)  # `_ask` tries again
    return client, session


def _ask(function: Callable[..., T], study: WebStudy, *arguments: object) -> T:
    """Call a function that asks a server, again where its failure may pass."""
    for pause_s in PAUSES_S:
        with suppress(_PassingError):
            return _ask_once(function, study, *arguments)
        time.sleep(pause_s)
    try:
        return _ask_once(function, study, *arguments)
    except _NoServerError:
        raise SourceError(
            f"cannot connect to {study.server}; when it is back, type the same command "
            "again"
        ) from None
    except _PassingError as error:
        raise TimeoutError(errno.ETIMEDOUT, str(error)) from None


def _ask_once(function: Callable[..., T], *arguments: object) -> T:
    try:
        return call_with_timeout(function, *arguments)
    except Exception as error:  # noqa: BLE001  a reply may be anything
        raise _plain(error) from None


def _search(study: WebStudy, offset: int) -> list[str]:
    """The keys of at most `PAGE` instances of a study."""
    client, _ = _client(study.url)
    found = client.search_for_instances(study.study, limit=PAGE, offset=offset)
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
    client, session = _client(study.url)
    series, _, instance = study.file.removesuffix(_SUFFIX).partition("/")
    url = (
        f"{client.base_url}/studies/{study.study}/series/{series}/instances/{instance}"
    )
    content = bytearray()
    with session.get(
        url, headers={"Accept": _AS_STORED}, stream=True, timeout=SERVER_S
    ) as response:
        response.raise_for_status()
        for chunk in response.iter_content(_CHUNK_BYTES):
            note_progress()
            content += chunk
            if len(content) > max_bytes:
                raise OSError(errno.EFBIG, f"it has more than {max_bytes:,} bytes")
        return _only_part(content, response.headers.get("Content-Type", ""))


def _only_part(body: bytearray, content_type: str) -> bytes:
    """The file in the reply to a request for one instance."""
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
        raise _PassingError("the server ends its reply too early")
    if body.find(delimiter, start) != end:
        raise ValueError("the reply has several parts")
    return bytes(memoryview(body)[start:end])


class _PassingError(Exception):
    """A failure that may pass."""


class _NoServerError(_PassingError):
    """Nothing answers at the address of the server."""


def _plain(error: Exception) -> Exception:
    """The same failure without URL and ids."""
    from requests import ConnectionError, HTTPError, RequestException, Timeout
    from requests.exceptions import ChunkedEncodingError, ConnectTimeout, SSLError
    from urllib3.exceptions import MaxRetryError, NewConnectionError

    match error:
        case ConnectTimeout():
            return _NoServerError()
        case ConnectionError(args=[MaxRetryError(reason=NewConnectionError())]):
            return _NoServerError()
        case Timeout():
            return _PassingError("the server gives no answer in time")
        case HTTPError(response=response):
            return _of_status(response.status_code)
        case SSLError():
            return OSError(
                errno.EIO,
                "the certificate of the server is not trusted; set REQUESTS_CA_BUNDLE "
                "to a file with that of its authority",
            )
        case ConnectionError() | ChunkedEncodingError():
            return _PassingError("the server ends the connection")
        case _PassingError():
            return error
        case OSError() if not isinstance(error, RequestException):
            return error
    return OSError(
        errno.EIO, f"the reply of the server is not understood ({type(error).__name__})"
    )


def _of_status(status: int) -> Exception:
    if status in (404, 410):
        return FileNotFoundError(errno.ENOENT, "the server does not have it")
    if status in (401, 403):
        return PermissionError(
            errno.EACCES, "the server denies access; name a user in the URL or ~/.netrc"
        )
    kind = _PassingError if status in PASSING else partial(OSError, errno.EIO)
    return kind(f"the server cannot be read (HTTP status {status})")
