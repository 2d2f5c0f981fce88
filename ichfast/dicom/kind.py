"""Which images are axial CT slices in HU, decided by the header.

A study holds more than slices: localizers, reformats, projections, maps, pages of dose.
Each rule is a function that returns why an image breaks it, or an empty string. Only
defined terms are quoted, because any element can hold a name. An absent element breaks
no rule: de-identified files, such as those of RSNA, have few.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from ichfast.dicom.header import Header, quoted
from ichfast.errors import RejectError

CT_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.2",  # CT Image Storage
    "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT Image Storage
    "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT Image Storage
)

MAX_TILT_DEG = 45.0
"""Upper limit of the angle between a slice and the axial plane, degrees. Gantries tilt
by up to 30 degrees."""

_MODALITIES = frozenset(
    (
        *("AR", "ASMT", "AU", "BI", "BMD", "CFM", "CR", "CTPROTOCOL", "DG", "DMS"),
        *("DOC", "DX", "ECG", "EEG", "EMG", "EOG", "EPS", "ES", "FID", "GM", "HC"),
        *("HD", "IO", "IOL", "IVOCT", "IVUS", "KER", "KO", "LEN", "LS", "MG", "MR"),
        *("NM", "OAM", "OCT", "OP", "OPM", "OPT", "OPTBSV", "OPTENF", "OPV", "OSS"),
        *("OT", "PA", "PLAN", "POS", "PR", "PT", "PX", "REG", "RESP", "RF", "RG"),
        *("RTDOSE", "RTIMAGE", "RTINTENT", "RTPLAN", "RTRAD", "RTRECORD", "RTSEGANN"),
        *("RTSTRUCT", "RWV", "SC", "SEG", "SM", "SMR", "SR", "SRF", "STAIN", "TG"),
        *("TEXTUREMAP", "US", "VA", "XA", "XAPROTOCOL", "XC"),
    )
)
"""Defined terms of Modality, which a rejection may quote.

Source:
    DICOM PS3.3 C.7.3.1.1.1.
"""

_STANDARD_ROOT = "1.2.840.10008."
"""Root of the UIDs of the standard, which a rejection may quote.

Source:
    DICOM PS3.5 9.
"""

_LOCALIZER_TERMS = ("LOCALIZER", "SCANOGRAM", "SCOUT", "SURVIEW", "TOPOGRAM")

_DERIVED_TERMS = (
    # Derived pixel contrast: C.8.16.1.4. ADDITION and MEAN make thick slices.
    *("DIVISION", "MASKED", "MAXIMUM", "MINIMUM", "MULTIPLICATION", "QUANTITY"),
    *("RESAMPLED", "STD_DEVIATION", "SUBTRACTION", "T_TEST", "Z_SCORE"),
    # Multi-energy images: C.8.15.2.1.1.5. VMI, a virtual energy, is in HU.
    *("EFF_ATOMIC_NUM", "ELECTRON_DENSITY", "MAT_FRACTIONAL", "MAT_MODIFIED"),
    *("MAT_REMOVED", "MAT_SPECIFIC", "MAT_VALUE_BASED"),
    # Maps of perfusion, which the standard leaves to the vendor.
    *("CBF", "CBV", "MTT", "PERMEABILITY", "RCBF", "RCBV", "TMAX", "TTD", "TTP"),
    # Reformats and projections: C.8.16.1.3, C.8.16.2.1.3 and vendors.
    *("CPR", "CURVED", "MAX_IP", "MIN_IP", "MINIP", "MIP", "MPR", "REFORMATTED"),
    *("SSD", "SURFACE_RENDER", "VOLUME_RENDER", "VRT"),
    # Pages of text: GE, Philips and Siemens.
    *("DOSE", "PROT", "PROTOCOL", "SCREEN_SAVE", "SCREENSHOT"),
)
"""Terms of images that are computed from slices, or that show no slice."""

_UNITS = frozenset(
    ("ED", "EDW", "HU", "HU_MOD", "MGML", "OD", "PCT", "US", "Z_EFF"),
)
"""Defined terms of RescaleType and ModalityLUTType, which a rejection may quote.

Source:
    DICOM PS3.3 C.11.1.1.2.
"""


def check_kind(header: Header, accept: frozenset[str] = frozenset()) -> None:
    """Check that a header belongs to an axial CT slice in HU.

    Args:
        header: header of a file, or of a frame. It gets the accepted codes as quirks.
        accept: reject codes of images that are let through.

    Raises:
        RejectError: ``not-ct``, ``localizer``, ``derived``, ``not-hu`` or
            ``not-axial``, the header breaks that rule.
    """
    for code, find_reason in _RULES.items():
        reason = find_reason(header)
        if reason and code not in accept:
            raise RejectError(code, reason)
        if reason:
            header.quirks.add(code)


def why_not_ct(header: Header) -> str:
    """Why an image is of another modality or SOP Class; empty if it is not.

    Source:
        DICOM PS3.3 C.7.3.1.1.1 (Modality), PS3.4 B.5 (SOP Classes).
    """
    modality, sop_class = header.text("Modality"), header.text("SOPClassUID")
    if modality != "CT" and (modality or sop_class not in CT_CLASSES):
        return f"Modality (0008,0060) is {quoted(modality, _MODALITIES)}, expected 'CT'"
    if sop_class and sop_class not in CT_CLASSES:
        is_standard = sop_class.startswith(_STANDARD_ROOT) and len(sop_class) <= 64
        found = sop_class if is_standard else "none of the standard"
        return f"SOPClassUID (0008,0016) is {found}, expected that of CT images"
    return ""


def why_localizer(header: Header) -> str:
    """Why an image is a localizer; empty if it is not.

    Source:
        DICOM PS3.3 C.8.2.1.1.1 (ImageType) and C.8.16.1.3 (FrameType), value 3;
        vendors name it in value 4 too.
    """
    element, values = _image_type(header)
    term = _find_term(values[2:], _LOCALIZER_TERMS)
    return f"{element} has {term}" if term else ""


def why_derived(header: Header) -> str:
    """Why an image is no reconstruction of a slice; empty if it is one.

    An archive that compresses an axial slice may write SECONDARY into its ImageType.
    Such a slice still has AXIAL, without a term that says how it was made of others.

    Source:
        DICOM PS3.3 C.8.2.1.1.1, C.7.6.1.1.2 (values 1 and 2) and C.8.16.1 (values 3 and
        4 of a frame). `_DERIVED_TERMS` has those of values 3 and 4.
    """
    element, values = _image_type(header)
    term = _find_term(values[2:], _DERIVED_TERMS)
    if term:
        return f"{element} has {term}"
    if "SECONDARY" in values[:2] and values[2:3] != ["AXIAL"]:
        return f"{element} has SECONDARY, but not AXIAL"
    return ""


def why_not_hu(header: Header) -> str:
    """Why the values of an image are not HU; empty if they can be.

    US, "unspecified", is what some scanners and converters write for HU. The maps that
    have it are derived.

    Source:
        DICOM PS3.3 C.11.1.1.2, RescaleType and ModalityLUTType.
    """
    _, values = _image_type(header)
    known = ("", "HU") if "DERIVED" in values[:1] else ("", "HU", "US")
    for keyword, tag in (
        ("RescaleType", "(0028,1054)"),
        ("ModalityLUTType", "(0028,3004)"),
    ):
        unit = header.text(keyword).upper()
        if unit not in known:
            return f"{keyword} {tag} is {quoted(unit, _UNITS)}, expected 'HU'"
    return ""


def why_not_axial(header: Header) -> str:
    """Why an image does not lie across the body; empty if it does, or if unknown.

    Source:
        DICOM PS3.3 C.7.6.2.1.1: the normal is rows x columns of the orientation, and z
        points to the head.
    """
    cosines = header.vector("ImageOrientationPatient", 6)
    if not cosines:
        return ""
    (ax, ay, az), (bx, by, bz) = cosines[:3], cosines[3:]
    normal = (ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx)
    length = math.hypot(*normal)
    if length == 0:
        return ""
    tilt_deg = math.degrees(math.acos(min(1.0, abs(normal[2]) / length)))
    if tilt_deg <= MAX_TILT_DEG:
        return ""
    return (
        f"ImageOrientationPatient (0020,0037) is {tilt_deg:.0f} degrees from axial, "
        f"expected at most {MAX_TILT_DEG:.0f}"
    )


_RULES: Mapping[str, Callable[[Header], str]] = {
    "not-ct": why_not_ct,
    "localizer": why_localizer,
    "derived": why_derived,
    "not-hu": why_not_hu,
    "not-axial": why_not_axial,
}
"""The rules in the order in which they are checked, by reject code."""


def _image_type(header: Header) -> tuple[str, list[str]]:
    """Name and values of the element that holds the type of a frame, or of a file."""
    frame_type = header.text("FrameType")
    name = "FrameType (0008,9007)" if frame_type else "ImageType (0008,0008)"
    text = (frame_type or header.text("ImageType")).upper()
    return name, [value.strip() for value in text.split("\\")]


def _find_term(values: Iterable[str], terms: Iterable[str]) -> str:
    """The first term that is a value or whole words of one, such as MPR in CSA MPR."""
    text = f" {' | '.join(values)} ".replace("_", " ")
    return next((t for t in terms if f" {t.replace('_', ' ')} " in text), "")
