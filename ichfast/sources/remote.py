"""Files at URLs: object stores and web servers, through fsspec.

fsspec and its packages for each protocol come with the extra ``cloud``. They are
imported when a URL is used, and not before.

Promises:

1. A `Remote` is two short texts. It pickles, and opens in any process or machine that
   has the extra and the credentials: in the service's own environment variables and
   files, or in the URL itself.
2. User names, passwords and query strings of a URL are in no message, no name and no
   repr. Neither are a service's own messages, because they quote the URL.
3. Every failure is an `OSError`, like that of a local file.
4. An open file is read by ranges: what is asked for, and up to `RANGE_BYTES` after it.
   A reply that is shorter or longer than its range is an error.
5. Every wait ends, after the time limits of the service's own client. That is a
   `TimeoutError`.

Ranges are requested here and not by fsspec's own files, which accept a short reply,
and the first bytes of a server that ignores ranges.

Tested with ``s3://`` (s3fs and moto's server), ``http://`` (Python's server), and
fsspec's ``memory://``, which `prepare` and the listing of tars refuse because it cannot
be read from another process. ``gs://`` was tried by hand with gcsfs 2026.10 and
gcp-storage-emulator: a folder and a zip gave the bytes of the files on disk. It has no
test, and was not tried with Google's service.
"""

from __future__ import annotations

import errno
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from ichfast.errors import SourceError

RANGE_BYTES = 2**20
"""Lower limit of the bytes requested at once from an open file: two slices."""

_SECRETS = re.compile(r"(?<=://)[^/?#]*@|[?#].*?(?=::|$)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Remote:
    """A file or folder at a URL."""

    url: str = field(repr=False)
    """What the user gave; fsspec finds the file system with it."""

    path: str = field(repr=False)
    """Its path in that file system."""

    def __str__(self) -> str:
        return without_secrets(self.url)

    __repr__ = __str__

    def __truediv__(self, file: str) -> Remote:
        """A file below this folder."""
        return Remote(self.url, f"{self.path.rstrip('/')}/{file}")

    @property
    def name(self) -> str:
        """The last part of the path, without a query."""
        return _label(self, self.path.partition("?")[0].rstrip("/")).rpartition("/")[2]

    def is_dir(self) -> bool:
        """Whether it is a folder. On a web server, the URL of one ends with a slash."""
        if without_secrets(self.url).endswith("/"):
            return True
        return bool(self._describe().get("type") == "directory")

    def size(self) -> int:
        """The size of the file, bytes."""
        return _known(self._describe().get("size"))

    def files(self) -> list[tuple[str, str, int]]:
        """List every file of this folder and of the folders below it.

        Returns:
            For each file its path relative to this folder, that path as it is shown,
            and its size in bytes; unsorted.
        """
        with _plain_errors():
            system = _file_system(self.url)
            system.invalidate_cache()
            found = {
                path: entry.get("size")
                for path, entry in system.find(self.path, detail=True).items()
                if not path.endswith("/") and not (_is_web(self) and "?" in path)
            }
            unknown = [path for path, size in found.items() if size is None]
            if unknown:  # a web server's listing has no sizes
                found |= zip(unknown, system.sizes(unknown), strict=True)
        base = f"{self.path.rstrip('/')}/"
        below = ((path.removeprefix(base), path, size) for path, size in found.items())
        return [
            (file, _label(self, file), _known(size))
            for file, path, size in below
            if path.startswith(base)
        ]

    def open(self, mode: Literal["rb"]) -> io.BufferedReader:
        """Open the file for reading by ranges, like `pathlib.Path.open`."""
        del mode
        return io.BufferedReader(_Ranges(self, self.size()), RANGE_BYTES)

    def _describe(self) -> dict[str, Any]:
        with _plain_errors():
            return dict(_file_system(self.url).info(self.path))


Container = Path | Remote
"""A file, an archive, or a folder of files and archives."""


def connect_to(url: str) -> Remote:
    """Find the file system of a URL.

    Raises:
        SourceError: the URL's protocol is unknown, needs a package that is not
            installed, or cannot be understood.
    """
    return Remote(url, _connect(url)[1])


def check_reachable(sources: Sequence[Path | str]) -> None:
    """Check that other processes can read all sources.

    Raises:
        SourceError: a source lies in the memory of this process.
    """
    for source in sources:
        links = str(source).split("::")
        if any(link.startswith("memory://") for link in links):
            raise SourceError(
                f"{without_secrets(str(source))} lies in the memory of this process, "
                "which its workers do not share; write it to a folder, an archive or "
                "an object store first"
            )


def read_files(files: Sequence[Remote]) -> list[bytes | OSError]:
    """Read whole files of one source, all at the same time.

    Returns:
        For each file its bytes, or the error that reading it gave.
    """
    try:
        with _plain_errors():
            system = _file_system(files[0].url)
            found = system.cat_ranges([file.path for file in files], None, None)
    except OSError as error:
        return [error] * len(files)
    return [
        _plain(content) if isinstance(content, Exception) else bytes(content)
        for content in found
    ]


def without_secrets(url: str) -> str:
    """The URL without user names, passwords and query strings.

    >>> without_secrets("https://me:word@host/heads.zip?signature=1")
    'https://host/heads.zip'
    """
    return _SECRETS.sub("", url)


class _Ranges(io.RawIOBase):
    """An open file that makes a request for each read."""

    def __init__(self, file: Remote, num_bytes: int) -> None:
        self._file = file
        self._num_bytes = num_bytes
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = (0, self._at, self._num_bytes)[whence]
        if start + offset < 0:
            raise ValueError(f"cannot seek to byte {start + offset}")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        asked = min(len(buffer), self._num_bytes - self._at)
        if asked <= 0:
            return 0
        with _plain_errors():
            content = _file_system(self._file.url).cat_file(
                self._file.path, start=self._at, end=self._at + asked
            )
        if len(content) != asked:
            raise OSError(
                errno.EIO,
                f"asked for {asked:,} bytes, the server sent {len(content):,}; it "
                "cannot read by ranges, or the file has changed: download it first",
            )
        buffer[:asked] = content
        self._at += asked
        return asked


def _file_system(url: str) -> Any:
    return _connect(url)[0]


def _connect(url: str) -> tuple[Any, str]:
    """The file system, of which fsspec keeps one per process, and the path in it."""
    try:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        system, path = url_to_fs(url)
    except ImportError as error:
        raise SourceError(
            f"cannot read {without_secrets(url)}: a package is missing ({error}); "
            "pip install 'ichfast[cloud]'"
        ) from None
    except ValueError:
        raise SourceError(
            f"cannot read {without_secrets(url)}: this URL is not understood; give "
            "s3://BUCKET/KEY, gs://BUCKET/KEY, https://HOST/FILE or a local path"
        ) from None
    return system, str(path)


@contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        yield
    except SourceError:
        raise
    except Exception as error:  # noqa: BLE001  each service has its own errors
        raise _plain(error) from None


def _plain(error: Exception) -> OSError:
    """The same failure without the service's own message."""
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "it is not there")
    if isinstance(error, PermissionError):
        return PermissionError(errno.EACCES, "the server denies access")
    if isinstance(error, TimeoutError):
        return TimeoutError(errno.ETIMEDOUT, "the server gives no answer in time")
    status = getattr(error, "status", None)
    detail = f"HTTP status {status}" if status else type(error).__name__
    return OSError(errno.EIO, f"the server cannot be read ({detail})")


def _known(size: object) -> int:
    if not isinstance(size, int):
        raise OSError(errno.EIO, "the server does not tell its size; download it first")
    return size


def _is_web(file: Remote) -> bool:
    return file.url.startswith(("https://", "http://"))


def _label(file: Remote, path: str) -> str:
    return unquote(path) if _is_web(file) else path
