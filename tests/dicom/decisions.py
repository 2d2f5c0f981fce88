"""Differences between ichfast and other DICOM readers, each with its reason.

`tests/dicom/test_referees.py` finds these differences and no others.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.dicom.real_files import EDGE, ZOO


@dataclass(frozen=True, slots=True)
class Decision:
    """An intended difference."""

    referees: tuple[str, ...]
    """Readers that differ."""

    num_pixels: int
    """Number of pixels that differ; 0 where the reader cannot read the file."""

    largest_hu: int
    """Largest difference, HU."""

    reason: str


DECISIONS = {
    f"{EDGE}/highbits_12of16_64.dcm": Decision(
        ("SimpleITK", "GDCM"),
        29,
        4096,
        "wrapped_12bit: unsigned 12 bits and intercept 0, so air wrapped around at "
        "4096; the other readers show it as bone",
    ),
    f"{EDGE}/monochrome1_64.dcm": Decision(
        ("SimpleITK",),
        4096,
        83,
        "monochrome1: ITK inverts the numbers for display; it defines how to show "
        "HU, not what they are, and GDCM agrees",
    ),
    f"{EDGE}/trailing_garbage_64.dcm": Decision(
        ("SimpleITK", "GDCM"),
        0,
        0,
        "the other readers fail on bytes after the pixels, which are complete",
    ),
    "zoo/cornerstone_CTImage_chest/CTImage_1.2.840.10008.1.2.4.51.dcm": Decision(
        ("SimpleITK", "GDCM"),
        9935,
        3,
        "lossy JPEG: the standard leaves the rounding of the cosine transform to the "
        "decoder; the other readers share one, ichfast uses pydicom's",
    ),
    f"{ZOO}/J2K_pixelrep_mismatch.dcm": Decision(
        ("GDCM",),
        163095,
        8192,
        "j2k_sign: header and codestream differ about the sign; GDCM reads 13-bit "
        "negative values as large ones, ITK and pydicom agree with ichfast",
    ),
}
"""Every stored file of the manifest that another reader reads differently."""

REFUSED = {
    f"{EDGE}/shortpixels_like_ID_6431af929.dcm": "truncated-pixels: the other readers "
    "fill the missing part with uninitialized memory",
    "zoo/cornerstone_CTImage_chest/CTImage_1.2.840.10008.1.2.4.50.dcm": "colour: 8 "
    "bits a pixel, where the standard has 16 for CT (PS3.3 C.8.2.1); a step is 32 HU "
    "here",
    "zoo/dicomsdl/test_be.dcm": "not-ct: its SOP Class is that of PET images",
    "zoo/dicomsdl/test_le.dcm": "not-ct: its SOP Class is that of PET images",
    "zoo/philips_surview/surview_256x512.dcm": "localizer: no slice of the head",
    f"{ZOO}/eCT_Supplemental.dcm": "derived: a map of relative cerebral blood flow",
}
"""Every CT file of the manifest that another reader reads and ichfast rejects."""
