"""The elements of a plain DICOM file, walked over in one pass.

pydicom reads every file there is; on files as common as those of RSNA it takes
twice as long as the rest of the conversion. Here are read those that need no more
than a walk: little-endian, with meta information. Sequences of undefined length are
walked over to their end, if the file names their VR, and nothing in them is read.
`walk` returns None for any other file, and for any doubt, and pydicom then reads it.
Where both can, they agree.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
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

_ITEM = b"\xfe\xff\x00\xe0"
_ITEM_END = b"\xfe\xff\x0d\xe0"
_SEQUENCE_END = b"\xfe\xff\xdd\xe0"
"""(FFFE,E000), (FFFE,E00D) and (FFFE,E0DD), each followed by a length of 4 bytes.

Source:
    DICOM PS3.5 7.5.
"""
_MAX_DEPTH = 16
"""Sequences of undefined length in one another that are walked into."""

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
    meta = _Walker(content, is_implicit=False)
    while (header := meta.header(at)) and header[0] >> 16 == _META_GROUP:
        tag, _, value_at, length = header
        at = value_at + length
        if tag == _SYNTAX:
            syntax = content[value_at:at].rstrip(b" \0").decode("latin-1")
    if not syntax or syntax in _OTHER_ENCODINGS:
        return None
    found: dict[int, tuple[bytes, bool]] = {}
    walker = _Walker(content, is_implicit=syntax == _IMPLICIT)
    while header := walker.header(at):
        tag, _, value_at, length = header
        if tag == PIXELS and length:
            return Walk(found, syntax, value_at, length)
        if tag == PIXELS or tag in refused:
            return None
        if length == UNDEFINED:
            end = walker.end(header, depth=0)
            if end is None:
                return None
            at = end
            continue
        at = value_at + length
        if length and tag in wanted:
            found[tag] = content[value_at:at], True
    return None


_Found = tuple[int, bytes, int, int]
"""Of an element: tag, VR as the file says, where its value begins, length."""


@dataclass(frozen=True, slots=True)
class _Walker:
    content: bytes
    is_implicit: bool

    def header(self, at: int) -> _Found | None:
        """The element at `at`; None where there is nothing that looks like one."""
        if at + _LONGEST_HEADER > len(self.content):
            return None
        group, element, vr, length = _SHORT.unpack_from(self.content, at)
        # Some files say implicit and are not; pydicom finds out which.
        if self.is_implicit == (vr in _SHORT_VRS or vr in _LONG_VRS):
            return None
        if self.is_implicit:
            length = _LONG.unpack_from(self.content, at + 4)[0]
        elif vr in _LONG_VRS:
            length = _LONG.unpack_from(self.content, at + 8)[0]
            at += 4
        return group << 16 | element, vr, at + 8, length

    def end(self, found: _Found, depth: int) -> int | None:
        """Where an element ends; None where pydicom must find out."""
        _, vr, at, length = found
        if length != UNDEFINED:
            return at + length
        if self.is_implicit or vr != b"SQ" or depth == _MAX_DEPTH:
            return None
        while self.content[at : at + 4] == _ITEM and at + 8 <= len(self.content):
            (length,) = _LONG.unpack_from(self.content, at + 4)
            item_end = self._item_end(at + 8, length, depth)
            if item_end is None:
                return None
            at = item_end
        return at + 8 if self.content[at : at + 4] == _SEQUENCE_END else None

    def _item_end(self, at: int, length: int, depth: int) -> int | None:
        """Where an item ends, if its elements fill it; `at`: where they begin."""
        stop = at + length
        while at != stop or length == UNDEFINED:
            if self.content[at : at + 4] == _ITEM_END:
                return at + 8 if length == UNDEFINED else None
            header = self.header(at)
            end = self.end(header, depth + 1) if header else None
            if end is None or (length != UNDEFINED and end > stop):
                return None
            at = end
        return at
