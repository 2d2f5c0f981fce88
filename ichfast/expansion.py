"""How much a file that nobody vouches for may become when it is unpacked."""

from __future__ import annotations

_MOST_EXPANSION = 100
"""Bytes that one byte of a file may become. A store's tables become 6."""

_FREE_BYTES = 2**20
"""What any file may become, for small ones repeat themselves most."""


def most_unpacked(num_bytes: int) -> int:
    """Most bytes that a file of so many may become."""
    return num_bytes * _MOST_EXPANSION + _FREE_BYTES
