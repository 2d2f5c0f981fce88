"""Stored HU equal those that SimpleITK and GDCM read from the same files.

SimpleITK uses the reader of ITK. Each difference is listed in
`tests/dicom/decisions.py`, with the reason.

Shape letters: Z frames, H rows, W columns.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ichfast.dicom.slices import read_slices
from ichfast.errors import RejectError
from tests.dicom.decisions import DECISIONS, REFUSED
from tests.dicom.real_files import DATA, EDGE, needs_data, real_files

SimpleITK = pytest.importorskip("SimpleITK", reason="the test extra has it")
gdcm = pytest.importorskip("gdcm", reason="the test extra has it, as python-gdcm")

Hu = npt.NDArray[Any]
GDCM_TYPES = {"INT16": "i2", "UINT16": "u2", "INT32": "i4", "UINT32": "u4"}


def read_with_itk(path: Path) -> Hu:
    """HU, shape (Z, H, W) or (H, W)."""
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    hu: Hu = SimpleITK.GetArrayFromImage(reader.Execute())
    return hu


def read_with_gdcm(path: Path) -> Hu:
    """HU, shape (Z, H, W) or (H, W)."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    if not reader.Read():
        raise RuntimeError("GDCM cannot read the file")
    image = reader.GetImage()
    name = image.GetPixelFormat().GetScalarTypeAsString()
    # GDCM's binding gives bytes as text.
    text = image.GetBuffer()
    if text is None:
        raise RuntimeError("GDCM finds no pixels")
    content = text.encode("utf-8", "surrogateescape")
    shape = [image.GetDimension(k) for k in range(image.GetNumberOfDimensions())]
    raw = np.frombuffer(content, GDCM_TYPES[name]).reshape(shape[::-1])
    return raw * image.GetSlope() + image.GetIntercept()


REFEREES = {"SimpleITK": read_with_itk, "GDCM": read_with_gdcm}


@contextmanager
def silent_referees() -> Iterator[None]:
    """Silence the messages of the other readers about unusual files."""
    before = SimpleITK.ProcessObject.GetGlobalWarningDisplay()
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)  # noqa: FBT003  ITK has no names
    for name in ("Debug", "Warning", "Error"):
        getattr(gdcm.Trace, f"{name}Off")()
    yield
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(before)


def can_read(referee: str, path: Path) -> bool:
    try:
        REFEREES[referee](path)
    except RuntimeError:
        return False
    return True


def difference(referee: str, path: Path, stored_ZHW: npt.NDArray[np.int64]) -> Any:
    """Pixels that differ and the largest difference; (0, 0) if unreadable."""
    try:
        hu = REFEREES[referee](path)
    except RuntimeError:
        return 0, 0
    expected = np.clip(np.rint(hu) + 1024, 0, 32767).reshape(stored_ZHW.shape)
    distance = np.abs(expected - stored_ZHW)
    return (np.count_nonzero(distance), int(distance.max())) if distance.any() else None


@needs_data
@pytest.mark.slow
def test_every_real_slice_equals_that_of_two_other_readers(tmp_path: Path) -> None:
    path = tmp_path / "one.dcm"
    found: dict[str, dict[str, tuple[int, int]]] = {}
    num_slices = 0
    refused = set()
    with silent_referees():
        for row, content in real_files():
            path.write_bytes(content)
            try:
                slices = list(read_slices(content))
            except RejectError:
                if row["modality"] == "CT" and any(can_read(r, path) for r in REFEREES):
                    refused.add(row["file"])
                continue
            num_slices += len(slices)
            stored_ZHW = np.stack([one.stored_HW for one in slices]).astype(np.int64)
            for referee in REFEREES:
                differs = difference(referee, path, stored_ZHW)
                if differs:
                    found.setdefault(row["file"], {})[referee] = differs
    decided = {
        name: dict.fromkeys(d.referees, (d.num_pixels, d.largest_hu))
        for name, d in DECISIONS.items()
    }
    assert found == decided
    assert refused == set(REFUSED)
    assert num_slices == 322


@needs_data
def test_every_decision_is_about_a_file_of_the_manifest() -> None:
    with (DATA / "MANIFEST.csv").open(newline="") as stream:
        files = {row["file"] for row in csv.DictReader(stream)}
    assert {*DECISIONS, *REFUSED} <= files


@needs_data
def test_a_wrong_intercept_is_detected(tmp_path: Path) -> None:
    content = (DATA / EDGE / "duplicate_sop_a_64.dcm").read_bytes()
    path = tmp_path / "one.dcm"
    path.write_bytes(content)
    [one] = read_slices(content)
    stored_ZHW = one.stored_HW[None].astype(np.int64)
    for referee in REFEREES:
        assert difference(referee, path, stored_ZHW) is None
        assert difference(referee, path, stored_ZHW + 1) == (64 * 64, 1)
