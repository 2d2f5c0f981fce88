"""The bytes of a DICOM file, measured before pydicom and decoders may trust them.

A damaged or hostile file can promise any size: in the length of an element, in a
deflated data set, in the frame header of compressed pixels. Readers and decoders
allocate what they are promised, so the promises are held to the file here.
"""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

from ichfast.elements import FLOAT_PIXELS, PIXELS, UNDEFINED
from ichfast.errors import RejectError

_MAX_INFLATED_BYTES = 256 * 2**20
"""zlib holds twice as much while it inflates."""
_MAX_PIECES = 3 * 2**20
"""Twice as many as 4,096 frames need whose headers all say everything. What is made of
them takes 700 MB at most."""
_ITEM_PIECES = 4
"""Of an item: it takes four times the memory of an element, 700 bytes."""
_MAX_FRAGMENTS = 2**17
"""Most fragments of compressed pixels: 32 for each frame."""
_PREAMBLE_BYTES = 128
_ITEM = b"\xfe\xff\x00\xe0"
_ITEMS = (_ITEM, b"\xff\xfe\xe0\x00")
"""The head of an item, little- and big-endian."""
_DELIMITER = b"\xfe\xff\xdd\xe0"
_J2K_START = b"\xff\x4f\xff\x51"
_JP2_START = b"\0\0\0\x0cjP  "
_MAX_BOX_BYTES = 256
"""Some writers wrap the codestream in JP2 boxes; it then starts a little later."""
_JPEG_START = b"\xff\xd8"
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
"""SOF markers of JPEG and JPEG-LS."""


def find_start(content: bytes) -> tuple[int, bool]:
    """Where the first element begins, and whether a preamble stands before it.

    Source:
        DICOM PS3.10 7.1. Dumps of network messages and files older than it lack
        the preamble, and begin with an element of group 0002 or 0008.
    """
    if not content:
        raise RejectError("empty", "0 bytes")
    if content[_PREAMBLE_BYTES : _PREAMBLE_BYTES + 4] == b"DICM":
        return _PREAMBLE_BYTES + 4, True
    if content[:2] in (b"\2\0", b"\x08\0") and content[3:4] == b"\0":
        return 0, False
    raise RejectError(
        "not-dicom", f"{len(content):,} bytes without DICM at byte {_PREAMBLE_BYTES}"
    )


def inflate(packed: bytes) -> bytes:
    """Unpack a deflated data set.

    Raises:
        RejectError: ``too-large``, above 256 MiB.

    Source:
        DICOM PS3.5 A.5.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(packed, _MAX_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        raise RejectError(
            "too-large", f"it inflates to more than {_MAX_INFLATED_BYTES:,} bytes"
        )
    return inflated


class Ration:
    """So many pieces as may be read of a file, its sequences included, and no more.

    pydicom reads each element and each item of a sequence in a piece or two of 8 bytes
    and more, and makes an object of it. So a file of nothing but items would take a
    hundred times its size.
    """

    def __init__(self) -> None:
        self._num_left = _MAX_PIECES

    def take(self, num_pieces: int) -> None:
        """Count pieces.

        Raises:
            RejectError: ``bad-header``, all were read before.
        """
        self._num_left -= num_pieces
        if self._num_left < 0:
            raise RejectError(
                "bad-header", f"more than {_MAX_PIECES:,} elements, an item counts as 4"
            )


class Rationed(BytesIO):
    """Bytes whose reading a ration allows."""

    def __init__(self, content: bytes, ration: Ration) -> None:
        super().__init__(content)
        self._ration = ration

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file.

        Raises:
            RejectError: as `Ration.take`.
        """
        piece = super().read(size)
        self._ration.take(_ITEM_PIECES if piece[:4] in _ITEMS else 1)
        return piece


class PixelSearch:
    """Stops pydicom at the pixels, or at an element that leaves the file.

    Give it to pydicom's reader as `stop_when`, then ask `check`.
    """

    def __init__(self, stream: BytesIO, num_bytes: int) -> None:
        self._stream = stream
        self._num_bytes = num_bytes
        self._tag = 0
        self.at = 0
        """Where the value of the pixel data begins."""
        self.length = 0
        """Its bytes as the header says, or `UNDEFINED`."""
        self._is_cut = False

    def __call__(self, tag: int, _vr: str | None, length: int) -> bool:
        """Whether to stop before this element; pydicom stands at its value."""
        at = self._stream.tell()
        if tag == PIXELS or tag in FLOAT_PIXELS:
            self._tag, self.at, self.length = tag, at, length
            return True
        self._is_cut = length != UNDEFINED and at + length > self._num_bytes
        return self._is_cut

    def check(self) -> None:
        """Say whether pixels were found.

        Raises:
            RejectError: ``bad-header``, the file ends before them; ``no-pixels``.
        """
        if self._is_cut:
            raise RejectError(
                "bad-header", f"the file ends inside it, at {self._num_bytes:,} bytes"
            )
        if self._tag != PIXELS or self.length == 0:
            found = "floating point" if self._tag in FLOAT_PIXELS else "no"
            raise RejectError(
                "no-pixels", f"{found} pixels, expected PixelData (7FE0,0010)"
            )


def measure_fragments(content: bytes, start: int) -> tuple[int, int]:
    """Walk over the fragments.

    Args:
        content: the file.
        start: where the first item, the basic offset table, begins.

    Returns:
        Where the last fragment ends, and how many there are.

    Raises:
        RejectError: ``truncated-pixels``, a fragment leaves the file; ``too-large``,
            there are too many; ``decoder-error``, there is no chain of items.

    Source:
        DICOM PS3.5 A.4.
    """
    at, num_items = start, 0
    while content[at : at + 4] == _ITEM and at + 8 <= len(content):
        if num_items > _MAX_FRAGMENTS:
            raise RejectError("too-large", f"more than {_MAX_FRAGMENTS:,} fragments")
        end = at + 8 + int.from_bytes(content[at + 4 : at + 8], "little")
        if end > len(content):
            raise RejectError(
                "truncated-pixels",
                f"{len(content) - start:,} bytes of at least {end - start:,} expected",
            )
        at, num_items = end, num_items + 1
    if num_items == 0:
        raise RejectError("decoder-error", "the pixels are no chain of fragments")
    if num_items == 1 or content[at : at + 4] not in (_DELIMITER, b""):
        raise RejectError(
            "truncated-pixels", f"{num_items - 1} fragments, then no delimiter"
        )
    return at, num_items - 1


def check_codestream(codestream: bytes, rows: int, columns: int) -> None:
    """Refuse a frame that would unpack to more pixels than its slice has.

    Args:
        codestream: one frame, in JPEG 2000, JPEG or JPEG-LS; others pass.
        rows: of the slice.
        columns: of the slice.

    Raises:
        RejectError: ``too-large``, the frame promises more; ``decoder-error``, the
            boxes around it lead nowhere.
    """
    found = _size(codestream)
    if found[0] * found[1] * found[2] > rows * columns:
        raise RejectError(
            "too-large",
            f"the compressed pixels promise {found[0]} rows x {found[1]} columns of "
            f"{found[2]} samples, the header {rows} x {columns} of 1",
        )
    _check_boxes(codestream)


def _check_boxes(codestream: bytes) -> None:
    """Refuse a box that ends before it begins: pydicom would walk on for ever.

    Source:
        ISO/IEC 15444-1 I.4 (boxes); 0 for "to the end" fits only the last, ``jp2c``.
    """
    if not codestream.startswith(_JP2_START):
        return
    at = len(_JP2_START) + 4
    while at < len(codestream) and codestream[at + 4 : at + 8] != b"jp2c":
        length = int.from_bytes(codestream[at : at + 4], "big")
        if length < 8:
            raise RejectError("decoder-error", f"a JP2 box of {length} bytes")
        at += length


def _size(codestream: bytes) -> tuple[int, int, int]:
    """Rows, columns and samples a pixel of a frame; zeros where it cannot be told.

    Source:
        ISO/IEC 15444-1 A.5.1 (SIZ), 10918-1 B.2.2 (SOF), 14495-1 C.2.2.
    """
    at = codestream.find(_J2K_START, 0, _MAX_BOX_BYTES)
    if at >= 0 and len(codestream) >= at + 42:
        right, bottom, left, top = struct.unpack_from(">4I", codestream, at + 8)
        (samples,) = struct.unpack_from(">H", codestream, at + 40)
        return max(bottom - top, 0), max(right - left, 0), max(samples, 1)
    if codestream.startswith(_JPEG_START):
        at = len(_JPEG_START)
        while at + 10 <= len(codestream) and codestream[at] == 0xFF:
            marker, length, rows, columns, samples = struct.unpack_from(
                ">xBHxHHB", codestream, at
            )
            if marker in _FRAME_MARKERS:
                return rows, columns, max(samples, 1)
            at += 2 + length
    return 0, 0, 0
