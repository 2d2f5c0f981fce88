"""Compressed frames, measured before a decoder may trust them.

A frame says in a few bytes how much it unpacks to, and into how many parts. Decoders
allocate what it says, and some of them take any end for the end. Here only those pass
that unpack to the pixels of a slice, in parts that fit into memory.

JPEG and JPEG-LS are walked over up to their frame header, and refused where they hold
what a decoder could read in another way than this does. JPEG 2000 is not walked over:
whatever in it could be read as coding parameters must be in bounds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ichfast.errors import RejectError

_J2K_START = b"\xff\x4f\xff\x51"
_JP2_START = b"\0\0\0\x0cjP  "
_JPEG_START = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
_FRAME_MARKERS = frozenset((0xC0, 0xC1, 0xC3, 0xF7))
"""SOF markers: of JPEG with Huffman codes, baseline, extended and lossless, and of
JPEG-LS. A progressive frame of 30 KB can have thousands of scans, and no DICOM syntax
still allows one."""
_OTHER_MARKERS = frozenset((0xC4, 0xCC, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xF8, 0xFE))
"""What may stand before a frame header: DHT, DAC, DQT, DRI, APP, LSE and COM.

Source:
    ISO/IEC 10918-1 B.2.4, 14495-1 C.2.1.
"""
_COD = b"\xff\x52\0"
_COC = b"\xff\x53\0"
"""Coding style, default and of a component, each with the upper byte of its length."""
_MAX_RESOLUTIONS = 33
_MAX_TILES = 2**14
_MAX_PRECINCTS = 2**19
_MAX_PACKETS = 2**21
"""Most tiles of a frame; most precincts of one of its tiles, and most layers times
precincts. OpenJPEG takes 10 KB for each tile, 600 bytes for each precinct, and two for
each packet at each resolution. Tiles of 32x32 pixels are within, and precincts of a
pixel in a slice of 512x512."""


def check(codestream: bytes, rows: int, columns: int) -> None:
    """Refuse a frame that would not unpack to the pixels of its slice.

    Args:
        codestream: one frame, in JPEG 2000, JPEG or JPEG-LS.
        rows: of the slice.
        columns: of the slice.

    Raises:
        RejectError: ``too-large``, the frame promises more pixels or parts;
            ``truncated-pixels``, it has no end; ``decoder-error``, its shape is
            another one, or cannot be told.
    """
    if codestream.startswith((_JP2_START, _J2K_START)):
        at = _start_in_boxes(codestream)
        _check_shape(_j2k_shape(codestream, at), rows, columns)
        _check_parts(codestream, at, rows, columns)
    else:
        at = _jpeg_frame_header(codestream)
        shape: tuple[int, int, int] = struct.unpack_from(">5xHHB", codestream, at)
        _check_shape(shape, rows, columns)
        # Else the decoder makes up the rest. Nearly always it is among the last bytes.
        if _JPEG_END not in codestream[-16:] and codestream.find(_JPEG_END, at) < 0:
            raise RejectError("truncated-pixels", "a compressed frame without an end")


def _check_shape(found: tuple[int, int, int], rows: int, columns: int) -> None:
    """Compare rows, columns and samples a pixel of a frame with those of its slice."""
    if found == (rows, columns, 1):
        return
    is_more = found[0] * found[1] * found[2] > rows * columns
    raise RejectError(
        "too-large" if is_more else "decoder-error",
        f"the compressed pixels promise {found[0]} rows x {found[1]} columns of "
        f"{found[2]} samples, the header {rows} x {columns} of 1",
    )


# ---- JPEG and JPEG-LS ------------------------------------------------------------


def _jpeg_frame_header(codestream: bytes) -> int:
    """Where the marker of the frame header stands.

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


# ---- JPEG 2000 -------------------------------------------------------------------


def _start_in_boxes(codestream: bytes) -> int:
    """Where the codestream starts: some writers wrap it in JP2 boxes.

    Source:
        ISO/IEC 15444-1 I.4 (boxes); 0 for "to the end" fits only the last, ``jp2c``.
    """
    at = 0
    while at < len(codestream) and codestream.startswith(_JP2_START):
        length = int.from_bytes(codestream[at : at + 4], "big")
        if codestream[at + 4 : at + 8] == b"jp2c":
            return at + 8
        # Else pydicom would walk on for ever.
        if length < 8:
            raise RejectError("decoder-error", f"a JP2 box of {length} bytes")
        at += length
    return at


def _j2k_shape(codestream: bytes, at: int) -> tuple[int, int, int]:
    """Rows, columns and samples a pixel; zeros where they cannot be told.

    Source:
        ISO/IEC 15444-1 A.5.1 (SIZ): XRsiz and YRsiz are not 1 in a sample that has
        fewer pixels than the image.
    """
    if not codestream.startswith(_J2K_START, at) or len(codestream) < at + 45:
        return 0, 0, 0
    right, bottom, left, top = struct.unpack_from(">4I", codestream, at + 8)
    samples, dx, dy = struct.unpack_from(">HxBB", codestream, at + 40)
    is_subsampled = samples == 1 and (dx, dy) != (1, 1)
    return bottom - top, right - left, 0 if is_subsampled else samples


def _check_parts(codestream: bytes, at: int, rows: int, columns: int) -> None:
    """Refuse a codestream of too many tiles, precincts or packets.

    Source:
        ISO/IEC 15444-1 A.5.1 (SIZ), A.6.1 (COD), A.6.2 (COC), B.3 (tiles), B.6
        (precincts). A tile may begin anywhere in the first row and column of its
        precincts, so there is one more each way.
    """
    tile_columns, tile_rows, tiles_left, tiles_top = struct.unpack_from(
        ">4I", codestream, at + 24
    )
    right, bottom = struct.unpack_from(">2I", codestream, at + 8)
    num_tiles = -(-(right - tiles_left) // max(tile_columns, 1)) * -(
        -(bottom - tiles_top) // max(tile_rows, 1)
    )
    if num_tiles > _MAX_TILES:
        raise RejectError("too-large", f"a compressed frame of {num_tiles:,} tiles")
    num_rows, num_columns = min(rows, tile_rows), min(columns, tile_columns)
    most_layers, most_precincts = 1, 1
    for found in _segments(codestream, _COD):
        (layers,) = struct.unpack_from(">2xH", found)
        precincts = _num_precincts(found[0], found[5:], num_rows, num_columns)
        if precincts and layers:
            most_layers = max(most_layers, layers)
            most_precincts = max(most_precincts, precincts)
    for found in _segments(codestream, _COC):
        precincts = _num_precincts(found[1], found[2:], num_rows, num_columns)
        most_precincts = max(most_precincts, precincts)
    num_packets = most_layers * most_precincts
    if most_precincts > _MAX_PRECINCTS or num_packets > _MAX_PACKETS:
        raise RejectError(
            "too-large",
            f"a compressed frame of up to {most_precincts:,} precincts and "
            f"{num_packets:,} packets a tile",
        )


def _segments(codestream: bytes, start: bytes) -> Iterator[bytes]:
    """What follows the length of all that could be segments of a marker.

    Also what is between packets or in a comment: decoders look for a marker there.
    """
    at = codestream.find(start)
    while at >= 0:
        length = codestream[at + 3] if at + 3 < len(codestream) else 0
        found = codestream[at + 4 : at + 2 + length]
        if len(found) == length - 2 >= 7:
            yield found
        at = codestream.find(start, at + 2)


def _num_precincts(style: int, coding: bytes, rows: int, columns: int) -> int:
    """Precincts of a tile at all resolutions; 0 where these are no parameters.

    Args:
        style: bit 0 says whether the precincts have sizes.
        coding: the coding style parameters: number of decompositions, four bytes, and
            the sizes of precincts from the lowest resolution up.
        rows: of the tile.
        columns: of the tile.

    Source:
        ISO/IEC 15444-1 A.6.1, tables A.15 and A.21.
    """
    num_resolutions = coding[0] + 1
    sizes = coding[5:]
    if num_resolutions > _MAX_RESOLUTIONS:
        return 0
    if not style & 1:
        return 0 if sizes else num_resolutions
    if len(sizes) != num_resolutions:
        return 0
    total = 0
    for level, size in enumerate(reversed(sizes)):
        across = (columns >> (level + (size & 15))) + 2
        total += across * ((rows >> (level + (size >> 4))) + 2)
    return total
