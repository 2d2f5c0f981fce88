"""A file of `torch.save` that nobody vouches for.

`torch.load` runs no code of it (``weights_only``), but allocates whatever it asks for:
members that unpack to a thousand times the file, or a bytearray of any length.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

_ALLOCATES = b"bytearray"
"""What `torch.load` would call with any number. torch saves none."""

_CHUNK_BYTES = 2**20


def load_torch_file(path: Path) -> Any:
    """Read what a file holds, onto the CPU.

    Raises:
        UnpicklingError: it holds something else than tensors and plain values.
        Exception: it is damaged; torch raises nearly anything then.
    """
    if zipfile.is_zipfile(path):
        _check_members(path)
    if _mentions(path, _ALLOCATES):
        raise pickle.UnpicklingError(f"it holds a {_ALLOCATES.decode()}")
    return torch.load(path, map_location="cpu", weights_only=True)


def _check_members(path: Path) -> None:
    """Refuse a zip whose members are packed, which torch's are not, or overlap."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise zipfile.BadZipFile("its members are packed")
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
