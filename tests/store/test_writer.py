"""Checksums of parts, put together, against those of the whole."""

from __future__ import annotations

import google_crc32c
import numpy as np
import pytest

from ichfast.store.writer import combine


@pytest.mark.parametrize("num_bytes", [0, 1, 7, 4096, 524_288, 1_000_003])
@pytest.mark.parametrize("first", [b"", b"\0", b"header", bytes(range(256)) * 16])
def test_two_parts_give_the_checksum_of_the_whole(first: bytes, num_bytes: int) -> None:
    second = np.random.default_rng(num_bytes).bytes(num_bytes)
    found = combine(google_crc32c.value(first), google_crc32c.value(second), num_bytes)
    assert found == google_crc32c.value(first + second)
