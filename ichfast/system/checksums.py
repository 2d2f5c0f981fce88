"""Checksums in and beside files, so that damage and edits are noticed by a reader.

1. A JSON document has the CRC-32C of its other fields as its last field, ``crc32c``.
   A reader compares every byte with what would be written.
2. Beside a table such as ``p.csv`` is ``p.csv.sha256``, as sha256sum(1) writes it.
   Before ``p.csv`` is replaced, this file names the old content and the new one. So
   after a kill at any moment the table that is there has a valid checksum.
3. A table without such a file is read with a warning: it may come from elsewhere.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c

from ichfast.errors import IchfastError
from ichfast.system.files import ADVICE, output_path

logger = logging.getLogger(__name__)

SUFFIX = ".sha256"
"""Added to a table's name, names the file of its checksum."""

FIELD = "crc32c"
"""Last field of a JSON document: the checksum of the others."""


MAX_DOCUMENT_BYTES = 2**22
"""Upper limit of the size of a document of `read_document`, bytes."""


class ChecksumError(ValueError):
    """A file was changed after it was written."""


def with_checksum(document: Mapping[str, Any]) -> str:
    """Format a JSON document with its checksum as the last field.

    Args:
        document: plain values; has no field `FIELD`.
    """
    crc32c = google_crc32c.value(json.dumps(document).encode())
    return json.dumps({**document, FIELD: crc32c}, indent=1) + "\n"


def check_document(content: bytes, document: Mapping[str, Any]) -> None:
    """Check that a JSON document is what `with_checksum` wrote.

    Args:
        content: the bytes of the file.
        document: what they were parsed to.

    Raises:
        ChecksumError: they were changed.
    """
    rest = {name: value for name, value in document.items() if name != FIELD}
    if content != with_checksum(rest).encode():
        raise ChecksumError("its checksum is wrong: it was edited, or is damaged")


def read_document(path: Path) -> dict[str, Any]:
    """Read a JSON document of `with_checksum`, without its checksum.

    Raises:
        OSError: it cannot be read, or is no regular file.
        ValueError: it is damaged, or was edited.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file")
    if path.exists() and path.stat().st_size > MAX_DOCUMENT_BYTES:
        raise ValueError(f"it has more than {MAX_DOCUMENT_BYTES:,} bytes")
    content = path.read_bytes()
    try:
        found = json.loads(content)
        if not isinstance(found, dict):
            raise ChecksumError(f"expected fields, found {found!r:.40}")
        check_document(content, found)
    except RecursionError as error:
        raise ChecksumError("it is nested too deeply") from error
    return {name: value for name, value in found.items() if name != FIELD}


def checksum_path(path: Path) -> Path:
    """The file with the checksum of a table."""
    return path.with_name(path.name + SUFFIX)


@contextmanager
def output_with_checksum(
    path: Path, error_type: type[IchfastError], advice: str = ADVICE
) -> Iterator[Path]:
    """Like `output_path`, for a table, whose checksum is written beside it.

    Args:
        path: the final name. Replaced if it exists.
        error_type: raised when the folder or a file cannot be written.
        advice: end of that error's message.

    Raises:
        IchfastError: of `error_type`, for any OSError in the block.
    """
    beside = checksum_path(path)
    with output_path(path, error_type, advice) as temporary:
        yield temporary
        new = _line(temporary, path.name)
        if beside.is_file():
            old = beside.read_text("utf-8", "replace")
        else:
            old = _line(path, path.name) if path.is_file() else ""
        _write(beside, old + new, error_type, advice)
    _write(beside, new, error_type, advice)


def _write(path: Path, text: str, error_type: type[IchfastError], advice: str) -> None:
    with output_path(path, error_type, advice) as temporary:
        temporary.write_text(text, "utf-8")


def read_with_checksum(path: Path) -> bytes:
    """Read a table, and check it against the checksum beside it.

    Returns:
        The file's bytes.

    Raises:
        ChecksumError: the table or the checksum's file was changed.
        OSError: the table cannot be read.
    """
    content, beside = path.read_bytes(), checksum_path(path)
    if not beside.is_file():
        logger.warning("%s has no %s beside it: not checked", path, beside.name)
        return content
    lines = beside.read_text("utf-8", "replace").splitlines()
    if _sha256(content) not in {line.split(" ", 1)[0] for line in lines}:
        raise ChecksumError(
            f"its checksum is not that in {beside.name}: it was edited, or is damaged; "
            f"make it again, or delete {beside.name} to read it as it is"
        )
    return content


def _line(path: Path, name: str) -> str:
    """A line of sha256sum(1).

    Args:
        path: the file to read.
        name: its name in the line.
    """
    return f"{_sha256(path.read_bytes())}  {name}\n"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
