"""Reading untrusted files of `torch.save`.

With ``weights_only``, `torch.load` runs no code from a file, but it allocates as much
memory as the file asks for: for members that unpack to a thousand times the file, or
for a bytearray of any length. Both are refused here.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

_ALLOCATES = b"bytearray"
"""A type that `torch.load` would create of any length. torch itself saves none."""

_CHUNK_BYTES = 2**20
"""Bytes of a file that are searched at once."""


def load_torch_file(path: Path) -> Any:
    """Read the content of a file, onto the CPU.

    Raises:
        UnpicklingError: it holds something other than tensors and plain values.
        Exception: it is damaged; torch raises almost any type.
    """
    if zipfile.is_zipfile(path):
        _check_members(path)
    if _mentions(path, _ALLOCATES):
        raise pickle.UnpicklingError(f"it holds a {_ALLOCATES.decode()}")
    return torch.load(path, map_location="cpu", weights_only=True)


def _check_members(path: Path) -> None:
    """Refuse a zip whose members are compressed, as torch's never are, or overlap."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise zipfile.BadZipFile("its members are compressed")
    num_bytes = sum(member.file_size for member in members)
    if num_bytes > path.stat().st_size:
        raise zipfile.BadZipFile(f"it would unpack to {num_bytes:,} bytes")


def _mentions(path: Path, word: bytes) -> bool:
    before = b""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            window = before + chunk
            if word in window:
                return True
            before = window[-len(word) :]
    return False
