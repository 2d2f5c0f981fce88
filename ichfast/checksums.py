"""The CRC32C of parts put together.

A shard grows slice by slice, and each slice has its own checksum. The checksum of
the whole file follows from those of its parts and their lengths, so that no byte is
read twice.
"""

from __future__ import annotations

from functools import lru_cache

_POLYNOMIAL = 0x82F6_3B78
"""CRC32C's, bits reversed.

Source:
    RFC 3720, appendix B.4 (Castagnoli).
"""

_ONE = 0x8000_0000
"""The polynomial 1, bits reversed."""


def combine(first: int, second: int, num_bytes: int) -> int:
    """The CRC32C of two parts, one behind the other.

    Args:
        first: CRC32C of the first part.
        second: CRC32C of the second part.
        num_bytes: length of the second part.

    Source:
        crc32_combine of zlib: a CRC is a polynomial over GF(2) modulo another, and
        what `num_bytes` zero bytes do to the first is to multiply it by x to the
        power of their bits.
    """
    low, high, higher, highest = _zeros(num_bytes)
    return (
        low[first & 0xFF]
        ^ high[first >> 8 & 0xFF]
        ^ higher[first >> 16 & 0xFF]
        ^ highest[first >> 24]
        ^ second
    )


@lru_cache(maxsize=64)
def _zeros(num_bytes: int) -> tuple[list[int], ...]:
    """What so many zero bytes make of each byte of a CRC, the lowest byte first."""
    power, square, num_bits = _ONE, _ONE >> 1, 8 * num_bytes
    while num_bits:
        if num_bits & 1:
            power = _times(power, square)
        square = _times(square, square)
        num_bits >>= 1
    tables = []
    for shift in range(0, 32, 8):
        table = [0]
        for bit in range(shift, shift + 8):
            product = _times(power, 1 << bit)
            table += [product ^ entry for entry in table]
        tables.append(table)
    return tuple(tables)


def _times(one: int, other: int) -> int:
    """Two polynomials multiplied; the highest bit is x to the power of 0."""
    product = 0
    while one:
        if one & _ONE:
            product ^= other
        one = one << 1 & 0xFFFF_FFFF
        other = other >> 1 ^ (_POLYNOMIAL if other & 1 else 0)
    return product
