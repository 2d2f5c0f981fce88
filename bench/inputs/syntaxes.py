"""Synthetic files in other transfer syntaxes, to measure how fast each is read."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from pydicom import Dataset, dcmread, uid  # noqa: TID251 - writes what ichfast.dicom reads
from pydicom.encaps import encapsulate  # noqa: TID251
from pydicom.pixels.encoders.base import get_encoder  # noqa: TID251


def _leave(_dataset: Dataset) -> None:
    """Change nothing: the file is uncompressed, or deflated when it is saved."""


def _compress(dataset: Dataset, syntax: uid.UID, plugin: str) -> None:
    if plugin not in get_encoder(syntax).available_plugins:
        raise ImportError(plugin)
    dataset.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)


def _compress_jpeg(dataset: Dataset) -> None:
    from imagecodecs import ljpeg_encode

    # The encoder takes unsigned samples; the header restores the sign.
    _set_frame(dataset, ljpeg_encode(dataset.pixel_array.view(np.uint16)))


def _compress_htj2k(dataset: Dataset) -> None:
    from imagecodecs import htj2k_encode

    _set_frame(dataset, htj2k_encode(dataset.pixel_array, reversible=True))


def _set_frame(dataset: Dataset, codestream: bytes | bytearray) -> None:
    dataset.PixelData = encapsulate([bytes(codestream)])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True


_Compress = Callable[[Dataset], None]
_RLE, _JPEG_LS = uid.RLELossless, uid.JPEGLSLossless
_JPEG_2000 = uid.JPEG2000Lossless

_SYNTAXES: dict[str, tuple[uid.UID, _Compress, str]] = {
    "explicit little-endian": (uid.ExplicitVRLittleEndian, _leave, ""),
    "implicit little-endian": (uid.ImplicitVRLittleEndian, _leave, ""),
    "deflated": (uid.DeflatedExplicitVRLittleEndian, _leave, ""),
    "RLE": (_RLE, partial(_compress, syntax=_RLE, plugin="pydicom"), ""),
    "JPEG lossless": (uid.JPEGLossless, _compress_jpeg, "bench"),
    "JPEG-LS": (
        _JPEG_LS,
        partial(_compress, syntax=_JPEG_LS, plugin="pyjpegls"),
        "decoders",
    ),
    "JPEG 2000": (
        _JPEG_2000,
        partial(_compress, syntax=_JPEG_2000, plugin="pylibjpeg"),
        "decoders",
    ),
    "HTJ2K": (uid.HTJ2KLossless, _compress_htj2k, "bench"),
}
"""For each syntax: its UID, a function that compresses a frame, the extra it needs."""


def encode_in_syntaxes(
    contents: Sequence[bytes],
) -> tuple[dict[str, list[bytes]], dict[str, str]]:
    """Write files again in each syntax.

    Args:
        contents: Whole DICOM files, uncompressed, of one frame.

    Returns:
        The files by syntax, and the reasons by syntax of those that are left out.
    """
    encoded: dict[str, list[bytes]] = {}
    left_out: dict[str, str] = {}
    for name, (syntax, compress, extra) in _SYNTAXES.items():
        try:
            encoded[name] = [_encode(each, syntax, compress) for each in contents]
        except ImportError:
            left_out[name] = f"no encoder for it; pip install 'ichfast[{extra}]'"
    return encoded, left_out


def _encode(content: bytes, syntax: uid.UID, compress: _Compress) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # RSNA's UIDs are not valid UIDs
        dataset = dcmread(io.BytesIO(content))
        compress(dataset)
        dataset.file_meta.TransferSyntaxUID = syntax
        out = io.BytesIO()
        dataset.save_as(
            out,
            implicit_vr=syntax == uid.ImplicitVRLittleEndian,
            little_endian=True,
            enforce_file_format=False,
        )
    return out.getvalue()
