"""Ids in a store: plain, or keyed hashes.

1. A hashed id is the first 64 bits of HMAC-SHA256 with the store's key. Without the key
   it can neither be traced nor tested against names.
2. The key is a file beside the store (``STORE.key``) or at ``--id-key``, readable only
   by its owner. Stores made with the same key have the same ids for the same patient.
3. A missing id stays empty.
"""

from __future__ import annotations

import hmac
import secrets
from pathlib import Path

from ichfast.errors import StoreError
from ichfast.system.files import beside, remove_leftovers, write_private_once

HASH_DIGITS = 16
"""Hexadecimal digits of a hashed id: 64 bits."""

KEY_BYTES = 32
"""Size of a key: that of SHA-256's output."""


def default_key_path(store: Path) -> Path:
    """The default path of a store's key."""
    return beside(store, ".key")


def read_or_make_key(path: Path, *, is_begun: bool) -> bytes:
    """Read the key of a store's hashed ids, or make a new one.

    Args:
        path: the key's file. It is made if it does not exist, and never replaced.
        is_begun: whether the store has hashed ids already, which need the same key.

    Returns:
        `KEY_BYTES` random bytes.

    Raises:
        StoreError: the key is damaged, others can read it, it cannot be read or made,
            or `is_begun` and it is missing.
    """
    remove_leftovers(path)
    try:
        if not path.exists():
            if is_begun:
                raise StoreError(
                    f"the key {path} is missing, and the store was begun with it, with "
                    "another --id-key or with --keep-ids; restore it, give the options "
                    "again, or delete the store to start again"
                )
            # Another run with the same key file may be writing it now.
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
    """An id as it is stored.

    Args:
        key: hashes the id; None keeps it.
        text: the id; an empty one stays empty.
    """
    plain = plain_text(text)
    if key is None or not plain:
        return plain
    return hmac.digest(key, plain.encode(), "sha256").hex()[:HASH_DIGITS]


def plain_text(text: str) -> str:
    """Escape what UTF-8 cannot encode, such as surrogates from undecodable bytes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
