"""Ids as a store keeps them: plain, or keyed hashes.

1. A hashed id is the first 64 bits of HMAC-SHA256 under the store's key, so nobody
   without the key can tell whose it is, nor try out names.
2. The key stays beside the store (``STORE.key``), readable by its owner only. With
   it, the same id gives the same hash again.
3. An absent id stays absent: empty.
"""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

from ichfast.errors import StoreError
from ichfast.files import atomic_path

HASH_DIGITS = 16
"""Hexadecimal digits of a hashed id: 64 bits."""

KEY_BYTES = 32


def read_or_make_key(store: Path, *, is_begun: bool) -> bytes:
    """The secret of a store's hashed ids.

    Args:
        store: the store's folder.
        is_begun: the store has hashed ids already, so a new key would not fit.

    Returns:
        `KEY_BYTES` random bytes.

    Raises:
        StoreError: the key is damaged, or the one of a begun store is missing.
    """
    path = store.with_name(f"{store.name}.key")
    if path.exists():
        key = path.read_bytes()
        if len(key) != KEY_BYTES:
            raise StoreError(
                f"{path} has {len(key)} bytes, a key has {KEY_BYTES}; restore it, or "
                "delete it and the store to start again"
            )
        return key
    if is_begun:
        raise StoreError(
            f"{store} was begun with the key {path}, which is missing (or with "
            "--keep-ids); restore it, or delete the store to start again"
        )
    key = secrets.token_bytes(KEY_BYTES)
    with atomic_path(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:  # noqa: PTH123  a descriptor, no path
            file.write(key)
    return key


def stored_id(key: bytes | None, text: str) -> str:
    """An id as the store keeps it: hashed with `key`, or plain without one."""
    plain = plain_text(text)
    if key is None or not plain:
        return plain
    return hmac.digest(key, plain.encode(), "sha256").hex()[:HASH_DIGITS]


def plain_text(text: str) -> str:
    """Text that UTF-8 can hold, whatever bytes a file system or a header had."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
