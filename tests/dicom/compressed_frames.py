"""Compressed frames: whole ones, and headers that state any size."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import get_encoder
from pydicom.uid import JPEG2000Lossless

from tests.dicom.dicom_files import (
    COLUMNS,
    ROWS,
    ct_file,
)

J2K_HUGE = b"\xff\x4f\xff\x51\x00\x29\x00\x00" + struct.pack(
    ">8IH3B", *(60000, 60000, 0, 0), *(60000, 60000, 0, 0), *(1, 15, 1, 1)
)

JPEG_HUGE = b"\xff\xd8\xff\xe0\0\2\xff\xc3\0\x0b\x10" + struct.pack(
    ">HHB", 60000, 60000, 1
)

JPEG_SMALL = JPEG_HUGE[:-5] + struct.pack(">HHB", ROWS, COLUMNS, 1)

JP2_HEAD = b"\0\0\0\x0cjP  \r\n\x87\n"


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def j2k(
    rows: int,
    columns: int,
    tile: int,
    *coding: bytes,
    samples: int = 1,
    step: int = 1,
) -> bytes:
    """A codestream of empty packets."""
    size = struct.pack(">H8IH", 0, columns, rows, 0, 0, tile, tile, 0, 0, samples)
    size += bytes([15, step, step]) * samples
    main = b"\xff\x51" + struct.pack(">H", 2 + len(size)) + size + b"".join(coding)
    quantization = b"\xff\x5c\0\x04\x40\x90"
    start = struct.pack(">HHHIBB", 0xFF90, 10, 0, 0, 0, 1)
    return b"\xff\x4f" + main + quantization + start + b"\xff\x93" + bytes(99)


def j2k_file(codestream: bytes, size: int) -> bytes:
    """A file of `size` x `size` pixels whose frame is `codestream`."""
    raw = np.zeros((size, size), "<u2")
    pixels = encapsulate([codestream + b"\xff\xd9"])
    return ct_file(raw, syntax=JPEG2000Lossless, pixels=pixels)


def cod(sizes: bytes = b"", layers: int = 1) -> bytes:
    """Coding parameters without decomposition, with or without sizes of precincts."""
    content = struct.pack(">BBHB5B", len(sizes), 0, layers, 0, *(0, 4, 4, 0, 1)) + sizes
    return b"\xff\x52" + struct.pack(">H", 2 + len(content)) + content


COC = b"\xff\x53\0\x0a\0\1\0\4\4\0\1\0"
"""Coding parameters of a component, with precincts of one pixel."""


def encoded(
    syntax: str, raw: npt.NDArray[np.uint16] | None = None, num_frames: int = 1
) -> bytes:
    """A file whose frames are all `raw`, compressed; by default 64x64 random pixels."""
    if raw is None:
        raw = np.random.default_rng(1).integers(0, 4096, (64, 64), np.uint16)
    encoder = get_encoder(syntax)
    codestream = encoder.encode(
        raw,
        rows=raw.shape[0],
        columns=raw.shape[1],
        number_of_frames=1,
        samples_per_pixel=1,
        photometric_interpretation="MONOCHROME2",
        bits_allocated=16,
        bits_stored=16,
        pixel_representation=0,
    )
    pixels = encapsulate([codestream] * num_frames)
    frames: dict[str, Any] = (
        {"NumberOfFrames": str(num_frames)} if num_frames > 1 else {}
    )
    return ct_file(raw, syntax=syntax, pixels=pixels, **frames)
