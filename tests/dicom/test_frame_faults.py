"""Frames are found although the header or the offset table is wrong about them."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydicom import uid
from pydicom.encaps import encapsulate

from ichfast.dicom.slices import read_slices
from ichfast.errors import RejectError
from tests.dicom.compressed_frames import encoded
from tests.dicom.dicom_files import (
    EXPLICIT,
    ct_file,
    element,
    encode,
    ramp,
    read_one,
    rejection,
)
from tests.dicom.real_files import HUNT, needs_hunt

SYNTAXES = (uid.JPEG2000Lossless, uid.JPEGLSLossless, uid.RLELossless)


def frame(number: int) -> npt.NDArray[np.uint16]:
    rng = np.random.default_rng(number)
    return rng.integers(0, 3000, (64, 64), np.uint16)


def codestream(syntax: str, number: int) -> bytes:
    content = encoded(syntax, frame(number))
    at = content.index(b"\xfe\xff\x00\xe0", content.index(b"\xe0\x7f\x10\x00") + 13)
    (length,) = struct.unpack_from("<I", content, at + 4)
    return content[at + 8 : at + 8 + length]


def compressed(
    syntax: str, *, table: bytes | None = None, split: bool = False, **changed: Any
) -> bytes:
    """Three frames; with another basic offset table, or of two fragments each."""
    streams = [codestream(syntax, number) for number in range(3)]
    pixels = encapsulate(
        streams, fragments_per_frame=2 if split else 1, has_bot=table is None
    )
    if table is not None:
        pixels = pixels[:4] + struct.pack("<I", len(table)) + table + pixels[8:]
    return ct_file(
        frame(0), syntax=syntax, pixels=pixels, RescaleIntercept="0", **changed
    )


def check_three_frames(content: bytes, *quirks: str) -> None:
    slices = list(read_slices(content))
    assert [one.slice_id for one in slices] == ["ID_0123.1", "ID_0123.2", "ID_0123.3"]
    for number, one in enumerate(slices):
        np.testing.assert_array_equal(one.stored_HW, frame(number) + 1024)
    assert slices[-1].quirks == quirks


@pytest.mark.parametrize("changed", [{}, {"NumberOfFrames": "0"}])
def test_native_frames_that_no_number_states_are_counted(
    changed: dict[str, Any],
) -> None:
    raw = np.stack([frame(number) for number in range(3)])
    content = ct_file(raw, RescaleIntercept="0", **changed)
    check_three_frames(content, "frame_count")


def test_pixels_that_are_no_whole_frames_are_one_slice() -> None:
    one = read_one(ct_file(ramp(), pixels=ramp().tobytes() * 2 + bytes(6)))
    assert (one.slice_id, one.quirks) == ("ID_0123", ("long_pixels",))


def test_a_number_of_frames_that_is_stated_is_not_changed() -> None:
    raw = np.stack([frame(number) for number in range(3)])
    assert read_one(ct_file(raw, NumberOfFrames="1")).quirks == ("long_pixels",)
    assert rejection(ct_file(raw, NumberOfFrames="-1")).code == "bad-header"


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("changed", [{}, {"NumberOfFrames": "0"}])
@pytest.mark.parametrize("table", [None, b""])
def test_compressed_frames_that_no_number_states_are_counted(
    syntax: str, changed: dict[str, Any], table: bytes | None
) -> None:
    check_three_frames(compressed(syntax, table=table, **changed), "frame_count")


@pytest.mark.parametrize("table", [None, b""])
@pytest.mark.parametrize("syntax", SYNTAXES[:2])
def test_frames_of_two_fragments_are_counted_once(
    syntax: str, table: bytes | None
) -> None:
    check_three_frames(compressed(syntax, table=table, split=True), "frame_count")


def test_a_frame_of_several_fragments_is_one_slice() -> None:
    stream = codestream(uid.JPEG2000Lossless, 0)
    pixels = encapsulate([stream], fragments_per_frame=3)
    one = read_one(ct_file(frame(0), syntax=uid.JPEG2000Lossless, pixels=pixels))
    assert one.quirks == ()
    np.testing.assert_array_equal(one.stored_HW, frame(0))


def test_no_frames_are_one_frame() -> None:
    one = read_one(ct_file(ramp(), NumberOfFrames="0"))
    assert (one.slice_id, one.quirks) == ("ID_0123", ("frame_count",))


@pytest.mark.parametrize(
    "table",
    [
        *(bytes(12), struct.pack("<3I", 0, 0xFFFFFFFF, 1), struct.pack("<I", 0)),
        *(struct.pack("<3I", 0, 4, 8), struct.pack("<3I", 8, 16, 24), b"\1\2\3\4\5\6"),
        *(b"\xff" * 12, bytes(14), bytes(4096)),
    ],
)
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_frames_are_found_without_their_damaged_offsets(
    syntax: str, table: bytes
) -> None:
    content = compressed(syntax, table=table, NumberOfFrames="3")
    check_three_frames(content, "offset_table")


@pytest.mark.parametrize("split", [False, True])
def test_sound_offsets_are_used(*, split: bool) -> None:
    syntax = uid.JPEG2000Lossless
    check_three_frames(compressed(syntax, split=split, NumberOfFrames="3"))
    two = compressed(syntax, split=split, NumberOfFrames="2")
    assert rejection(two).code == "decoder-error"
    one = compressed(syntax, split=split, NumberOfFrames="1")
    assert rejection(one).code == "decoder-error"


def test_offsets_that_leave_out_the_first_fragment_are_not_used() -> None:
    """With them the first frame would be made of two fragments."""
    syntax = uid.JPEG2000Lossless
    first, second = (len(codestream(syntax, number)) + 8 for number in range(2))
    table = struct.pack("<2I", first, first + second)
    two = compressed(syntax, table=table, NumberOfFrames="2")
    assert rejection(two).detail == "more frames than the header states"


def test_a_uid_that_only_the_meta_information_has_is_used() -> None:
    content = ct_file(ramp(), without=("SOPInstanceUID",))
    meta = encode(
        dict(
            [
                element("MediaStorageSOPInstanceUID", "1.2.3.4"),
                element("TransferSyntaxUID", EXPLICIT),
            ]
        ),
        is_implicit=False,
    )
    at = content.index(b"\x08\x00\x16\x00")
    one = read_one(content[:132] + meta + content[at:])
    assert (one.slice_id, one.quirks) == ("1.2.3.4", ("meta_uid",))
    both = ct_file(ramp())
    at = both.index(b"\x08\x00\x16\x00")
    one = read_one(both[:132] + meta + both[at:])
    assert (one.slice_id, one.quirks) == ("ID_0123", ())


def outcome(content: bytes) -> str:
    try:
        slices = list(read_slices(content))
    except RejectError as error:
        return f"{error.code}: {error.detail}"
    return f"{len(slices)} {';'.join(slices[0].quirks)}"


@needs_hunt
@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("mf_no_numberofframes_native.dcm", "3 frame_count"),
        ("mf_no_numberofframes_j2k.dcm", "3 frame_count"),
        *(("frames_0.dcm", "1 frame_count"), ("no_sop_uid.dcm", "1 meta_uid")),
        ("mf_bot_zeros.dcm", "3 offset_table"),
        ("mf_bot_garbage.dcm", "3 offset_table"),
        ("encapsulated_uncompressed_1.98.dcm", "no-decoder: Encapsulated Uncompressed"),
    ],
)
def test_files_with_faults_in_their_frames_are_read_or_named(
    file: str, expected: str
) -> None:
    assert outcome((HUNT / file).read_bytes()).startswith(expected)
