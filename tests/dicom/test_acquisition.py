"""How a slice was acquired: only checked values, never a text of the header."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedCTImageStorage, ImplicitVRLittleEndian

from ichfast.dicom.acquisition import (
    Acquisition,
    kernel_class,
    read_acquisition,
    read_age_decade,
    read_exposure,
    read_model,
    read_vendor,
)
from ichfast.dicom.header import TAGS, Header
from ichfast.dicom.slices import Slice, read_slices
from ichfast.store.tables import ACQUISITION_COLUMNS
from tests.conftest import write_dicom
from tests.dicom.real_files import DATA, needs_data

KNOWN: dict[str, Any] = {
    "Manufacturer": "SIEMENS Healthineers",
    "ManufacturerModelName": "SOMATOM Definition AS+",
    "ConvolutionKernel": ["Hr40f", "3"],
    "KVP": "120",
    "Exposure": "285",
    "SpacingBetweenSlices": "-4.8",
    "PatientSex": "F",
    "PatientAge": "042Y",
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    "SeriesNumber": "501",
}


def read(path: Path, **tags: Any) -> Slice:
    write_dicom(path / "slice.dcm", "ID_1", **tags)
    return next(read_slices((path / "slice.dcm").read_bytes()))


def acquired(path: Path, **tags: Any) -> Acquisition:
    return read(path, **tags).series_header.acquisition


def test_a_full_header_gives_every_field(tmp_path: Path) -> None:
    slice_ = read(tmp_path, **KNOWN)
    assert asdict(slice_.series_header.acquisition) == {
        "manufacturer": "Siemens",
        "model": "SOMATOM Definition AS+",
        "kernel": "soft",
        "kernel_name": "Hr40f",
        "kvp": 120.0,
        "contrast": "no",
        "slice_spacing_mm": 4.8,
        "sex": "F",
        "age_decade": 40,
        "image_type": "original",
        "series_number": 501,
    }
    assert slice_.exposure_mas == 285


def test_a_header_that_tells_nothing_gives_nothing(tmp_path: Path) -> None:
    slice_ = read(tmp_path)
    assert slice_.series_header.acquisition == Acquisition()
    assert slice_.exposure_mas is None


def test_each_field_has_a_column_and_exposure_too() -> None:
    names = {field.name for field in fields(Acquisition)}
    assert names | {"exposure_mas"} == set(ACQUISITION_COLUMNS)


def test_tags_are_those_of_the_standard() -> None:
    assert {keyword: tag_for_keyword(keyword) for keyword in TAGS} == TAGS
    assert dictionary_VR("ExposureInmAs") == "FD"


HOSTILE = (
    *("DOE^JANE", "JANE DOE", "Jane", "DOE", "19500704", "1950-07-04", "MRN-8817263"),
    *("8817263", "7 Gargoyle Lane", "CT 8817263", "DOE CT", "Br DOE", "\x00", "\\"),
    *("CT 19 50 07", "ä" * 20, "A" * 200, "F\nDOE"),
)


PLACE = ("ImagePositionPatient", "ImageOrientationPatient")


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_header_is_kept_in_any_field(text: str) -> None:
    tags = [tag for keyword, tag in TAGS.items() if keyword not in PLACE]
    header = Header({tag: (text.encode(), True) for tag in tags})
    found = asdict(read_acquisition(header))
    assert found.pop("manufacturer") in ("other", None)
    assert found.pop("contrast") in ("yes", None)
    assert set(found.values()) == {None}
    assert read_exposure(header) is None
    assert header.quirks == set()


@pytest.mark.parametrize("keyword", ["KVP", "Exposure", "SeriesNumber"])
def test_a_number_outside_its_range_is_unknown(keyword: str, tmp_path: Path) -> None:
    for number in ("8817263", "-1"):
        slice_ = read(tmp_path, **{keyword: number})
        assert slice_.series_header.acquisition == Acquisition()
        assert slice_.exposure_mas is None


@pytest.mark.parametrize(
    ("text", "vendor"),
    [
        ("GE MEDICAL SYSTEMS", "GE"),
        ("GE Healthcare", "GE"),
        ("GENERAL ELECTRIC CO.", "GE"),
        ("Siemens Healthineers", "Siemens"),
        ("Philips Medical Systems", "Philips"),
        ("TOSHIBA_MEC", "Canon"),
        ("CANON_MEC", "Canon"),
        ("Hitachi Medical Corporation", "Fujifilm"),
        ("NeuroLogica", "Samsung"),
        ("UIH", "United Imaging"),
        ("Neusoft Medical Systems", "Neusoft"),
        ("Georg Doe", "other"),
        ("", None),
        ("123", None),
    ],
)
def test_vendors_are_a_closed_list(text: str, vendor: str | None) -> None:
    assert read_vendor(text) == vendor


@pytest.mark.parametrize(
    "name",
    [
        *("LightSpeed VCT", "HiSpeed CT/i", "Revolution EVO", "Optima CT660"),
        *("SOMATOM go.Top", "Sensation 64", "Brilliance 64", "Ingenuity CT", "iCT 256"),
        *("Aquilion ONE", "TSX-101A", "SCENARIA", "CereTom", "NL4000", "uCT 760"),
        *("NeuViz 128", "Mx8000 IDT 16", "NAEOTOM Alpha"),
    ],
)
def test_names_of_scanners_are_kept(name: str) -> None:
    assert read_model(name) == name


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        *(("STANDARD", "soft"), ("STD+", "soft"), ("HD STND", "soft")),
        *(("BONEPLUS", "bone"), ("BONE PLUS", "bone"), ("EDGE", "bone")),
        *(("H31s", "soft"), ("J40s", "soft"), ("B70f", "bone"), ("Hr59", "bone")),
        *(("FC21", "soft"), ("FC30", "bone"), ("FC81", "bone"), ("FC64", "soft")),
        *(("UB", "soft"), ("YD", "bone"), ("UC", None), ("DETAIL", None)),
        *(("HEAD_VSHARP_B", "bone"), ("DOE", None), ("11", None), ("", None)),
    ],
)
def test_kernels_are_classified_by_name(kernel: str, expected: str | None) -> None:
    assert kernel_class(kernel) == expected


def test_the_group_of_a_kernel_goes_before_its_name() -> None:
    assert kernel_class("STANDARD", "BONE") == "bone"
    assert kernel_class("STANDARD", "CONSTANT_ANGLE") == "soft"
    assert kernel_class("unheard-of", "BRAIN") == "soft"


@pytest.mark.parametrize(
    ("text", "decade"),
    [
        *(("042Y", 40), ("009Y", 0), ("089Y", 80), ("090Y", 90), ("104Y", 90)),
        *(("018M", 0), ("130M", 10), ("003W", 0), ("005D", 0)),
        *(("", None), ("42", None), ("1950", None), ("19500704", None), ("Y", None)),
    ],
)
def test_ages_become_decades(text: str, decade: int | None) -> None:
    assert read_age_decade(text) == decade


@pytest.mark.parametrize(
    ("tags", "contrast"),
    [
        ({"KVP": "120"}, "no"),
        ({}, None),
        ({"KVP": "120", "ContrastBolusAgent": ""}, None),
        ({"KVP": "120", "ContrastBolusAgent": "OMNIPAQUE 350"}, "yes"),
        ({"ContrastBolusAgent": "None"}, "no"),
        ({"KVP": "120", "ContrastBolusAgent": "--"}, None),
        ({"ContrastBolusAgent": "\u00e4"}, "yes"),
        ({"ContrastBolusAgent": "W/O"}, "no"),
        ({"ContrastBolusAgent": "", "ContrastBolusVolume": "80"}, "yes"),
    ],
)
def test_contrast_is_known_from_the_agent(
    tags: dict[str, str], contrast: str | None, tmp_path: Path
) -> None:
    assert acquired(tmp_path, **tags).contrast == contrast


def test_an_empty_agent_is_the_same_to_pydicom_as_to_the_walker(tmp_path: Path) -> None:
    """A sequence of undefined length without VR makes pydicom read the file."""
    path = tmp_path / "slice.dcm"
    write_dicom(path, "1.2.3", KVP="120", ContrastBolusAgent="")
    dicom = dcmread(path)
    dicom.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dicom.ReferencedImageSequence = Sequence([Dataset()])
    dicom["ReferencedImageSequence"].is_undefined_length = True
    dicom.save_as(path)
    slice_ = next(read_slices(path.read_bytes()))
    assert slice_.series_header.acquisition.kvp == 120
    assert slice_.series_header.acquisition.contrast is None


def test_exposure_is_that_of_the_slice(tmp_path: Path) -> None:
    assert read(tmp_path, Exposure="120").exposure_mas == 120
    assert read(tmp_path, ExposureInuAs="85000").exposure_mas == 85
    assert read(tmp_path, ExposureInmAs=99.5).exposure_mas == 99.5
    assert read(tmp_path, ExposureInmAs=math.nan).exposure_mas is None


def test_slices_with_other_exposure_share_their_series_header(tmp_path: Path) -> None:
    one, other = (read(tmp_path, Exposure=mas) for mas in ("120", "130"))
    assert one.series_header is other.series_header


def test_enhanced_files_state_it_in_their_functional_groups(tmp_path: Path) -> None:
    path = tmp_path / "slice.dcm"
    write_dicom(path, "1.2.3", NumberOfFrames=1)
    dicom = dcmread(path)
    dicom.SOPClassUID = EnhancedCTImageStorage
    group = Dataset()
    for macro, keyword, value in (
        ("CTXRayDetailsSequence", "KVP", "140"),
        ("CTExposureSequence", "ExposureInmAs", 250.5),
        ("CTReconstructionSequence", "ConvolutionKernelGroup", "BONE"),
        ("ContrastBolusUsageSequence", "ContrastBolusAgentAdministered", "YES"),
        ("PixelMeasuresSequence", "SpacingBetweenSlices", "1.25"),
    ):
        item = Dataset()
        setattr(item, keyword, value)
        setattr(group, macro, [item])
    dicom.SharedFunctionalGroupsSequence = [group]
    dicom.PerFrameFunctionalGroupsSequence = [Dataset()]
    dicom.save_as(path)
    slice_ = next(read_slices(path.read_bytes()))
    acquisition = slice_.series_header.acquisition
    assert (acquisition.kvp, acquisition.kernel) == (140, "bone")
    assert (acquisition.contrast, acquisition.slice_spacing_mm) == ("yes", 1.25)
    assert slice_.exposure_mas == 250.5


@needs_data
def test_real_scanners_are_known() -> None:
    found = {
        name: next(read_slices((DATA / name).read_bytes())).series_header.acquisition
        for name in (
            "zoo/wg04_CT2_toshiba_head/CT2_UNC.dcm",
            "zoo/pydicom/CT_small.dcm",
            "rsna_slices/ID_000a70199.dcm",
        )
    }
    toshiba, ge, rsna = found.values()
    assert (toshiba.manufacturer, toshiba.kernel_name) == ("Canon", "FC21")
    assert (toshiba.contrast, toshiba.image_type) == (None, "original")
    assert (ge.manufacturer, ge.kernel, ge.contrast) == ("GE", "soft", "yes")
    assert rsna == Acquisition()
