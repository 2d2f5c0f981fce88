"""A compressed frame of another shape, or without an end, is rejected undecoded."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import Decoder, get_decoder

from ichfast.dicom import slices as dicom
from tests.dicom.compressed_frames import (
    J2K_HUGE,
    JP2_HEAD,
    JPEG_HUGE,
    JPEG_SMALL,
    box,
    cod,
    encoded,
    j2k,
    j2k_file,
)
from tests.dicom.dicom_files import (
    attempt,
    ct_file,
    ramp,
    read_one,
    rejection,
)


@pytest.mark.parametrize(
    ("syntax", "codestream"),
    [
        (uid.JPEG2000Lossless, J2K_HUGE),
        (uid.JPEG2000Lossless, JP2_HEAD + box(b"jp2c", J2K_HUGE + bytes(40))),
        # The codestream follows another box, which holds a copy of its header.
        (
            uid.JPEG2000Lossless,
            JP2_HEAD
            + box(b"free", J2K_HUGE.replace(b"\0\0\xea\x60", b"\0\0\0\1") + bytes(400))
            + box(b"jp2c", J2K_HUGE + bytes(40)),
        ),
        # Fill bytes.
        (uid.JPEGLosslessSV1, JPEG_HUGE.replace(b"\xff\xc3", b"\xff\xff\xff\xc3")),
        (uid.JPEGLosslessSV1, JPEG_HUGE + bytes(40)),
        (uid.JPEGLSLossless, JPEG_HUGE.replace(b"\xc3", b"\xf7") + bytes(40)),
    ],
)
def test_a_frame_larger_than_the_slice_is_not_decoded(
    syntax: str, codestream: bytes
) -> None:
    content = ct_file(ramp(), syntax=syntax, pixels=encapsulate([codestream]))
    error = rejection(content)
    assert error.code == "too-large"
    assert "60000 rows" in error.detail


@pytest.mark.parametrize(
    "codestream",
    [
        # The number of rows follows the pixels; a decoder takes 11 GB for it.
        JPEG_HUGE[:-5] + struct.pack(">HHB", 0, 60000, 1),
        JPEG_SMALL.replace(b"\xff\xc3", b"junk\xff\xc3"),
        JPEG_SMALL.replace(b"\xff\xc3", b"\xff\x01\xff\xc3"),
        JPEG_SMALL.replace(b"\xff\xc3", b"\xff\xc2"),  # progressive
        JPEG_SMALL[1:],
        b"\xff\xd8\xff\xe0\0\0" + bytes(40),
        b"",
    ],
)
def test_a_frame_that_decoders_could_read_in_different_ways_is_not_decoded(
    codestream: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoder, "iter_array", lambda *_, **__: pytest.fail("decoded"))
    pixels = encapsulate([codestream + bytes(40) + b"\xff\xd9"])
    content = ct_file(ramp(), syntax=uid.JPEGLosslessSV1, pixels=pixels)
    error = rejection(content)
    assert error.code == "decoder-error"
    assert "Failed" not in error.detail


@pytest.mark.parametrize("marker", [b"\xff\xc3", b"\xff\xf7"])
def test_a_jpeg_frame_without_an_end_is_truncated(marker: bytes) -> None:
    """A decoder would invent the rest."""
    codestream = JPEG_SMALL.replace(b"\xff\xc3", marker) + bytes(40)
    content = ct_file(
        ramp(), syntax=uid.JPEGLosslessSV1, pixels=encapsulate([codestream])
    )
    assert rejection(content).code == "truncated-pixels"


@pytest.mark.parametrize(
    ("codestream", "code"),
    [
        (j2k(512, 2048, 2048, cod()), "decoder-error"),
        (j2k(1024, 1024, 1024, cod(), step=2), "decoder-error"),
        (j2k(255, 255, 1, cod(), samples=16), "decoder-error"),
        (j2k(255, 255, 1, cod(), samples=17), "too-large"),
    ],
)
def test_jpeg_2000_of_another_shape_is_not_decoded(
    codestream: bytes, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = j2k_file(j2k(1024, 1024, 1024, cod(b"\x44", layers=100)), 1024)
    assert read_one(whole).stored_HW.shape == (1024, 1024)
    monkeypatch.setattr(Decoder, "iter_array", lambda *_, **__: pytest.fail("decoded"))
    assert rejection(j2k_file(codestream, 1024)).code == code


def test_more_frames_than_fragments_are_not_decoded() -> None:
    content = ct_file(
        ramp(),
        syntax=uid.RLELossless,
        pixels=encapsulate([bytes(64)]),
        NumberOfFrames="9",
    )
    assert rejection(content).code == "too-large"


@pytest.mark.parametrize("num_bytes", [6, 12, 30])
def test_truncated_compressed_pixels_are_distinguished_from_broken_ones(
    num_bytes: int,
) -> None:
    pixels = encapsulate([bytes(64)])
    content = ct_file(ramp(), syntax=uid.RLELossless, pixels=pixels)
    assert rejection(content[:-num_bytes]).code == "truncated-pixels"


@pytest.mark.parametrize("installed", [(), ("gdcm",)])
def test_a_missing_decoder_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...]
) -> None:
    decoder = Decoder(uid.JPEG2000Lossless)
    for name in ("gdcm", "pylibjpeg"):
        module = f"pydicom.pixels.decoders.{name}"
        is_installed = name in installed
        monkeypatch.setattr(f"{module}.is_available", lambda _, so=is_installed: so)
        decoder.add_plugin(name, (module, "_decode_frame"))
    assert decoder.available_plugins == installed
    monkeypatch.setattr(dicom, "get_decoder", lambda _: decoder)
    pixels = encapsulate([bytes(64)])
    error = rejection(ct_file(ramp(), syntax=uid.JPEG2000Lossless, pixels=pixels))
    assert error.code == "no-decoder"
    assert "pip install 'ichfast[decoders]'" in error.detail
    assert "pylibjpeg-openjpeg" in error.detail


def test_a_frame_of_many_components_is_not_decoded() -> None:
    content = bytearray(encoded(uid.JPEG2000Lossless))
    at = content.index(b"\xff\x4f\xff\x51") + 40
    content[at : at + 2] = b"\x40\x00"
    assert rejection(bytes(content)).code == "too-large"


@pytest.mark.parametrize("syntax", [uid.JPEGLSLossless, uid.JPEG2000Lossless])
def test_more_frames_than_the_header_states_are_rejected(syntax: str) -> None:
    three = encoded(syntax, num_frames=3)
    stated = b"IS\x02\x00%d "
    assert three.count(stated % 3) == 1
    assert attempt(three) is None
    assert rejection(three.replace(stated % 3, stated % 2)).code == "decoder-error"


@pytest.mark.parametrize("length", [0, 1, 7])
def test_boxes_without_a_length_are_rejected(length: int) -> None:
    start = b"\0\0\0\x0cjP  \r\n\x87\n"
    frame = start + length.to_bytes(4, "big") + b"ftyp" + bytes(80)
    raw = np.zeros((8, 8), "<i2")
    content = ct_file(raw, syntax=uid.JPEG2000Lossless, pixels=encapsulate([frame]))
    assert rejection(content).code == "decoder-error"


def test_gdcm_is_not_used_because_it_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = get_decoder(uid.JPEG2000Lossless)
    kept = {"gdcm": decoder._available.get("gdcm", print)}
    monkeypatch.setattr(decoder, "_available", kept)
    assert rejection(encoded(uid.JPEG2000Lossless)).code == "no-decoder"


def test_syntaxes_without_a_decoder_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dicom.missing_decoders() == []
    decoder = get_decoder(uid.JPEG2000Lossless)
    monkeypatch.setattr(decoder, "_available", {"gdcm": print})
    assert dicom.missing_decoders() == [uid.JPEG2000Lossless.name]
