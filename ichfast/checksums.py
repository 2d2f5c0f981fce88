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


def combine(first: int, second: int, num_bytes: int) -> int:
    """The CRC32C of two parts, one behind the other.

    Args:
        first: CRC32C of the first part.
        second: CRC32C of the second part.
        num_bytes: length of the second part.

    Source:
        crc32_combine of zlib: a CRC is linear over GF(2), so what `num_bytes` zero
        bytes do to the first is a matrix of 32x32 bits.
    """
    return _times(_zeros(num_bytes), first) ^ second


@lru_cache(maxsize=256)
def _zeros(num_bytes: int) -> tuple[int, ...]:
    """The matrix of so many zero bytes; one column, as bits, for each bit."""
    # One zero bit shifts; where a bit falls out, the polynomial comes in.
    power = (_POLYNOMIAL, *(1 << bit for bit in range(31)))
    total = tuple(1 << bit for bit in range(32))
    num_bits = 8 * num_bytes
    while num_bits:
        if num_bits & 1:
            total = tuple(_times(power, column) for column in total)
        power = tuple(_times(power, column) for column in power)
        num_bits >>= 1
    return total


def _times(matrix: tuple[int, ...], vector: int) -> int:
    product, bit = 0, 0
    while vector:
        if vector & 1:
            product ^= matrix[bit]
        vector >>= 1
        bit += 1
    return product
