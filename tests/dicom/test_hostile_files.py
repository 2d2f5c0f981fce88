"""Files made to take much memory or time, or to leak patient data, are rejected."""

from __future__ import annotations

import logging
import random
import struct
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pydicom import config, uid
from pydicom.encaps import encapsulate

from ichfast.dicom import guard, header, hounsfield
from ichfast.dicom import slices as dicom
from ichfast.dicom.slices import read_slices
from ichfast.dicom.walker import Walker
from ichfast.system.limits import LimitedProcess, LimitError
from tests.dicom.compressed_frames import COC, cod, j2k, j2k_file
from tests.dicom.dicom_files import (
    COLUMNS,
    DELIMITER,
    IMPLICIT,
    ITEM,
    ROWS,
    UNDEFINED,
    attempt,
    big_endian_file,
    ct_file,
    encode,
    implicit,
    ramp,
    read_one,
    rejection,
    with_implicit,
)


def test_a_deflated_bomb_is_not_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ichfast.dicom.guard._MAX_INFLATED_BYTES", 1000)
    content = ct_file(
        ramp(),
        syntax=uid.DeflatedExplicitVRLittleEndian,
        pixels=bytes(2000),
    )
    assert rejection(content).code == "too-large"


REJECTED_BY_A_LIMIT = {"too-large", "decoder-error", "limit"}
EXTRA_BYTES = 2**30
"""Memory that a process may take to read a file."""
TIMEOUT_S = 60.0
"""Processor time to read a file, seconds."""


def outcome(content: bytes) -> Iterator[str]:
    error = attempt(content)
    yield error.code if error else "stored"


def read_limited(content: bytes) -> str:
    """Read a file in a limited process, as prepare does.

    Returns:
        ``stored``, a reject code, or ``limit`` if the process ended.
    """
    with LimitedProcess(extra_bytes=EXTRA_BYTES, timeout_s=TIMEOUT_S) as process:
        try:
            [code] = process.iterate(outcome, content)
        except LimitError:
            return "limit"
    return code


@pytest.mark.slow
@pytest.mark.parametrize(
    "codestream",
    [
        j2k(4096, 4096, 1, cod()),
        j2k(4096, 4096, 16, cod()),
        j2k(4096, 4096, 4096, cod(b"\0")),
        j2k(4096, 4096, 4096, cod(), COC),
        j2k(4096, 4096, 4096, cod(b"\x22", layers=65_535)),
    ],
)
def test_a_frame_of_millions_of_parts_is_rejected_by_a_limit(codestream: bytes) -> None:
    content = j2k_file(codestream, 4096)
    assert len(content) < 1000
    assert read_limited(content) in REJECTED_BY_A_LIMIT


@pytest.mark.slow
@pytest.mark.parametrize(
    "codestream",
    [
        j2k(1024, 1024, 7, cod()),
        j2k(1024, 1024, 1024, cod(b"\0")),
        j2k(1024, 1024, 1024, cod(), COC),
        j2k(1024, 1024, 1024, cod(), b"\xff\x64\0\x0f" + cod(b"\0")),
        j2k(1024, 1024, 1024, cod(b"\x44", layers=500)),
        j2k(1024, 1024, 1024, cod(b"\x44", layers=5_000)),
    ],
)
def test_a_frame_of_many_parts_ends_within_the_limits(codestream: bytes) -> None:
    found = read_limited(j2k_file(codestream, 1024))
    assert found in {"stored", *REJECTED_BY_A_LIMIT}


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize(
    ("tag", "nested"),
    [
        *((0x5200_9229, nested) for nested in (True, False)),
        *((0x5200_9230, nested) for nested in (True, False)),
        (0x0028_3000, False),
    ],
)
def test_a_sequence_of_a_million_items_is_not_parsed(
    tag: int, monkeypatch: pytest.MonkeyPatch, *, nested: bool, measured: bool
) -> None:
    """An empty item has 8 bytes in the file and takes 700 of memory."""

    def file_with(num_items: int) -> bytes:
        items = (ITEM + bytes(4)) * num_items
        if nested:
            inner = implicit(0x0028_9110, items)
            items = ITEM + struct.pack("<I", len(inner)) + inner
        added = implicit(tag, items, measured=measured)
        if tag == 0x5200_9229:  # read only where frames have groups
            added += implicit(0x5200_9230, b"")
        return with_implicit(added)

    monkeypatch.setattr("ichfast.dicom.guard._MAX_PIECES", 1000)
    assert rejection(file_with(250)).code == "bad-header"
    assert "more than 1,000 elements" in rejection(file_with(250)).detail
    if tag != 0x0028_3000:  # a LUT without elements is rejected anyway
        assert read_one(file_with(200)).stored_HW.shape == (ROWS, COLUMNS)


@pytest.mark.parametrize("syntax", [IMPLICIT, "1.2.840.10008.1.2.2"])
def test_a_header_of_a_million_items_is_not_parsed(
    syntax: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = "<" if syntax == IMPLICIT else ">"
    item = struct.pack(f"{order}HHI", 0xFFFE, 0xE000, 0)
    end = struct.pack(f"{order}HHI", 0xFFFE, 0xE0DD, 0)
    head = struct.pack(f"{order}HH", 0x0008, 0x1140)
    head += b"" if syntax == IMPLICIT else b"SQ\0\0"
    is_implicit = syntax == IMPLICIT
    whole = ct_file(ramp(), syntax=syntax) if is_implicit else big_endian_file(ramp())
    at = whole.index(struct.pack(f"{order}HH", 0x0028, 0x0002))

    def file_with(num_items: int) -> bytes:
        return whole[:at] + head + UNDEFINED + item * num_items + end + whole[at:]

    monkeypatch.setattr("ichfast.dicom.guard._MAX_PIECES", 1000)
    assert read_one(file_with(100)).stored_HW.shape == (ROWS, COLUMNS)
    assert rejection(file_with(250)).code == "bad-header"


def test_full_headers_of_many_frames_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Enhanced CT as scanners write it: 20 macros, 5 elements in each, no lengths."""
    num_frames = 16
    limit = guard._MAX_PIECES * num_frames // header.MAX_FRAMES
    monkeypatch.setattr("ichfast.dicom.guard._MAX_PIECES", limit)
    body = encode({0x0018_9300 + k: ("LO", b"ab") for k in range(5)}, is_implicit=False)
    macro = ITEM + UNDEFINED + body + b"\xfe\xff\x0d\xe0" + bytes(4)
    macros = b"".join(
        struct.pack("<HH", 0x0018, 0x9400 + k)
        + b"SQ\0\0"
        + UNDEFINED
        + macro
        + DELIMITER
        for k in range(20)
    )
    frame = ITEM + UNDEFINED + macros + b"\xfe\xff\x0d\xe0" + bytes(4)
    groups = b"\x00\x52\x30\x92SQ\0\0" + UNDEFINED + frame * num_frames + DELIMITER
    whole = ct_file(np.stack([ramp()] * num_frames), NumberOfFrames=str(num_frames))
    at = whole.rindex(b"\xe0\x7f\x10\x00")
    assert len(list(read_slices(whole[:at] + groups + whole[at:]))) == num_frames


@pytest.mark.parametrize("tag", [0x0028_3002, 0x0028_3006])
@pytest.mark.parametrize("measured", [True, False])
def test_a_lut_of_megabytes_is_not_parsed(tag: int, *, measured: bool) -> None:
    """As a list of numbers it would take twenty times the memory of the file."""

    def file_with(num_bytes: int) -> bytes:
        values = {
            0x0028_3002: struct.pack("<HHH", 2**16 - 1, 0, 16),
            0x0028_3006: bytes(2**17 - 2),
        }
        values[tag] += bytes(num_bytes - len(values[tag]))
        body = b"".join(implicit(*each) for each in values.items())
        item = ITEM + struct.pack("<I", len(body)) + body
        return with_implicit(implicit(0x0028_3000, item, measured=measured))

    assert "value of" not in getattr(attempt(file_with(2**17)), "detail", "")
    assert rejection(file_with(2**17 + 2)).detail == "a value of 131,074 bytes"


def test_a_frame_of_a_million_fragments_is_not_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ichfast.dicom.guard._MAX_FRAGMENTS", 9)
    codes = [
        rejection(
            ct_file(
                ramp(), syntax=uid.RLELossless, pixels=encapsulate([b"ab"] * number)
            )
        ).code
        for number in (9, 10)
    ]
    assert codes == ["decoder-error", "too-large"]


@pytest.mark.parametrize(
    "keyword", ["WindowCenter", "ImageType", "ImagePositionPatient"]
)
@pytest.mark.parametrize("is_walked", [True, False])
def test_a_value_of_megabytes_is_not_read(
    keyword: str, monkeypatch: pytest.MonkeyPatch, *, is_walked: bool
) -> None:
    """As a list of numbers it would take a hundred times the memory of the file."""
    if not is_walked:
        monkeypatch.setattr(Walker, "walk", lambda *_: None)

    def file_with(num_bytes: int) -> bytes:
        changed: dict[str, Any] = {keyword: b"\\" * num_bytes}
        return ct_file(ramp(), syntax=IMPLICIT, **changed)

    assert read_one(file_with(65_534)).stored_HW.shape == (ROWS, COLUMNS)
    assert rejection(file_with(65_536)).code == "bad-header"


def test_memory_that_runs_out_is_a_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(hounsfield, "store_frame", fail)
    error = rejection(ct_file(ramp()))
    assert (error.code, error.detail) == (
        "too-large",
        "MemoryError while reading the pixels",
    )


def test_an_unforeseen_error_is_named_without_its_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise LookupError("SECRET^NAME")

    monkeypatch.setattr(dicom, "read_series_header", fail)
    error = rejection(ct_file(ramp()))
    assert (error.code, error.detail) == (
        "bad-header",
        "LookupError while reading the header",
    )
    assert error.__cause__ is None
    assert error.__suppress_context__


def test_a_panic_in_a_decoder_is_a_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As pyo3 raises it."""

    def fail(*_: object) -> None:
        raise PanicException("SECRET^NAME")

    monkeypatch.setattr(hounsfield, "store_frame", fail)
    error = rejection(ct_file(ramp()))
    assert (error.code, error.detail) == (
        "decoder-error",
        "PanicException while reading the pixels",
    )


@pytest.mark.parametrize(
    "content",
    [
        ct_file(ramp(), Modality="SECRET^NAME"),
        ct_file(ramp(), PhotometricInterpretation="SECRET^NAME"),
        ct_file(ramp(), syntax="SECRET^NAME"),
    ],
)
def test_no_rejection_quotes_a_value_that_could_be_a_name(content: bytes) -> None:
    assert "SECRET" not in str(rejection(content))


def test_no_rejection_quotes_the_patient(caplog: pytest.LogCaptureFixture) -> None:
    name = "SECRET^NAME"
    whole = ct_file(ramp(), PatientID=name, StudyInstanceUID=name, WindowCenter=name)
    draw = random.Random(3)
    with caplog.at_level(logging.DEBUG):
        for _ in range(300):
            content = bytearray(whole)
            for _ in range(4):
                content[draw.randrange(132, len(content))] ^= 1 << draw.randrange(8)
            error = attempt(bytes(content))
            assert "SECRET" not in str(error)
            assert error is None or error.__cause__ is None
    assert caplog.text == ""


def test_settings_of_pydicom_are_not_changed() -> None:
    before = vars(config.settings).copy()
    filters = warnings.filters[:]
    read_one(ct_file(ramp(), StudyInstanceUID="not a uid"))
    assert vars(config.settings) == before
    assert warnings.filters == filters
