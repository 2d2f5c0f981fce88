"""Peers of packed slices: compressors without loss that people use for arrays.

Each uses one thread and its fastest level.

Shape letters: H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Codec:
    """Packs slices and unpacks them."""

    pack: Callable[[npt.NDArray[np.uint16]], bytes]
    """Packs a slice, shape (H, W), uint16, C order."""

    unpack: Callable[[bytes, npt.NDArray[np.uint16]], object]
    """Unpacks it into an array of the same shape, type and order."""


def make_codec(name: str) -> Codec:
    """Make the codec ``zstd``, or ``blosc2``: bits shuffled, then zstd."""
    import imagecodecs

    def bytes_of(pixels_HW: npt.NDArray[np.uint16]) -> Any:
        return pixels_HW.data.cast("B")

    def pack_with_zstd(stored_HW: npt.NDArray[np.uint16]) -> Any:
        return imagecodecs.zstd_encode(bytes_of(stored_HW), 1)

    def pack_with_blosc2(stored_HW: npt.NDArray[np.uint16]) -> Any:
        return imagecodecs.blosc2_encode(
            bytes_of(stored_HW),
            level=1,
            compressor="zstd",
            shuffle="bitshuffle",
            typesize=stored_HW.itemsize,
            numthreads=1,
        )

    codecs = {
        "zstd": Codec(
            pack_with_zstd,
            lambda packed, out_HW: imagecodecs.zstd_decode(
                packed, out=bytes_of(out_HW)
            ),
        ),
        "blosc2": Codec(
            pack_with_blosc2,
            lambda packed, out_HW: imagecodecs.blosc2_decode(
                packed, numthreads=1, out=bytes_of(out_HW)
            ),
        ),
    }
    return codecs[name]
