"""The walk over the elements of a file gives the same as pydicom."""

from __future__ import annotations

import random
import struct
from functools import partial
from typing import Any

import numpy as np
import pytest

from ichfast.dicom import guard, walker
from ichfast.dicom.slices import read_slices
from ichfast.errors import RejectError
from tests.dicom.dicom_files import EXPLICIT, IMPLICIT, ct_file, ramp
from tests.dicom.real_files import needs_data, real_files

HEADER_BYTES = 1000
"""Upper limit of the bytes before the pixels of a small file."""


UNDEFINED = b"\xff\xff\xff\xff"
ITEM = b"\xfe\xff\x00\xe0"
ITEM_END = b"\xfe\xff\x0d\xe0" + bytes(4)
SEQUENCE_END = b"\xfe\xff\xdd\xe0" + bytes(4)
REFERENCES = 0x0008_1140
PRIVATE = 0x0009_1010


def tagged(tag: int, vr: bytes, length: bytes) -> bytes:
    """Head of an element whose length takes 4 bytes."""
    head = (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little")
    return head + vr + bytes(2) + length


def sequence(tag: int, *items: bytes, measured: bool) -> bytes:
    """A sequence of undefined length; its items have a length if `measured`."""
    packed = (
        ITEM + len(item).to_bytes(4, "little") + item
        if measured
        else ITEM + UNDEFINED + item + ITEM_END
        for item in items
    )
    return tagged(tag, b"SQ", UNDEFINED) + b"".join(packed) + SEQUENCE_END


def with_sequences(*, measured: bool, depth: int = 3) -> bytes:
    """A CT file as scanners write it: sequences of undefined length, nested."""
    pixels = tagged(0x7FE0_0010, b"OW", b"\4\0\0\0") + b"icon"
    make = partial(sequence, measured=measured)
    nested = make(PRIVATE, pixels)
    for _ in range(depth):
        nested = make(REFERENCES, nested, b"", nested if depth < 5 else b"")
    inserted = nested + make(PRIVATE) + make(REFERENCES, pixels)
    whole = ct_file(ramp())
    at = whole.index(b"\x28\x00\x02\x00")
    return whole[:at] + inserted + whole[at:]


def outcome(content: bytes) -> list[Any]:
    """Every field of every slice, or the reject code."""
    try:
        slices = list(read_slices(content))
    except RejectError as error:
        return [error.code]
    return [
        [one.stored_HW.tobytes(), one.stored_HW.shape]
        + [repr(getattr(one, name)) for name in one.__slots__ if name != "stored_HW"]
        for one in slices
    ]


def outcome_without_walk(content: bytes, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    with monkeypatch.context() as patch:
        patch.setattr(walker.Walker, "walk", lambda *_: None)
        return outcome(content)


def plain_walk(
    content: bytes,
    start: int = 132,
    wanted: frozenset[int] = frozenset(),
    refused: frozenset[int] = frozenset(),
) -> walker.Walk | None:
    return walker.Walker(wanted, refused).walk(content, start)


def is_walked(content: bytes) -> bool:
    start, _ = guard.find_start(content)
    return plain_walk(content, start) is not None


@pytest.mark.slow
@needs_data
def test_the_walk_and_pydicom_agree_on_real_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num_walked = 0
    for row, content in real_files():
        with_walk = outcome(content)
        assert with_walk == outcome_without_walk(content, monkeypatch), row["file"]
        if isinstance(with_walk[0], list):
            num_walked += is_walked(content)
            assert is_walked(content) or "rsna" not in row["container"] + row["file"]
    assert num_walked > 230


def mutated(whole: bytes, draw: random.Random) -> bytes:
    content = bytearray(whole)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(132, min(HEADER_BYTES, len(content)))
        match draw.randrange(5):
            case 0:
                content[at] ^= 1 << draw.randrange(8)
            case 1:
                content[at] = draw.choice((0, 1, 2, 8, 0x20, 0x28, 0xFF))
            case 2:
                del content[at : at + draw.randint(1, 12)]
            case 3:
                content[at:at] = content[at - 8 : at]
            case 4:
                mark = draw.choice((ITEM, ITEM_END, SEQUENCE_END, UNDEFINED))
                content[at : at + len(mark)] = mark
    return bytes(content)


PLAIN = partial(ct_file, ramp(), PixelPaddingValue=3, ImageType="AXIAL")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("whole", "num_inputs"),
    [
        (PLAIN(syntax=EXPLICIT), 1500),
        (PLAIN(syntax=IMPLICIT), 1500),
        (with_sequences(measured=True), 2000),
        (with_sequences(measured=False), 2000),
    ],
)
def test_the_walk_and_pydicom_agree_on_damaged_headers(
    whole: bytes, num_inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_walked(whole)
    draw = random.Random(7)
    num_walked = num_stored = 0
    for number in range(num_inputs):
        content = mutated(whole, draw)
        found = outcome(content)
        expected = outcome_without_walk(content, monkeypatch)
        assert found == expected, f"input {number}: {found[0]} and {expected[0]}"
        if isinstance(found[0], list):
            num_stored += 1
            num_walked += is_walked(content)
    assert num_stored >= num_walked > 100


def element(tag: int, value: bytes, *, is_implicit: bool) -> bytes:
    """A short element, a decimal string if its VR is named."""
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if is_implicit:
        return head + struct.pack("<I", len(value)) + value
    return head + struct.pack("<2sH", b"DS", len(value)) + value


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("second", [b"", b"7 "])
def test_the_last_of_a_repeated_element_is_used(
    syntax: str, second: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = PLAIN(syntax=syntax)
    twice = b"".join(
        element(0x0018_0050, value, is_implicit=syntax == IMPLICIT)
        for value in (b"3 ", second)
    )
    at = whole.index(b"\x20\x00\x0d\x00")
    content = whole[:at] + twice + whole[at:]
    assert is_walked(content)
    assert outcome(content) == outcome_without_walk(content, monkeypatch)
    assert f"thickness_mm={float(second or 'nan')}" in str(outcome(content))


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_a_stray_end_of_an_item_is_left_to_pydicom(
    syntax: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = PLAIN(syntax=syntax)
    at = whole.index(b"\x20\x00\x0d\x00")
    content = whole[:at] + ITEM_END + whole[at:]
    assert not is_walked(content)
    assert outcome(content) == outcome_without_walk(content, monkeypatch)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("padding", ["\0", " ", "\t\t", "\r\n"])
def test_padding_around_the_syntax_is_ignored(
    syntax: str, padding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = PLAIN(syntax=syntax)
    head = whole.index(b"\x08\x00\x08\x00")
    for value in (f"{syntax}{padding}", f"{padding}{syntax}"):
        meta = struct.pack("<HH2sH", 2, 0x10, b"UI", len(value)) + value.encode()
        content = whole[:132] + meta + whole[head:]
        assert is_walked(content)
        assert outcome(content) == outcome_without_walk(content, monkeypatch)


@pytest.mark.parametrize(
    "tail", [ITEM_END, element(0x0018_0050, b"5 ", is_implicit=False)]
)
def test_an_item_that_its_elements_do_not_fill_is_left_to_pydicom(tail: bytes) -> None:
    body = element(0x0018_0050, b"3 ", is_implicit=False)
    whole = PLAIN(syntax=EXPLICIT)
    at = whole.index(b"\x20\x00\x0d\x00")

    def file_with(num_bytes: int) -> bytes:
        item = ITEM + struct.pack("<I", num_bytes) + body + tail
        head = tagged(REFERENCES, b"SQ", UNDEFINED)
        return whole[:at] + head + item + SEQUENCE_END + whole[at:]

    assert not is_walked(file_with(len(body) + 1))
    assert is_walked(file_with(len(body + tail))) == (tail != ITEM_END)


@pytest.mark.parametrize("measured", [True, False])
def test_sequences_are_walked_up_to_a_depth(
    *, measured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for depth, may_walk in ((1, True), (15, True), (16, False), (5000, False)):
        if measured and depth > 100:
            continue  # each item would hold a copy of all below it
        content = with_sequences(measured=measured, depth=depth)
        assert is_walked(content) == may_walk
        if depth < 100:
            found = outcome(content)
            assert found == outcome_without_walk(content, monkeypatch)
            assert isinstance(found[0], list)


def test_a_sequence_without_an_end_is_left_to_pydicom() -> None:
    whole = with_sequences(measured=False)
    for length in range(whole.index(SEQUENCE_END), whole.index(ITEM), -1):
        assert not is_walked(whole[:length])
    for mark in (SEQUENCE_END, ITEM_END):
        assert not is_walked(whole.replace(mark, b"", 1))
    assert not is_walked(whole.replace(b"SQ", b"UN"))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (ct_file(ramp(), pixels=b""), "no pixels"),
        (ct_file(ramp())[:-400], "no pixels, or pixels beyond the end"),
        (ct_file(ramp(), without=("PixelData",)), "no pixels"),
        (ct_file(ramp())[132 + 28 :], "no meta information"),
        (ct_file(ramp(), syntax="1.2.840.10008.1.2.2"), "big-endian"),
        (ct_file(ramp(), syntax="1.2.840.10008.1.2.1.99"), "deflated"),
        (ct_file(ramp()).replace(b"LO", b"xx"), "an unknown value representation"),
    ],
)
def test_a_file_that_is_not_plain_is_left_to_pydicom(content: bytes, why: str) -> None:
    start = 132 if content[128:132] == b"DICM" else 0
    walked = plain_walk(content, start)
    assert walked is None or walked.pixels_at > len(content), why


def test_explicit_elements_declared_implicit_are_left_to_pydicom() -> None:
    meta = 132 + 8 + 20
    whole = ct_file(np.zeros((1500, 1500), "<i2"))
    content = bytearray(
        whole.replace(EXPLICIT.encode() + b" ", b"1.2.840.10008.1.2\0\0\0")
    )
    # What a length would be, if the VR were a part of it, leads to pixels.
    at = meta + 8 + int.from_bytes(content[meta + 4 : meta + 8], "little")
    content[at : at + 8] = bytes.fromhex("e07f100000010000")
    assert plain_walk(bytes(content)) is None


def test_a_refused_element_is_left_to_pydicom() -> None:
    content = ct_file(ramp())
    assert plain_walk(content, refused=frozenset((0x0028_0010,))) is None


def test_only_wanted_elements_are_kept() -> None:
    content = ct_file(ramp())
    walked = plain_walk(content, wanted=frozenset((0x0028_0010,)))
    assert walked is not None
    assert walked.elements == {0x0028_0010: ((7).to_bytes(2, "little"), True)}
    assert walked.syntax == EXPLICIT
    stored = np.frombuffer(content, "<i2", offset=walked.pixels_at)
    np.testing.assert_array_equal(stored, ramp().ravel())
