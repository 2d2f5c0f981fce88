"""The walk over a file's elements, against pydicom's reading of the same file."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from ichfast import elements, filebytes
from ichfast.dicom import read_slices
from ichfast.elements import walk
from ichfast.errors import RejectError
from tests.test_dicom import (
    EXPLICIT,
    IMPLICIT,
    ct_file,
    needs_data,
    ramp,
    real_files,
)

HEADER_BYTES = 1000
"""Of a small file, where its elements are; more than it has."""


def outcome(content: bytes) -> list[Any]:
    """What reading gives: every field of every slice, or the reject code."""
    try:
        slices = read_slices(content)
    except RejectError as error:
        return [error.code]
    return [
        [one.stored_HW.tobytes(), one.stored_HW.shape]
        + [repr(getattr(one, name)) for name in one.__slots__ if name != "stored_HW"]
        for one in slices
    ]


def outcome_without_walk(content: bytes, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    with monkeypatch.context() as patch:
        patch.setattr(elements, "walk", lambda *_: None)
        return outcome(content)


def is_walked(content: bytes) -> bool:
    start, _ = filebytes.find_start(content)
    return walk(content, start, frozenset(), frozenset()) is not None


@needs_data
def test_real_files_read_alike_with_and_without_the_walk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num_walked = 0
    for row, content in real_files():
        with_walk = outcome(content)
        assert with_walk == outcome_without_walk(content, monkeypatch), row["file"]
        if isinstance(with_walk[0], list):
            num_walked += is_walked(content)
            assert is_walked(content) or "rsna" not in row["container"] + row["file"]
    assert num_walked > 200


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_damaged_headers_read_alike_with_and_without_the_walk(
    syntax: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ct_file(ramp(), syntax=syntax, PixelPaddingValue=3, ImageType="AXIAL")
    assert is_walked(whole)
    draw = random.Random(7)
    num_walked = num_stored = 0
    for number in range(1500):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(132, min(HEADER_BYTES, len(content)))
            match draw.randrange(4):
                case 0:
                    content[at] ^= 1 << draw.randrange(8)
                case 1:
                    content[at] = draw.choice((0, 1, 2, 8, 0x20, 0x28, 0xFF))
                case 2:
                    del content[at : at + draw.randint(1, 12)]
                case 3:
                    content[at:at] = content[at - 8 : at]
        found = outcome(bytes(content))
        expected = outcome_without_walk(bytes(content), monkeypatch)
        assert found == expected, f"input {number}: {found[0]} and {expected[0]}"
        if isinstance(found[0], list):
            num_stored += 1
            num_walked += is_walked(bytes(content))
    assert num_stored > num_walked > 100


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
def test_what_is_not_plain_is_left_to_pydicom(content: bytes, why: str) -> None:
    start = 132 if content[128:132] == b"DICM" else 0
    walked = walk(content, start, frozenset(), frozenset())
    assert walked is None or walked.pixels_at > len(content), why


def test_explicit_elements_that_are_said_to_be_implicit_are_left_to_pydicom() -> None:
    meta = 132 + 8 + 20
    whole = ct_file(np.zeros((1500, 1500), "<i2"))
    content = bytearray(
        whole.replace(EXPLICIT.encode() + b" ", b"1.2.840.10008.1.2\0\0\0")
    )
    # What a length would be, if the VR were a part of it, leads to pixels.
    at = meta + 8 + int.from_bytes(content[meta + 4 : meta + 8], "little")
    content[at : at + 8] = bytes.fromhex("e07f100000010000")
    assert walk(bytes(content), 132, frozenset(), frozenset()) is None


def test_a_refused_element_is_left_to_pydicom() -> None:
    content = ct_file(ramp())
    assert walk(content, 132, frozenset(), frozenset((0x0028_0010,))) is None


def test_only_what_is_wanted_is_kept() -> None:
    content = ct_file(ramp())
    walked = walk(content, 132, frozenset((0x0028_0010,)), frozenset())
    assert walked is not None
    assert walked.elements == {0x0028_0010: ((7).to_bytes(2, "little"), True)}
    assert walked.syntax == EXPLICIT
    stored = np.frombuffer(content, "<i2", offset=walked.pixels_at)
    np.testing.assert_array_equal(stored, ramp().ravel())
