"""The CRC32C of parts put together.

A shard grows slice by slice, and each slice has its own checksum. The checksum of
the whole file follows from those of its parts and their lengths, so that no byte is
read twice.

A checksum is a polynomial over GF(2), modulo CRC32C's: 32 bits, that of x^0 highest.
"""

from __future__ import annotations

from functools import lru_cache

_POLYNOMIAL = 0x82F6_3B78
"""CRC32C's, without x^32.

Source:
    RFC 3720, appendix B.4 (Castagnoli).
"""

_ONE = 1 << 31
_X = 1 << 30


def combine(first: int, second: int, num_bytes: int) -> int:
    """The CRC32C of two parts, one behind the other.

    Args:
        first: CRC32C of the first part.
        second: CRC32C of the second part.
        num_bytes: length of the second part.

    Source:
        crc32_combine of zlib: so many zero bytes multiply the first checksum by
        x^(8 * num_bytes).
    """
    t0, t1, t2, t3 = _shift_tables(num_bytes)
    shifted = t0[first & 255] ^ t1[first >> 8 & 255]
    return shifted ^ t2[first >> 16 & 255] ^ t3[first >> 24] ^ second


@lru_cache(maxsize=256)
def _shift_tables(num_bytes: int) -> tuple[list[int], ...]:
    """What so many zero bytes make of each byte, at each of its four places."""
    shift = _power_of_x(8 * num_bytes)
    tables: tuple[list[int], ...] = ([0], [0], [0], [0])
    for bit in range(32):
        product = _times(1 << bit, shift)
        # Products are linear: those of the numbers with this bit, and none above.
        table = tables[bit // 8]
        table += [product ^ below for below in table]
    return tables


def _power_of_x(exponent: int) -> int:
    """X to a power."""
    power, square = _ONE, _X
    while exponent:
        if exponent & 1:
            power = _times(power, square)
        square = _times(square, square)
        exponent >>= 1
    return power


def _times(first: int, second: int) -> int:
    """The product of two polynomials."""
    product = 0
    for bit in range(31, -1, -1):
        if first >> bit & 1:
            product ^= second
        # Times x; where a bit falls out, the polynomial comes in.
        second = second >> 1 ^ (_POLYNOMIAL if second & 1 else 0)
    return product
