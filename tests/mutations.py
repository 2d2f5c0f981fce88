"""Damaged copies of a file, of eight kinds, for tests of readers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle, islice

import numpy as np

NUM_MUTATIONS = 300
"""Copies of a file that a reader is tested with."""

MAX_BLOCK_BYTES = 4096
"""Upper limit of the size of the blocks that are repeated, swapped and zeroed."""


def mutations(content: bytes, seed: int, count: int = NUM_MUTATIONS) -> Iterator[bytes]:
    """Damage a file in `count` ways, each kind of `KINDS` in turn.

    Args:
        content: the file, two bytes or more, not all the same. Not changed.
        seed: decides where each copy is damaged.
        count: number of copies.

    Yields:
        The content of a copy; never equal to `content`.
    """
    rng = np.random.default_rng(seed)
    for kind in islice(cycle(KINDS), count):
        mutated = content
        while mutated == content:
            mutated = kind(content, rng)
        yield mutated


def _flip_bit(content: bytes, rng: np.random.Generator) -> bytes:
    place = rng.integers(len(content))
    flipped = content[place] ^ 1 << rng.integers(8)
    return content[:place] + bytes([flipped]) + content[place + 1 :]


def _change_byte(content: bytes, rng: np.random.Generator) -> bytes:
    place = rng.integers(len(content))
    return content[:place] + rng.bytes(1) + content[place + 1 :]


def _delete_byte(content: bytes, rng: np.random.Generator) -> bytes:
    place = rng.integers(len(content))
    return content[:place] + content[place + 1 :]


def _insert_byte(content: bytes, rng: np.random.Generator) -> bytes:
    place = rng.integers(len(content) + 1)
    return content[:place] + rng.bytes(1) + content[place:]


def _truncate(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: rng.integers(len(content))]


def _repeat_block(content: bytes, rng: np.random.Generator) -> bytes:
    first, end = _block(content, rng)
    return content[:end] + content[first:]


def _swap_blocks(content: bytes, rng: np.random.Generator) -> bytes:
    """Swap a block with the one behind it."""
    first, end = _block(content, rng)
    last = end + rng.integers(1, MAX_BLOCK_BYTES + 1)
    return content[:first] + content[end:last] + content[first:end] + content[last:]


def _zero_block(content: bytes, rng: np.random.Generator) -> bytes:
    first, end = _block(content, rng)
    return content[:first] + bytes(end - first) + content[end:]


def _block(content: bytes, rng: np.random.Generator) -> tuple[int, int]:
    """The first byte of a block, and the byte after it."""
    first = int(rng.integers(len(content)))
    length = int(rng.integers(1, MAX_BLOCK_BYTES + 1))
    return first, min(first + length, len(content))


KINDS: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (
    *(_flip_bit, _change_byte, _delete_byte, _insert_byte),
    *(_truncate, _repeat_block, _swap_blocks, _zero_block),
)
"""What can happen to a file: each function returns one damaged copy."""
