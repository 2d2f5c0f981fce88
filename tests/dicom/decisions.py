"""Where other DICOM readers say something else than ichfast stores, and why that is so.

`tests/dicom/test_referees.py` finds these differences and no other.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.dicom.test_slices import EDGE, ZOO


@dataclass(frozen=True, slots=True)
class Decision:
    """A difference that is meant."""

    referees: tuple[str, ...]
    """Who says something else."""

    num_pixels: int
    """How many pixels differ; 0 where the referee cannot read the file."""

    largest_hu: int
    """The largest difference."""

    reason: str


DECISIONS = {
    f"{EDGE}/highbits_12of16_64.dcm": Decision(
        ("SimpleITK", "GDCM"),
        29,
        4096,
        "wrapped_12bit: unsigned 12 bits and intercept 0, so air wrapped around at "
        "4096; the referees show it as bone",
    ),
    f"{EDGE}/monochrome1_64.dcm": Decision(
        ("SimpleITK",),
        4096,
        83,
        "monochrome1: ITK inverts the numbers for display; it says how to show HU, "
        "not what they are, and GDCM agrees",
    ),
    f"{EDGE}/trailing_garbage_64.dcm": Decision(
        ("SimpleITK", "GDCM"),
        0,
        0,
        "the referees give up on bytes after the pixels, which are whole",
    ),
    "zoo/cornerstone_CTImage_chest/CTImage_1.2.840.10008.1.2.4.51.dcm": Decision(
        ("SimpleITK", "GDCM"),
        9935,
        3,
        "lossy JPEG: the standard leaves the rounding of the cosine transform to the "
        "decoder; both referees share one, ichfast has pydicom's",
    ),
    f"{ZOO}/J2K_pixelrep_mismatch.dcm": Decision(
        ("GDCM",),
        163095,
        8192,
        "j2k_sign: header and codestream differ about the sign; GDCM reads 13-bit "
        "negative values as large ones, ITK and pydicom agree with ichfast",
    ),
}
"""Every stored file of the manifest on which a referee differs."""

REFUSED = {
    f"{EDGE}/shortpixels_like_ID_6431af929.dcm": "truncated-pixels: the referees fill "
    "up what is missing with whatever stands in their memory",
    "zoo/cornerstone_CTImage_chest/CTImage_1.2.840.10008.1.2.4.50.dcm": "colour: 8 "
    "bits a pixel, where the standard has 16 for CT (PS3.3 C.8.2.1); a step is 32 HU "
    "here",
    "zoo/philips_surview/surview_256x512.dcm": "localizer: no slice of the head",
}
"""Every CT file of the manifest that a referee reads and ichfast rejects."""
