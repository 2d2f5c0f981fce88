"""Shape and completeness of a compressed frame, checked before it is decoded.

Decoders trust the size in a frame, and some return made-up pixels for a frame that is
cut short. Here a frame must have the rows and columns of its slice. JPEG and JPEG-LS
must have an end, and must not hold what decoders may read in different ways.

A frame of the right shape can still ask for much memory or time, for example with
millions of precincts. The worker process of prepare limits both.
"""

from __future__ import annotations

import struct

from ichfast.errors import RejectError

_J2K_START = b"\xff\x4f\xff\x51"
_JP2_START = b"\0\0\0\x0cjP  "
_JPEG_START = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
_JPEG_TAIL_BYTES = 16
"""The end marker is nearly always among the last bytes, so these are searched first."""
_FRAME_MARKERS = frozenset((0xC0, 0xC1, 0xC3, 0xF7))
"""SOF markers of baseline, extended and lossless JPEG with Huffman codes, and of
JPEG-LS. No DICOM transfer syntax in use allows progressive JPEG."""
_OTHER_MARKERS = frozenset((0xC4, 0xCC, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xF8, 0xFE))
"""Markers allowed before a frame header: DHT, DAC, DQT, DRI, APP, LSE and COM.

Source:
    ISO/IEC 10918-1 B.2.4, 14495-1 C.2.1.
"""


def check(codestream: bytes, rows: int, columns: int) -> None:
    """Refuse a frame that does not decode to the pixels of its slice.

    Args:
        codestream: one frame, in JPEG 2000, JPEG or JPEG-LS.
        rows: rows of the slice.
        columns: columns of the slice.

    Raises:
        RejectError: ``too-large``, the frame has more pixels than the slice;
            ``truncated-pixels``, it has no end; ``decoder-error``, it has another
            shape, or none that can be read.
    """
    if codestream.startswith((_JP2_START, _J2K_START)):
        _check_shape(_j2k_shape(codestream), rows, columns)
        return
    at = _jpeg_frame_header(codestream)
    shape: tuple[int, int, int] = struct.unpack_from(">5xHHB", codestream, at)
    _check_shape(shape, rows, columns)
    is_whole = _JPEG_END in codestream[-_JPEG_TAIL_BYTES:]
    if not is_whole and codestream.find(_JPEG_END, at) < 0:
        raise RejectError("truncated-pixels", "a compressed frame without an end")


def _check_shape(found: tuple[int, int, int], rows: int, columns: int) -> None:
    """Compare rows, columns and samples per pixel of a frame with the slice."""
    if found == (rows, columns, 1):
        return
    is_more = found[0] * found[1] * found[2] > rows * columns
    raise RejectError(
        "too-large" if is_more else "decoder-error",
        f"the compressed frame has {found[0]} rows x {found[1]} columns of {found[2]} "
        f"samples, the header {rows} x {columns} of 1",
    )


def _jpeg_frame_header(codestream: bytes) -> int:
    """Offset of the marker of the frame header.

    Source:
        ISO/IEC 10918-1 B.1.1 (segments and fill bytes), B.2.2 (SOF); 14495-1 C.2.2.
    """
    at = len(_JPEG_START)
    while codestream.startswith(_JPEG_START) and at + 10 <= len(codestream):
        prefix, marker, length = struct.unpack_from(">BBH", codestream, at)
        if prefix == marker == 0xFF:
            at += 1
        elif prefix == 0xFF and marker in _FRAME_MARKERS:
            return at
        elif prefix == 0xFF and marker in _OTHER_MARKERS and length >= 2:
            at += 2 + length
        else:
            break
    raise RejectError("decoder-error", "a compressed frame without a frame header")


def _j2k_shape(codestream: bytes) -> tuple[int, int, int]:
    """Rows, columns and samples per pixel; zeros where they cannot be read.

    Source:
        ISO/IEC 15444-1 A.5.1 (SIZ). A sample whose XRsiz and YRsiz are not 1 has fewer
        pixels than the image.
    """
    at = _j2k_start(codestream)
    if not codestream.startswith(_J2K_START, at) or len(codestream) < at + 45:
        return 0, 0, 0
    right, bottom, left, top = struct.unpack_from(">4I", codestream, at + 8)
    samples, dx, dy = struct.unpack_from(">HxBB", codestream, at + 40)
    is_subsampled = samples == 1 and (dx, dy) != (1, 1)
    return bottom - top, right - left, 0 if is_subsampled else samples


def _j2k_start(codestream: bytes) -> int:
    """Offset of the JPEG 2000 codestream, which some writers wrap in JP2 boxes.

    Source:
        ISO/IEC 15444-1 I.4. A box length of 0 means "to the end of the file", which
        only the last box, ``jp2c``, may have.
    """
    at = 0
    while at < len(codestream) and codestream.startswith(_JP2_START):
        length = int.from_bytes(codestream[at : at + 4], "big")
        if codestream[at + 4 : at + 8] == b"jp2c":
            return at + 8
        if length < 8:  # pydicom would search for the next box for ever
            raise RejectError("decoder-error", f"a JP2 box of {length} bytes")
        at += length
    return at
