"""Synthetic files in other transfer syntaxes: those that something here can write."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

from pydicom import dcmread, uid  # noqa: TID251 - writes what ichfast.dicom reads

_PLAIN = {
    "explicit little-endian": uid.ExplicitVRLittleEndian,
    "implicit little-endian": uid.ImplicitVRLittleEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
}
_COMPRESSED = {
    "RLE": (uid.RLELossless, "pydicom"),
    "JPEG-LS": (uid.JPEGLSLossless, "pyjpegls"),
    "JPEG 2000": (uid.JPEG2000Lossless, "pylibjpeg"),
}
"""Syntax, and the plugin of pydicom that writes it."""

_UNWRITTEN = ("JPEG lossless", "HTJ2K")


def encode_in_syntaxes(
    contents: Sequence[bytes],
) -> tuple[dict[str, list[bytes]], dict[str, str]]:
    """Write files again, in each syntax.

    Args:
        contents: whole DICOM files, uncompressed.

    Returns:
        The files by syntax, and of those left out the reason.
    """
    encoded: dict[str, list[bytes]] = {}
    left_out = dict.fromkeys(_UNWRITTEN, "no package here writes it")
    for name, syntax in _PLAIN.items():
        encoded[name] = [_encode(content, syntax, "") for content in contents]
    for name, (syntax, plugin) in _COMPRESSED.items():
        try:
            encoded[name] = [_encode(content, syntax, plugin) for content in contents]
        except RuntimeError:  # pydicom's, for a plugin whose package is missing
            left_out[name] = f"no {plugin}; pip install 'ichfast[decoders]'"
    return encoded, left_out


def _encode(content: bytes, syntax: uid.UID, plugin: str) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # RSNA's UIDs are none
        dataset = dcmread(io.BytesIO(content))
        if plugin:
            dataset.compress(
                syntax, encoding_plugin=plugin, generate_instance_uid=False
            )
        else:
            dataset.file_meta.TransferSyntaxUID = syntax
        out = io.BytesIO()
        dataset.save_as(
            out,
            implicit_vr=syntax == uid.ImplicitVRLittleEndian,
            little_endian=True,
            enforce_file_format=False,
        )
    return out.getvalue()
