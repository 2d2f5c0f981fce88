"""The elements of a plain DICOM file, walked over in one pass.

pydicom reads every file there is; on files as common as those of RSNA it takes
twice as long as the rest of the conversion. Here are read those that need no more
than a walk: little-endian, with meta information, no sequence of undefined length
before the pixels. `walk` returns None for any other, and for any doubt, and
pydicom then reads the file. Where both can, they agree.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

UNDEFINED = 0xFFFF_FFFF
"""The length of an element that ends with a delimiter, such as compressed pixels."""

PIXELS = 0x7FE0_0010
FLOAT_PIXELS = (0x7FE0_0008, 0x7FE0_0009)

Elements = Mapping[int, tuple[bytes, bool]]
"""By tag: the bytes of a value, and whether it is little-endian."""

_META_GROUP = 2
_SYNTAX = 0x0002_0010
_IMPLICIT = "1.2.840.10008.1.2"
_OTHER_ENCODINGS = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
"""Deflated, and big-endian."""

_SHORT = struct.Struct("<HH2sH")
_LONG = struct.Struct("<I")
_LONGEST_HEADER = 12
_SHORT_VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()
)
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""Value representations with a length of 2 bytes, and of 4 after 2 reserved ones.

Source:
    DICOM PS3.5 7.1.2.
"""


@dataclass(frozen=True, slots=True)
class Walk:
    """What stands before the pixels, and where they begin."""

    elements: Elements
    """Those asked for that have a value."""

    syntax: str
    """(0002,0010) TransferSyntaxUID."""

    pixels_at: int
    """Where the value of PixelData begins, bytes."""

    pixels_bytes: int
    """Its length as the header says, or `UNDEFINED`."""


def walk(
    content: bytes, start: int, wanted: frozenset[int], refused: frozenset[int]
) -> Walk | None:
    """Read the elements up to the pixels, or leave the file to pydicom.

    Args:
        content: the file.
        start: where its first element begins.
        wanted: tags whose values are kept.
        refused: tags of elements that a walk cannot read.

    Returns:
        None where pydicom must read the file.
    """
    syntax, at = "", start
    for tag, value_at, length in _headers(content, start, is_implicit=False):
        if tag >> 16 != _META_GROUP:
            break
        at = value_at + length
        if tag == _SYNTAX:
            syntax = content[value_at:at].rstrip(b" \0").decode("latin-1")
    if not syntax or syntax in _OTHER_ENCODINGS:
        return None
    found: dict[int, tuple[bytes, bool]] = {}
    is_implicit = syntax == _IMPLICIT
    for tag, value_at, length in _headers(content, at, is_implicit=is_implicit):
        if tag == PIXELS and length:
            return Walk(found, syntax, value_at, length)
        if tag == PIXELS or tag in refused:
            return None
        if length and tag in wanted:
            found[tag] = content[value_at : value_at + length], True
    return None


def _headers(
    content: bytes, at: int, *, is_implicit: bool
) -> Iterator[tuple[int, int, int]]:
    """Each element's tag, where its value begins, and its length.

    Ends at an element that does not look like one, and where a value leaves the file.
    """
    while at + _LONGEST_HEADER <= len(content):
        group, element, vr, length = _SHORT.unpack_from(content, at)
        # Some files say implicit and are not; pydicom finds out which.
        if is_implicit == (vr in _SHORT_VRS or vr in _LONG_VRS):
            return
        if is_implicit:
            length = _LONG.unpack_from(content, at + 4)[0]
        elif vr in _LONG_VRS:
            length = _LONG.unpack_from(content, at + 8)[0]
            at += 4
        at += 8
        yield group << 16 | element, at, length
        at += length
