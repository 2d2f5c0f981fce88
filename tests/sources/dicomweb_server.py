"""A DICOMweb server in a thread: search for instances, and retrieve one."""

from __future__ import annotations

import base64
import http.server
import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

BOUNDARY = b"a-boundary"


@dataclass
class StubServer:
    """What the server has, how it fails, and what it was asked for."""

    studies: Mapping[str, Mapping[str, bytes]]
    """For each study its files, by ``SERIES/INSTANCE.dcm``."""

    page: int = 1000
    """Upper limit of instances in a reply."""

    has_offsets: bool = True

    login: str = ""
    """``user:password`` that it demands; empty: none."""

    statuses: list[int] = field(default_factory=list)
    """HTTP statuses of the next replies; those of the rest are right."""

    cut_bytes: list[int] = field(default_factory=list)
    """Bytes that are missing at the end of the next files."""

    headers: dict[str, str] = field(default_factory=dict)
    """Headers of all replies, beyond those that they need."""

    interrupt_at: int = -1
    """Number of the request, from 0, at which this process gets a SIGINT."""

    paths: list[str] = field(default_factory=list)
    """Paths that were asked for."""

    url: str = ""
    """Its address, as a source."""

    def reply(self, target: str, accept: str) -> tuple[int, str, bytes]:
        """The status, content type and body for the target of a request.

        Args:
            target: path and query.
            accept: what the client accepts. A server with other bytes than the stored
                ones would transcode; this one refuses.
        """
        parts = urlsplit(target)
        if len(self.paths) == self.interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)
        self.paths.append(parts.path)
        if self.statuses and (status := self.statuses.pop(0)) != 200:
            return status, "text/plain", b"Somebody^Secret"
        names = parts.path.removeprefix("/pacs/studies/").split("/")
        files = self.studies.get(names[0], {})
        if names[1:] == ["instances"]:
            found = self._search(files, parse_qs(parts.query))
            return 200, "application/dicom+json", json.dumps(found).encode()
        if "transfer-syntax=*" not in accept:
            return 406, "text/plain", b""
        content = files.get(f"{names[2]}/{names[4]}.dcm")
        if content is None:
            return 404, "text/plain", b""
        if self.cut_bytes and (cut := self.cut_bytes.pop(0)):
            body = _multipart(content)[:-cut]
        else:
            body = _multipart(content)
        kind = f'multipart/related; type="application/dicom"; boundary="{BOUNDARY!s}"'
        return 200, kind.replace(str(BOUNDARY), BOUNDARY.decode()), body

    def _search(
        self, files: Mapping[str, bytes], query: Mapping[str, list[str]]
    ) -> list[Any]:
        offset = int(query["offset"][0]) if self.has_offsets else 0
        number = min(int(query["limit"][0]), self.page)
        return [
            {
                "0020000E": {"vr": "UI", "Value": [key.partition("/")[0]]},
                "00080018": {"vr": "UI", "Value": [key[:-4].partition("/")[2]]},
            }
            for key in list(files)[offset : offset + number]
        ]


def _multipart(content: bytes) -> bytes:
    head = b"--" + BOUNDARY + b"\r\nContent-Type: application/dicom\r\n\r\n"
    return head + content + b"\r\n--" + BOUNDARY + b"--\r\n"


@contextmanager
def serving(stub: StubServer) -> Iterator[StubServer]:
    """Serve at a free port of this machine, which `StubServer.url` then names."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            demanded = f"Basic {base64.b64encode(stub.login.encode()).decode()}"
            if stub.login and self.headers.get("Authorization") != demanded:
                status, kind, body = 401, "text/plain", b""
            else:
                status, kind, body = stub.reply(self.path, self.headers["Accept"])
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            for name, value in stub.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Say nothing of a client that ends its connection."""

    with Server(("127.0.0.1", 0), Handler) as server:
        stub.url = f"dicomweb+http://127.0.0.1:{server.server_port}/pacs"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield stub
        finally:
            server.shutdown()
            thread.join(10)
