"""Small CT files with any element changed, and what reading them gives."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydicom import uid
from pydicom.datadict import dictionary_VR, tag_for_keyword

from ichfast.dicom.slices import Slice, read_slices
from ichfast.errors import REJECT_CODES, RejectError

ROWS, COLUMNS = 7, 5

LONG_VRS = ("OB", "OW", "SQ", "UN")

ITEM, DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0\0\0\0\0"

UNDEFINED = b"\xff\xff\xff\xff"

EXPLICIT, IMPLICIT = uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian

Raw = npt.NDArray[np.integer[Any]]


def encode(elements: dict[int, tuple[str, bytes]], *, is_implicit: bool) -> bytes:
    """Write elements, little-endian, in the order of their tags."""
    encoded = bytearray()
    for tag, (vr, value) in sorted(elements.items()):
        length = len(value)
        if vr == "OB" and value.startswith(ITEM):
            length, value = 0xFFFFFFFF, value + DELIMITER
        encoded += struct.pack("<HH", tag >> 16, tag & 0xFFFF)
        if is_implicit:
            encoded += struct.pack("<I", length)
        elif vr in LONG_VRS:
            encoded += vr.encode() + struct.pack("<HI", 0, length)
        else:
            encoded += vr.encode() + struct.pack("<H", length)
        encoded += value
    return bytes(encoded)


def element(keyword: str, value: str | int | bytes) -> tuple[int, tuple[str, bytes]]:
    vr = dictionary_VR(keyword).split(" or ")[0]
    if isinstance(value, int):
        value = struct.pack("<H", value & 0xFFFF)
    elif isinstance(value, str):
        value = value.encode("latin-1")
        value += b" " * (len(value) % 2)
    return int(tag_for_keyword(keyword) or 0), (vr, value)


def ct_file(
    raw: Raw,
    *,
    syntax: str = EXPLICIT,
    pixels: bytes | None = None,
    without: tuple[str, ...] = (),
    **changed: str | int | bytes,
) -> bytes:
    """A small CT file with pixels `raw`; any element can be changed or left out."""
    values: dict[str, str | int | bytes] = {
        "SOPClassUID": uid.CTImageStorage,
        "SOPInstanceUID": "ID_0123",
        "Modality": "CT",
        "PatientID": "ID_patient",
        "StudyInstanceUID": "ID_study",
        "SeriesInstanceUID": "ID_series",
        "InstanceNumber": "12",
        "ImagePositionPatient": "-125\\-117.5\\86.25",
        "ImageOrientationPatient": "1\\0\\0\\0\\1\\0",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": raw.shape[-2],
        "Columns": raw.shape[-1],
        "PixelSpacing": "0.5\\0.25",
        "SliceThickness": "5",
        "BitsAllocated": raw.itemsize * 8,
        "BitsStored": raw.itemsize * 8,
        "HighBit": raw.itemsize * 8 - 1,
        "PixelRepresentation": int(raw.dtype.kind == "i"),
        "WindowCenter": "40",
        "WindowWidth": "80",
        "RescaleIntercept": "-1024",
        "RescaleSlope": "1",
        "PixelData": raw.tobytes() if pixels is None else pixels,
    }
    values |= changed
    kept = {k: v for k, v in values.items() if k not in without}
    dataset = encode(
        dict(element(k, v) for k, v in kept.items()), is_implicit=syntax == IMPLICIT
    )
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        packer = zlib.compressobj(wbits=-15)
        dataset = packer.compress(dataset) + packer.flush()
    meta = encode(dict([element("TransferSyntaxUID", syntax)]), is_implicit=False)
    return bytes(128) + b"DICM" + meta + dataset


def big_endian_file(raw: Raw) -> bytes:
    """`ct_file` in big-endian order."""
    content = ct_file(raw, syntax=uid.ExplicitVRBigEndian)
    at = content.index(b"\x08\x00\x16\x00")
    swapped = content[:at]
    while at < len(content):
        group, number, vr, length = struct.unpack_from("<HH2sH", content, at)
        swapped += struct.pack(">HH2s", group, number, vr)
        at += 8
        if vr == b"OB":
            (length,) = struct.unpack_from("<I", content, at)
            swapped += struct.pack(">HI", 0, length)
            at += 4
        else:
            swapped += struct.pack(">H", length)
        value = content[at : at + length]
        if vr in (b"US", b"OB"):
            value = np.frombuffer(value, "<u2").astype(">u2").tobytes()
        swapped += value
        at += length
    return swapped


def sequence(*items: dict[str, Any]) -> bytes:
    """Encode items, whose values may be sequences in turn."""
    encoded = b""
    for item in items:
        body = encode(dict(element(k, v) for k, v in item.items()), is_implicit=False)
        encoded += ITEM + struct.pack("<I", len(body)) + body
    return encoded


def implicit(tag: int, value: bytes, *, measured: bool = True) -> bytes:
    """An element of implicit VR; if not `measured`, a sequence with a delimiter."""
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if measured:
        return head + struct.pack("<I", len(value)) + value
    return head + UNDEFINED + value + DELIMITER


def with_implicit(added: bytes) -> bytes:
    """A CT file of implicit VR with elements inserted before its pixels."""
    whole = ct_file(ramp(), syntax=IMPLICIT)
    at = whole.rindex(b"\xe0\x7f\x10\x00")
    return whole[:at] + added + whole[at:]


def ramp(dtype: str = "<i2", first: int = -3, step: int = 1) -> Raw:
    raw: Raw = (first + step * np.arange(ROWS * COLUMNS)).astype(dtype)
    return raw.reshape(ROWS, COLUMNS)


def read_one(content: bytes) -> Slice:
    [one] = read_slices(content)
    return one


def read_hu(content: bytes) -> npt.NDArray[np.int32]:
    return read_one(content).stored_HW.astype(np.int32) - 1024


def rejection(content: bytes) -> RejectError:
    with pytest.raises(RejectError) as caught:
        list(read_slices(content))
    assert caught.value.code in REJECT_CODES
    return caught.value


def attempt(content: bytes) -> RejectError | None:
    """The rejection of a file, or None if it is stored."""
    try:
        assert list(read_slices(content))
    except RejectError as error:
        return error
    return None
