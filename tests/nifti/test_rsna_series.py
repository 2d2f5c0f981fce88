"""Series of RSNA written as NIfTI give the slices of their DICOM files, bit for bit."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ichfast.dicom.slices import Slice, read_slices
from ichfast.nifti.volume import read_volume
from tests.dicom.real_files import DATA, needs_data

SimpleITK = pytest.importorskip("SimpleITK", reason="the test extra has it")

pytestmark = [needs_data, pytest.mark.slow]

SERIES = (
    *("ID_7e2939f5a2", "ID_7518324893", "ID_3d2ee1643b"),
    *("ID_84296c3845", "ID_5f8484c3e0", "ID_a52a0112d5"),
)


@pytest.fixture(scope="module", params=SERIES)
def series(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Slice], Any]:
    """The slices of a series from foot to head, and SimpleITK's image of the files."""
    folder = tmp_path_factory.mktemp(request.param)
    with tarfile.open(DATA / "rsna_series" / f"{request.param}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    slices = {}
    for file in folder.rglob("*.dcm"):
        [slices[file]] = read_slices(file.read_bytes())
    files = sorted(slices, key=lambda file: slices[file].position_mm)
    SimpleITK.ProcessObject.GlobalWarningDisplayOff()  # spacing is not even
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    return [slices[file] for file in files], reader.Execute()


VARIANTS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "int16": ("nii", lambda image: SimpleITK.Cast(image, SimpleITK.sitkInt16)),
    "float, packed": (
        "nii.gz",
        lambda image: SimpleITK.Cast(image, SimpleITK.sitkFloat32),
    ),
    "RAS": ("nii", lambda image: SimpleITK.DICOMOrient(image, "RAS")),
    "LPS, packed": ("nii.gz", lambda image: SimpleITK.DICOMOrient(image, "LPS")),
    "z reversed": ("nii", lambda image: image[:, :, ::-1]),
    "slices along the first axis": (
        "nii",
        lambda image: SimpleITK.DICOMOrient(image, "IRA"),
    ),
}


@pytest.mark.parametrize("shift", [0, 3])
def test_a_volume_has_the_slices_of_its_dicom_files(
    series: tuple[list[Slice], Any],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    shift: int,
) -> None:
    # Each series in two variants, each variant with two series.
    number = SERIES.index(request.node.callspec.params["series"])
    variant = list(VARIANTS)[(number + shift) % len(VARIANTS)]
    expected, image = series
    suffix, change = VARIANTS[variant]
    file = tmp_path / f"head.{suffix}"
    SimpleITK.WriteImage(change(image), str(file))
    found = list(read_volume(file.read_bytes(), file.name))
    found.sort(key=lambda each: each.position_mm)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.stored_HW, other.stored_HW)
    ours, theirs = found[0].series_header, expected[0].series_header
    np.testing.assert_allclose(ours.orientation, theirs.orientation, atol=1e-5)
    assert ours.row_spacing_mm == pytest.approx(theirs.row_spacing_mm, rel=1e-5)
    assert ours.column_spacing_mm == pytest.approx(theirs.column_spacing_mm, rel=1e-5)
    assert found[0].position_mm == pytest.approx(expected[0].position_mm, abs=1e-3)
