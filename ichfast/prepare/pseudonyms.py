"""Ids as a store keeps them: plain, or keyed hashes.

1. A hashed id is the first 64 bits of HMAC-SHA256 under the store's key, so nobody
   without the key can tell whose it is, nor try out names.
2. The key is a file beside the store (``STORE.key``) or where ``--id-key`` says,
   readable by its owner only. With it, the same id gives the same hash again: stores
   made with one key name the same patient alike.
3. An absent id stays absent: empty.
"""

from __future__ import annotations

import hmac
import secrets
from pathlib import Path

from ichfast.errors import StoreError
from ichfast.system.files import beside, write_private_once

HASH_DIGITS = 16
"""Hexadecimal digits of a hashed id: 64 bits."""

KEY_BYTES = 32


def default_key_path(store: Path) -> Path:
    """Where the key of a store lies unless another place is named."""
    return beside(store, ".key")


def read_or_make_key(path: Path, *, is_begun: bool) -> bytes:
    """The secret of a store's hashed ids.

    Args:
        path: the key's file. If there is none, it is made, and never replaced.
        is_begun: the store has hashed ids already, so a new key would not fit.

    Returns:
        `KEY_BYTES` random bytes.

    Raises:
        StoreError: the key is damaged, others can read it, it cannot be read or
            made, or the one of a begun store is missing.
    """
    try:
        if not path.exists():
            if is_begun:
                raise StoreError(
                    f"the key {path} is missing, and the store was begun with it, with "
                    "another --id-key or with --keep-ids; restore it, give the options "
                    "again, or delete the store to start again"
                )
            # Another run, of a store with the same key, may do so just now.
            write_private_once(path, secrets.token_bytes(KEY_BYTES))
        key, mode = path.read_bytes(), path.stat().st_mode
    except OSError as error:
        raise StoreError(
            f"cannot read or make the key {path}: {error.strerror}; name a file of "
            "yours with --id-key"
        ) from error
    if len(key) != KEY_BYTES:
        raise StoreError(
            f"{path} has {len(key)} bytes, a key has {KEY_BYTES}; restore it, or name "
            "a file that does not exist, in which a key is made"
        )
    if mode & 0o077:
        raise StoreError(
            f"others can read the key {path} (mode {mode & 0o777:04o}), and so undo "
            "the hashes; `chmod 600` it, or keep it where permissions hold and name it "
            "with --id-key"
        )
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
