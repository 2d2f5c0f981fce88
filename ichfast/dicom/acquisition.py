"""How a slice was acquired: scanner, kernel, dose, contrast, sex and age.

No text of a header is stored as it is, because any element can hold a name. A value is
a number in its range, a word of a closed list, or a code whose every part is known to
be part of such codes. Anything else is None, which means unknown.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ichfast.dicom.header import Header
from ichfast.dicom.kind import why_derived, why_localizer, why_not_axial

VENDORS = (
    *("GE", "Siemens", "Philips", "Canon", "Fujifilm", "Samsung"),
    *("United Imaging", "Neusoft", "other"),
)
KERNELS = ("soft", "bone")
CONTRASTS = ("yes", "no")
SEXES = ("M", "F", "O")
IMAGE_TYPES = ("original", "derived", "processed", "localizer")

CLOSED_LISTS = {
    "manufacturer": VENDORS,
    "kernel": KERNELS,
    "contrast": CONTRASTS,
    "sex": SEXES,
    "image_type": IMAGE_TYPES,
}
"""All values of a field of `Acquisition`, for the fields that have a closed list."""

MAX_AGE_DECADE = 90
"""Ages from here on are one group, for the very old are few.

Source:
    HIPAA, 45 CFR 164.514(b)(2)(i)(C).
"""

MAX_SERIES_NUMBER = 99_999
"""Upper limit of a series number. A longer one may be a date or the number of a
patient."""

MAX_KVP = 200.0
MAX_EXPOSURE_MAS = 2_000.0
MAX_SLICE_SPACING_MM = 100.0
"""Upper limits of what a scanner of heads can write."""

EXPOSURE_DECIMALS = 1
"""Decimals of an exposure, so that the eight bytes of a name that is read as a number
do not survive."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Acquisition:
    """How the slices of a series were acquired. None is unknown."""

    manufacturer: str | None = None
    """(0008,0070), one of `VENDORS`. Canon was Toshiba, Fujifilm was Hitachi, and
    Samsung was NeuroLogica."""

    model: str | None = None
    """(0008,1090), if all its words are known to be words of CT scanners' names."""

    kernel: str | None = None
    """Class of the reconstruction kernel, one of `KERNELS`. Bone stands for all sharp
    kernels. By (0018,9316), or else by the kernel's name."""

    kernel_name: str | None = None
    """(0018,1210), the first value, if it has the form of a vendor's code."""

    kvp: float | None = None
    """(0018,0060), peak kilovoltage of the tube."""

    contrast: str | None = None
    """Whether a contrast agent was given, one of `CONTRASTS`; see `read_contrast`."""

    slice_spacing_mm: float | None = None
    """(0018,0088), distance between the centers of neighbours, as the header has it."""

    sex: str | None = None
    """(0010,0040), one of `SEXES`."""

    age_decade: int | None = None
    """(0010,1010) in whole decades: 40 for 42 years, at most `MAX_AGE_DECADE`."""

    image_type: str | None = None
    """One of `IMAGE_TYPES`; see `read_image_type`."""

    series_number: int | None = None
    """(0020,0011), at most `MAX_SERIES_NUMBER`."""


def read_acquisition(header: Header) -> Acquisition:
    """Read how the slices of a series were acquired.

    Source:
        DICOM PS3.6, registry of data elements; PS3.3 C.7.5.1 (manufacturer, model),
        C.8.2.1 (kVp, kernel), C.7.1.1 and C.7.2.2 (sex, age), C.7.3.1 (series number).
    """
    kernel_name = header.text("ConvolutionKernel").split("\\")[0].strip()
    return Acquisition(
        manufacturer=read_vendor(header.text("Manufacturer")),
        model=read_model(header.text("ManufacturerModelName")),
        kernel=kernel_class(kernel_name, header.text("ConvolutionKernelGroup")),
        kernel_name=kernel_name if _is_kernel_code(kernel_name) else None,
        kvp=_kvp(header),
        contrast=read_contrast(header),
        slice_spacing_mm=_within(
            abs(header.optional_number("SpacingBetweenSlices")), MAX_SLICE_SPACING_MM
        ),
        sex=_one_of(header.text("PatientSex").upper(), SEXES),
        age_decade=read_age_decade(header.text("PatientAge")),
        image_type=read_image_type(header),
        series_number=_series_number(header),
    )


def read_exposure(header: Header) -> float | None:
    """Read the exposure, mAs. It differs between slices, for tubes follow the body.

    Source:
        DICOM PS3.3 C.8.2.1 (Exposure, ExposureInuAs) and C.8.15.3.8 (ExposureInmAs).
    """
    mas = header.optional_number("Exposure")
    if math.isnan(mas):
        mas = header.double("ExposureInmAs")
    if math.isnan(mas):
        mas = header.optional_number("ExposureInuAs") / 1000
    is_exposure = 10**-EXPOSURE_DECIMALS <= mas <= MAX_EXPOSURE_MAS
    return round(mas, EXPOSURE_DECIMALS) if is_exposure else None


def read_vendor(text: str) -> str | None:
    """Find the vendor that a text names; ``other`` if it names none of `VENDORS`."""
    words = re.sub("[^A-Z]+", " ", text.upper()).strip()
    if not words:
        return None
    found = (v for v, name in _VENDOR_NAMES if f" {name}" in f" {words} ")
    return next(found, "other")


_VENDOR_NAMES = (
    *(("GE", "GE "), ("GE", "GENERAL ELECTRIC"), ("Siemens", "SIEMENS")),
    *(("Philips", "PHILIPS"), ("Canon", "CANON"), ("Canon", "TOSHIBA")),
    *(("Fujifilm", "FUJIFILM"), ("Fujifilm", "HITACHI"), ("Samsung", "SAMSUNG")),
    *(("Samsung", "NEUROLOGICA"), ("United Imaging", "UIH ")),
    *(("United Imaging", "UNITED IMAGING"), ("Neusoft", "NEUSOFT")),
)
"""Vendors, each with the beginning of a word that names it."""


def read_model(text: str) -> str | None:
    """Give the name of a model if no part of it can be anything else."""
    if not re.fullmatch(r"[A-Za-z0-9 .+/_-]{2,32}", text):
        return None
    words = [word for word in re.findall("[A-Z]+", text.upper()) if len(word) > 1]
    numbers = re.findall("[0-9]+", text)
    is_name = bool(words) and _MODEL_WORDS.issuperset(words)
    return text if is_name and len(numbers) <= 2 and _are_short(numbers) else None


def _are_short(numbers: list[str]) -> bool:
    """Whether no number is as long as a date or the number of a patient."""
    return all(len(number) <= 4 for number in numbers)


_MODEL_WORDS = frozenset(
    (
        *("CT", "PET", "SPECT", "SLICE", "SLICES", "SYSTEM", "PLUS", "PRO", "ULTRA"),
        *("DUAL", "HD", "RT", "AS", "DS", "LE", "LS", "SE", "SX", "NX", "QX"),
        *("BRIGHTSPEED", "CARDIAC", "DISCOVERY", "EDGE", "EVO", "FRONTIER", "GSI"),
        *("HISPEED", "LIGHTSPEED", "MAXIMA", "OPTIMA", "APEX", "ASCEND", "EXPERT"),
        *("PERFORMA", "POWER", "PROSPEED", "REVOLUTION", "SELECT", "SYTEC", "VCT"),
        *("XT", "XTE", "XTRA", "ACCESS", "ALL", "ALPHA", "BALANCE", "BIOGRAPH", "CITE"),
        *("CEED", "CONFIDENCE", "DEFINITION", "DRIVE", "EMOTION", "ESPRIT", "FLASH"),
        *("FORCE", "GO", "HORIZON", "MCT", "NAEOTOM", "NOW", "OPEN", "PEAK"),
        *("PERSPECTIVE", "SCOPE", "SENSATION", "SIM", "SLIDING", "SOMATOM", "SPIRIT"),
        *("TOP", "UP", "VISION", "VOLUME", "ZOOM", "ACQSIM", "AIR", "BIG", "BORE"),
        *("BRILLIANCE", "CORE", "ELITE", "FLEX", "GEMINI", "ICT", "IDT", "INCISIVE"),
        *("INGENUITY", "IQON", "IX", "MX", "PRECEDENCE", "SPECTRAL", "TF", "TOMOSCAN"),
        *("VEREOS", "ACTIVION", "ALEXION", "AQUILION", "ASTEION", "ASTELION", "AUKLET"),
        *("CX", "CXL", "EDITION", "EXCEED", "GENESIS", "GX", "LB", "LIGHTNING", "ONE"),
        *("PRECISION", "PRIME", "RXL", "SERVE", "SP", "START", "TSX", "VI", "XPRESS"),
        *("XVISION", "ECLOS", "GRANDE", "PRESTO", "PRONTO", "RADIX", "ROBUSTO"),
        *("SCENARIA", "SUPRIA", "TRUE", "VIEW", "BODYTOM", "CERETOM", "NL", "OMNITOM"),
        *("UCT", "ATLAS", "ACE", "EPOCH", "ESSENCE", "GLORY", "NEUVIZ"),
    )
)
"""Words of the names of CT scanners, in the order of `VENDORS`."""


def kernel_class(name: str, group: str = "") -> str | None:
    """Classify a reconstruction kernel as soft or bone.

    Args:
        name: of the kernel, a vendor's code.
        group: ConvolutionKernelGroup; empty where absent.

    Source:
        DICOM PS3.3 C.8.15.3.7, ConvolutionKernelGroup. Siemens: operating instructions
        of SOMATOM Sensation Cardiac, in which kernels from 50 on are the sharper ones.
        The groups of Canon's numbers (FC3x and FC8x bone, FC5x lung) and of Philips'
        letters are common knowledge of users, without a public document.
    """
    if group.upper() in _GROUPS:
        return _GROUPS[group.upper()]
    if not _is_kernel_code(name):
        return None
    words = _words(name)
    if not words.isdisjoint(_SHARP_WORDS):
        return "bone"
    if not words.isdisjoint(_SOFT_WORDS):
        return "soft"
    if siemens := _SIEMENS.fullmatch(name):
        return "bone" if int(siemens[1]) >= 50 else "soft"
    if canon := _CANON.fullmatch(name):
        return {"3": "bone", "5": "bone", "8": "bone", "7": None, "9": None}.get(
            canon[1], "soft"
        )
    return _PHILIPS.get(name.upper())


def _is_kernel_code(name: str) -> bool:
    """Whether no part of a text can be anything but a part of a kernel's name."""
    if _SIEMENS.fullmatch(name) or _CANON.fullmatch(name) or name.upper() in _PHILIPS:
        return True
    has_form = bool(re.fullmatch(r"[A-Za-z0-9 +_-]{1,16}", name))
    words = {word for word in _words(name) if len(word) > 1}
    is_known = (_SOFT_WORDS | _SHARP_WORDS | _OTHER_WORDS).issuperset(words)
    return has_form and bool(words) and is_known and not re.search("[0-9]{2}", name)


def _words(name: str) -> set[str]:
    return set(re.findall("[A-Z]+", name.upper()))


_GROUPS = {"BRAIN": "soft", "SOFT_TISSUE": "soft", "BONE": "bone", "LUNG": "bone"}
_SIEMENS = re.compile("[BCDHIJQSTUV][a-z]?([0-9]{2})[a-z]?")
_CANON = re.compile("FC([0-9])[0-9]")
_PHILIPS: dict[str, str | None] = {
    **dict.fromkeys(("A", "B", "UA", "UB"), "soft"),
    **dict.fromkeys(("D", "E", "L", "YC", "YD"), "bone"),
    **dict.fromkeys(("C", "F", "EB", "EC", "UC", "YA", "YB")),
}
_SOFT_WORDS = frozenset(
    (
        *("BRAIN", "SMOOTH", "SOFT", "SOFTTISSUE", "STANDARD", "STD", "STND", "TISSUE"),
        *("VSOFT",),
    )
)
_SHARP_WORDS = frozenset(
    (
        *("BONE", "BONEPLUS", "EAR", "EDGE", "INNEREAR", "LUNG", "SHARP", "ULTRA"),
        *("VSHARP",),
    )
)
_OTHER_WORDS = frozenset(
    (
        *("BODY", "CHEST", "CHST", "DETAIL", "HD", "HEAD", "INNER", "MEDIUM", "PLUS"),
        *("ROUTINE", "VERY"),
    )
)


def read_contrast(header: Header) -> str | None:
    """Read whether a contrast agent was given; its name stays in the file.

    yes
        the header names an agent, states its volume, or says that it was given;
    no
        it says that none was given, or it states the tube's voltage, as a full header
        does, and has no ContrastBolusAgent, which contrast images must have;
    None
        ContrastBolusAgent has no letter, because some scanners write an empty one and
        de-identification empties it, or the header is not a full one.

    Source:
        DICOM PS3.3 A.3.3 and C.7.6.4 (the module is required if contrast was used, the
        agent can be empty), C.7.6.4b and C.7.6.16.2.12 (enhanced images); PS3.15 E.1
        (de-identification empties the agent).
    """
    administered = header.text("ContrastBolusAgentAdministered").upper()
    if administered in ("YES", "NO"):
        return administered.lower()
    agent = "".join(filter(str.isalpha, header.text("ContrastBolusAgent").upper()))
    if agent in _NO_AGENT:
        return "no"
    if agent or header.optional_number("ContrastBolusVolume") > 0:
        return "yes"
    is_absent = not header.has("ContrastBolusAgent")
    return "no" if is_absent and _kvp(header) else None


_NO_AGENT = frozenset(
    (
        *("N", "NIL", "NO", "NOCONTRAST", "NONCONTRAST", "NONE", "NONENHANCED"),
        *("UNENHANCED", "WITHOUT", "WO"),
    )
)
"""What is written for no agent, letters only."""


def read_age_decade(text: str) -> int | None:
    """Read an age such as 042Y, 003M, 002W or 005D in whole decades.

    Source:
        DICOM PS3.5 6.2, value representation AS.
    """
    if not re.fullmatch("[0-9]{1,3}[DWMY]", text):
        return None
    in_year = {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}[text[-1]]
    return min(MAX_AGE_DECADE, int(int(text[:-1]) / in_year) // 10 * 10)


def read_image_type(header: Header) -> str | None:
    """Classify an image by its ImageType, or FrameType.

    original, derived
        value 1 of an axial slice; a slice that is the mean of thinner ones is derived;
    processed
        a reformat, projection, map or page, or an image that is not axial;
    localizer
        a localizer. A store has the last two with ``--accept``.

    Source:
        DICOM PS3.3 C.7.6.1.1.2, C.8.2.1.1.1 and C.8.16.1.
    """
    if why_localizer(header):
        return "localizer"
    if why_derived(header) or why_not_axial(header):
        return "processed"
    text = header.text("FrameType") or header.text("ImageType")
    return _one_of(text.split("\\")[0].strip().lower(), IMAGE_TYPES[:2])


def _one_of(text: str, known: tuple[str, ...]) -> str | None:
    return text if text in known else None


def _within(number: float, limit: float) -> float | None:
    return number if 0 < number <= limit else None


def _kvp(header: Header) -> float | None:
    return _within(header.optional_number("KVP"), MAX_KVP)


def _series_number(header: Header) -> int | None:
    number = header.optional_number("SeriesNumber")
    if math.isnan(number) or not 0 <= number <= MAX_SERIES_NUMBER:
        return None
    return int(number)
