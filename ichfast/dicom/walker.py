"""A fast reader for the elements of plain DICOM files.

pydicom reads every DICOM file, but on common files such as those of RSNA it takes twice
as long as the rest of the conversion. This reader handles little-endian files with meta
information. It skips sequences of undefined length if the file names their VR. For
other files, and in case of doubt, `Walker.walk` returns None, and pydicom reads the
file. Where both can read a file, they agree.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

UNDEFINED = 0xFFFF_FFFF
"""Length of an element that ends with a delimiter, such as compressed pixels."""

PIXELS = 0x7FE0_0010
FLOAT_PIXELS = (0x7FE0_0008, 0x7FE0_0009)

MAX_VALUE_BYTES = 65_534
"""Upper limit of a value, the same as for most elements in a file that names VRs. In
other files a value can take the whole file, and hold millions of numbers."""

Elements = Mapping[int, tuple[bytes, bool]]
"""Maps a tag to the bytes of its value, and whether they are little-endian."""

_META_GROUP = b"\2\0"
_SYNTAX = 0x0010_0002
"""(0002,0010) TransferSyntaxUID in the form of `_as_read`."""
_IMPLICIT = "1.2.840.10008.1.2"
_OTHER_ENCODINGS = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
"""Transfer syntaxes that are deflated or big-endian."""

ITEM = b"\xfe\xff\x00\xe0"
_ITEM_END = b"\xfe\xff\x0d\xe0"
SEQUENCE_END = b"\xfe\xff\xdd\xe0"
"""(FFFE,E000), (FFFE,E00D) and (FFFE,E0DD), each followed by a length of 4 bytes.

Source:
    DICOM PS3.5 7.5.
"""
_ITEM_END_TAG = 0xFFFE_E00D
_MAX_DEPTH = 16
"""Upper limit of nested sequences of undefined length, which are read recursively."""

_EXPLICIT_HEADER = struct.Struct("<I2sH")
"""Tag, VR, and a length of 2 bytes or 2 reserved bytes before a length of 4."""
_IMPLICIT_HEADER = struct.Struct("<II")
"""Tag and length."""
_LONG = struct.Struct("<I")
_SHORT_VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()
)
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""VRs with a length of 2 bytes, and those with 2 reserved bytes and a length of 4.

Source:
    DICOM PS3.5 7.1.2.
"""
_VRS_AS_LENGTHS = frozenset(
    int.from_bytes(vr, "little") for vr in (*_SHORT_VRS, *_LONG_VRS)
)
"""VRs as the lower half of a length in a file that does not name the VR."""


@dataclass(frozen=True, slots=True)
class Walk:
    """Elements before the pixels, and where the pixels begin."""

    elements: Elements
    """The wanted elements; the last one of a repeated element."""

    syntax: str
    """(0002,0010) TransferSyntaxUID."""

    pixels_at: int
    """Offset of the value of PixelData, bytes."""

    pixels_bytes: int
    """Length of PixelData in the header, or `UNDEFINED`."""


class Walker:
    """Reads the elements of plain files.

    Its two loops repeat code: they run thirty times per file, and a call in them would
    double their time.

    Args:
        wanted: tags whose values are kept.
        refused: tags of elements for which pydicom must read the file.
    """

    def __init__(self, wanted: frozenset[int], refused: frozenset[int]) -> None:
        self._wanted = {_as_read(tag): tag for tag in wanted}
        stops = *refused, PIXELS, _ITEM_END_TAG  # pydicom stops there too
        self._stops = frozenset(map(_as_read, stops))

    def walk(self, content: bytes, start: int) -> Walk | None:
        """Read the elements up to the pixels, or leave the file to pydicom.

        Args:
            content: the file.
            start: offset of its first element.

        Returns:
            The elements and the place of the pixels; None where pydicom must read the
            file.
        """
        found: dict[int, tuple[bytes, bool]] = {}
        try:
            syntax, at = _read_meta(content, start)
            if not syntax or syntax in _OTHER_ENCODINGS:
                return None
            walk = self._implicit if syntax == _IMPLICIT else self._explicit
            pixels_at, length = walk(content, at, found)
        except (struct.error, _NotPlainError):  # struct.error: the file ends
            return None
        return Walk(found, syntax, pixels_at, length) if length else None

    def _explicit(
        self, content: bytes, at: int, found: dict[int, tuple[bytes, bool]]
    ) -> tuple[int, int]:
        """Find offset and length of the pixels in a file that names VRs."""
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
            if tag in wanted:  # even if empty, for it may repeat one with a value
                if length > MAX_VALUE_BYTES:
                    raise _NotPlainError
                found[wanted[tag]] = content[at:end], True
            at = end

    def _implicit(
        self, content: bytes, at: int, found: dict[int, tuple[bytes, bool]]
    ) -> tuple[int, int]:
        """Find offset and length of the pixels in a file that does not name VRs."""
        unpack, wanted, stops = _IMPLICIT_HEADER.unpack_from, self._wanted, self._stops
        while True:
            tag, length = unpack(content, at)
            at += 8
            # Some files are declared implicit but are not; pydicom detects them.
            if length & 0xFFFF in _VRS_AS_LENGTHS:
                raise _NotPlainError
            if tag in stops:
                return at, _pixels_length(tag, length)
            if length == UNDEFINED:
                raise _NotPlainError
            end = at + length
            if tag in wanted:  # even if empty, for it may repeat one with a value
                if length > MAX_VALUE_BYTES:
                    raise _NotPlainError
                found[wanted[tag]] = content[at:end], True
            at = end


class _NotPlainError(Exception):
    """pydicom must read the file."""


def _as_read(tag: int) -> int:
    """A tag as its four bytes read as one little-endian number.

    Source:
        DICOM PS3.5 7.1.
    """
    return (tag & 0xFFFF) << 16 | tag >> 16


_PIXELS_AS_READ = _as_read(PIXELS)


def _pixels_length(tag: int, length: int) -> int:
    if tag != _PIXELS_AS_READ:
        raise _NotPlainError  # a refused element, or the end of an item
    return length


def _read_meta(content: bytes, at: int) -> tuple[str, int]:
    """Read the transfer syntax, empty where absent, and the offset of the data set."""
    syntax = ""
    while content[at : at + 2] == _META_GROUP:
        tag, _, value_at, length = _header(content, at)
        at = value_at + length
        if tag == _SYNTAX:
            syntax = content[value_at:at].strip(b" \0\t\r\n").decode("latin-1")
    return syntax, at


def _header(content: bytes, at: int) -> tuple[int, bytes, int, int]:
    """Tag as read, VR, offset of the value and length of an explicit element."""
    tag, vr, length = _EXPLICIT_HEADER.unpack_from(content, at)
    at += 8
    if vr not in _SHORT_VRS:
        if vr not in _LONG_VRS:
            raise _NotPlainError
        (length,) = _LONG.unpack_from(content, at)
        at += 4
    return tag, vr, at, length


def _sequence_end(content: bytes, at: int, vr: bytes, depth: int) -> int:
    """End of a sequence of undefined length whose value begins at `at`."""
    if vr != b"SQ" or depth == _MAX_DEPTH:
        raise _NotPlainError
    while content[at : at + 4] == ITEM:
        (length,) = _LONG.unpack_from(content, at + 4)
        at = _item_end(content, at + 8, length, depth)
    if content[at : at + 4] != SEQUENCE_END:
        raise _NotPlainError
    return at + 8


def _item_end(content: bytes, at: int, length: int, depth: int) -> int:
    """End of an item whose elements begin at `at`; they must fill it exactly."""
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
