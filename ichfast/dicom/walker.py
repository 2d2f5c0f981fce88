"""The elements of a plain DICOM file, walked over in one pass.

pydicom reads every file there is; on files as common as those of RSNA it takes
twice as long as the rest of the conversion. Here are read those that need no more
than a walk: little-endian, with meta information. Sequences of undefined length are
walked over to their end, if the file names their VR, and nothing in them is read.
`Walker.walk` returns None for any other file, and for any doubt, and pydicom then
reads it. Where both can, they agree.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

UNDEFINED = 0xFFFF_FFFF
"""The length of an element that ends with a delimiter, such as compressed pixels."""

PIXELS = 0x7FE0_0010
FLOAT_PIXELS = (0x7FE0_0008, 0x7FE0_0009)

MAX_VALUE_BYTES = 65_534
"""Longest value that is kept: as much as most elements can have where VRs are named.
Where they are not, a value may take the whole file, and hold millions of numbers."""

Elements = Mapping[int, tuple[bytes, bool]]
"""By tag: the bytes of a value, and whether it is little-endian."""

_META_GROUP = b"\2\0"
_SYNTAX = 0x0010_0002
"""(0002,0010) TransferSyntaxUID, as it is read: see `_as_read`."""
_IMPLICIT = "1.2.840.10008.1.2"
_OTHER_ENCODINGS = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
"""Deflated, and big-endian."""

ITEM = b"\xfe\xff\x00\xe0"
_ITEM_END = b"\xfe\xff\x0d\xe0"
SEQUENCE_END = b"\xfe\xff\xdd\xe0"
"""(FFFE,E000), (FFFE,E00D) and (FFFE,E0DD), each followed by a length of 4 bytes.

Source:
    DICOM PS3.5 7.5.
"""
_ITEM_END_TAG = 0xFFFE_E00D
_MAX_DEPTH = 16
"""Sequences of undefined length in one another that are walked into."""

_EXPLICIT_HEADER = struct.Struct("<I2sH")
"""Tag, VR, and a length of 2 bytes, or 2 reserved ones before one of 4."""
_IMPLICIT_HEADER = struct.Struct("<II")
"""Tag and length."""
_LONG = struct.Struct("<I")
_SHORT_VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()
)
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""Value representations with a length of 2 bytes, and of 4 after 2 reserved ones.

Source:
    DICOM PS3.5 7.1.2.
"""
_VRS_AS_LENGTHS = frozenset(
    int.from_bytes(vr, "little") for vr in (*_SHORT_VRS, *_LONG_VRS)
)
"""The lower half of what would be a length if the file did not name the VR."""


@dataclass(frozen=True, slots=True)
class Walk:
    """What stands before the pixels, and where they begin."""

    elements: Elements
    """Those asked for; of one that is there twice, the last."""

    syntax: str
    """(0002,0010) TransferSyntaxUID."""

    pixels_at: int
    """Where the value of PixelData begins, bytes."""

    pixels_bytes: int
    """Its length as the header says, or `UNDEFINED`."""


class Walker:
    """Walks over the elements of files.

    Its two loops are written out: they run thirty times a file, and a call in them
    would cost as much as the rest.

    Args:
        wanted: tags whose values are kept.
        refused: tags of elements that a walk cannot read.
    """

    def __init__(self, wanted: frozenset[int], refused: frozenset[int]) -> None:
        self._wanted = {_as_read(tag): tag for tag in wanted}
        stops = *refused, PIXELS, _ITEM_END_TAG  # where pydicom would stop, too
        self._stops = frozenset(map(_as_read, stops))

    def walk(self, content: bytes, start: int) -> Walk | None:
        """Read the elements up to the pixels, or leave the file to pydicom.

        Args:
            content: the file.
            start: where its first element begins.

        Returns:
            None where pydicom must read the file.
        """
        found: dict[int, tuple[bytes, bool]] = {}
        try:
            syntax, at = _read_meta(content, start)
            if not syntax or syntax in _OTHER_ENCODINGS:
                return None
            walk = self._implicit if syntax == _IMPLICIT else self._explicit
            pixels_at, length = walk(content, at, found)
        except (struct.error, _NotPlainError):  # the former: cut short in a header
            return None
        return Walk(found, syntax, pixels_at, length) if length else None

    def _explicit(
        self, content: bytes, at: int, found: dict[int, tuple[bytes, bool]]
    ) -> tuple[int, int]:
        """Where the value of the pixels begins, and its length as the header says."""
        unpack, wanted, stops = _EXPLICIT_HEADER.unpack_from, self._wanted, self._stops
        while True:
            tag, vr, length = unpack(content, at)
            at += 8
            if vr not in _SHORT_VRS:
                if vr not in _LONG_VRS:
                    raise _NotPlainError
                (length,) = _LONG.unpack_from(content, at)
                at += 4
            if tag in stops:
                return at, _pixels_length(tag, length)
            if length == UNDEFINED:
                at = _sequence_end(content, at, vr, depth=0)
                continue
            end = at + length
            if tag in wanted:  # empty, too: it may follow one with a value
                if length > MAX_VALUE_BYTES:
                    raise _NotPlainError
                found[wanted[tag]] = content[at:end], True
            at = end

    def _implicit(
        self, content: bytes, at: int, found: dict[int, tuple[bytes, bool]]
    ) -> tuple[int, int]:
        """As `_explicit`, in a file that does not name the VR."""
        unpack, wanted, stops = _IMPLICIT_HEADER.unpack_from, self._wanted, self._stops
        while True:
            tag, length = unpack(content, at)
            at += 8
            # Some files say implicit and are not; pydicom finds out which.
            if length & 0xFFFF in _VRS_AS_LENGTHS:
                raise _NotPlainError
            if tag in stops:
                return at, _pixels_length(tag, length)
            if length == UNDEFINED:
                raise _NotPlainError
            end = at + length
            if tag in wanted:  # empty, too: it may follow one with a value
                if length > MAX_VALUE_BYTES:
                    raise _NotPlainError
                found[wanted[tag]] = content[at:end], True
            at = end


class _NotPlainError(Exception):
    """pydicom must read the file."""


def _as_read(tag: int) -> int:
    """A tag as its four little-endian bytes read at once: the element above the group.

    Source:
        DICOM PS3.5 7.1.
    """
    return (tag & 0xFFFF) << 16 | tag >> 16


_PIXELS_AS_READ = _as_read(PIXELS)


def _pixels_length(tag: int, length: int) -> int:
    if tag != _PIXELS_AS_READ:
        raise _NotPlainError  # a refused one, or the end of an item
    return length


def _read_meta(content: bytes, at: int) -> tuple[str, int]:
    """The transfer syntax, empty where there is none, and where the data set begins."""
    syntax = ""
    while content[at : at + 2] == _META_GROUP:
        tag, _, value_at, length = _header(content, at)
        at = value_at + length
        if tag == _SYNTAX:
            syntax = content[value_at:at].strip(b" \0\t\r\n").decode("latin-1")
    return syntax, at


def _header(content: bytes, at: int) -> tuple[int, bytes, int, int]:
    """An element's tag as read, VR, where its value begins, length; VR explicit."""
    tag, vr, length = _EXPLICIT_HEADER.unpack_from(content, at)
    at += 8
    if vr not in _SHORT_VRS:
        if vr not in _LONG_VRS:
            raise _NotPlainError
        (length,) = _LONG.unpack_from(content, at)
        at += 4
    return tag, vr, at, length


def _sequence_end(content: bytes, at: int, vr: bytes, depth: int) -> int:
    """Where a sequence of undefined length ends; `at`: where its value begins."""
    if vr != b"SQ" or depth == _MAX_DEPTH:
        raise _NotPlainError
    while content[at : at + 4] == ITEM:
        (length,) = _LONG.unpack_from(content, at + 4)
        at = _item_end(content, at + 8, length, depth)
    if content[at : at + 4] != SEQUENCE_END:
        raise _NotPlainError
    return at + 8


def _item_end(content: bytes, at: int, length: int, depth: int) -> int:
    """Where an item ends, if its elements fill it; `at`: where they begin."""
    stop = at + length
    while at != stop or length == UNDEFINED:
        if content[at : at + 4] == _ITEM_END and length == UNDEFINED:
            return at + 8
        _, vr, value_at, inner = _header(content, at)
        at = value_at + inner
        if inner == UNDEFINED:
            at = _sequence_end(content, value_at, vr, depth + 1)
        if length != UNDEFINED and at > stop:
            raise _NotPlainError
    return at
