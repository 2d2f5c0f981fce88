"""Requests to a DICOMweb server, with limits.

requests and dicomweb-client are imported here alone, so import this module only when a
request is made.

A server may be broken, or hostile:

1. No redirect is followed: the UIDs of a request and its reply stay between this
   machine and the server that was named.
2. A reply is read up to a limit. One that is compressed is refused, because a few bytes
   can unpack to any number.
3. Errors have neither the URL nor text of the server.
"""

from __future__ import annotations

import errno
import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import requests
from dicomweb_client.api import DICOMwebClient
from requests import exceptions
from urllib3.exceptions import MaxRetryError, NewConnectionError

from ichfast.system.timeouts import note_progress

SERVER_S = 60.0
"""Time for a server to accept a connection, and to send something, seconds."""

MAX_SEARCH_BYTES = 2**25
"""Upper limit of the reply to a search, bytes. A thousand instances with all attributes
take up to 5 MB."""

PASSING = frozenset((408, 425, 429, 502, 503, 504))
"""HTTP statuses that may pass. A server that cannot read one instance gives 500, too.
"""

_CHUNK_BYTES = 2**18

_AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'


@dataclass
class RequestError(Exception):
    """Why a request failed, without URL and ids."""

    reason: str
    may_pass: bool = False
    is_of_server: bool = False
    """Every other request to this server would fail, too."""


class _Session:
    """The session of a client: what it gets is limited.

    Args:
        user: empty for none; then ``~/.netrc`` is asked.
        password: of the user.
    """

    def __init__(self, user: str, password: str) -> None:
        self._session = requests.Session()
        if user:
            self._session.auth = (user.encode(), password.encode())

    def get(self, url: str, headers: Mapping[str, str], **_: Any) -> Any:
        """The reply to a search, as dicomweb-client asks for it."""
        body, reply_headers = self.read(url, headers, MAX_SEARCH_BYTES)
        reply = requests.Response()
        reply.status_code = requests.codes.ok
        reply.headers.update(reply_headers)
        reply.raw = io.BytesIO(body)
        return reply

    def read(
        self, url: str, headers: Mapping[str, str], max_bytes: int
    ) -> tuple[bytearray, Mapping[str, str]]:
        """Body and headers of a reply."""
        body = bytearray()
        with self._session.get(
            url,
            headers={**headers, "Accept-Encoding": "identity"},
            stream=True,
            timeout=SERVER_S,
            allow_redirects=False,
        ) as reply:
            _check(reply)
            for chunk in reply.iter_content(_CHUNK_BYTES):
                note_progress()
                body += chunk
                if len(body) > max_bytes:
                    raise OSError(errno.EFBIG, f"it has more than {max_bytes:,} bytes")
            return body, reply.headers


@lru_cache(maxsize=8)
def _connect(root: str, user: str, password: str) -> tuple[Any, _Session]:
    for name in ("dicomweb_client", "retrying", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they log URLs with UIDs
    session = _Session(user, password)
    client = DICOMwebClient(root, session=session, permissive_uid=True)
    client.set_http_retry_params(retry=False)  # `ichfast.sources.dicomweb` tries again
    return client, session


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """A DICOMweb server and who asks it."""

    root: str
    """URL of its DICOMweb service: http or https."""

    user: str
    password: str

    def search(self, study: str, *, limit: int, offset: int) -> Any:
        """The instances of a study, as the server describes them.

        Args:
            study: StudyInstanceUID.
            limit: upper limit of instances, which a server may not heed.
            offset: number of the first one, from 0.
        """
        client, _ = self._connection()
        return client.search_for_instances(study, limit=limit, offset=offset)

    def fetch(self, path: str, max_bytes: int) -> tuple[bytearray, str]:
        """The reply to a request for one instance as it is stored, and its media type.

        Args:
            path: of the instance, below the root.
            max_bytes: upper limit of the reply.
        """
        _, session = self._connection()
        url = f"{self.root}{path}"
        body, headers = session.read(url, {"Accept": _AS_STORED}, max_bytes)
        return body, headers.get("Content-Type", "")

    def _connection(self) -> tuple[Any, _Session]:
        return _connect(self.root, self.user, self.password)


def _check(reply: Any) -> None:
    """Refuse a reply by its status, or because it is compressed."""
    status = reply.status_code
    if status in (404, 410):
        raise FileNotFoundError(errno.ENOENT, "the server does not have it")
    if status == 401:
        raise RequestError(
            "denies access; name a user in the URL or in ~/.netrc", is_of_server=True
        )
    if status == 403:
        raise PermissionError(errno.EACCES, "the server denies access to it")
    if 300 <= status < 400:
        raise RequestError(
            "sends requests to another address; name that one", is_of_server=True
        )
    if not 200 <= status < 300:
        raise RequestError(
            f"the server answers with HTTP status {status}",
            may_pass=status in PASSING,
        )
    if reply.headers.get("Content-Encoding", "identity") != "identity":
        raise RequestError("the server compresses its reply, which was not asked for")


def plain(error: Exception) -> Exception:
    """The same failure without URL and ids: a `RequestError`, or an OSError."""
    match error:
        case exceptions.ConnectTimeout():
            return _no_server()
        case exceptions.ConnectionError(
            args=[MaxRetryError(reason=NewConnectionError())]
        ):
            return _no_server()
        case exceptions.Timeout():
            return RequestError("the server gives no answer in time", may_pass=True)
        case exceptions.SSLError():
            return _no_encryption(str(error))
        case exceptions.ConnectionError() | exceptions.ChunkedEncodingError():
            return RequestError("the server ends the connection", may_pass=True)
        case RequestError():
            return error
        case OSError() if not isinstance(error, requests.RequestException):
            return error
    return RequestError(
        f"the reply of the server is not understood ({type(error).__name__})"
    )


def _no_server() -> RequestError:
    return RequestError(
        "accepts no connection; check that it runs, then type the same command again",
        may_pass=True,
        is_of_server=True,
    )


def _no_encryption(message: str) -> RequestError:
    if "CERTIFICATE_VERIFY_FAILED" in message:
        return RequestError(
            "has a certificate that this machine does not trust; set "
            "REQUESTS_CA_BUNDLE to a file with that of its authority",
            is_of_server=True,
        )
    return RequestError(
        "does not encrypt as https does; for one without encryption write "
        "dicomweb+http://",
        may_pass=True,
        is_of_server=True,
    )
