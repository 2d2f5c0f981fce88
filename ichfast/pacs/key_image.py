"""A slice with the map of where the model looked, as a secondary capture.

Shape letters: H rows, W columns, h and w rows and columns of the feature map.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import numpy.typing as npt
from highdicom.sc import SCImage
from highdicom.sr import CodedConcept
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from ichfast.pacs.attributes import NOTICE, identify, made_by
from ichfast.pacs.instances import Instance
from ichfast.report.heatmaps import MAX_OPACITY, share_of_maximum

SIDE = 512
"""Rows, and columns, of each of the two pictures."""

CAPTION_ROWS = 40
"""Rows of the caption, which stands above the pictures."""

SERIES_NUMBER = 9802

Picture = npt.NDArray[np.uint8]


def draw_map(
    grey_HW: Picture, map_hw: npt.NDArray[np.float32], caption: str
) -> Picture:
    """Draw a slice beside the same slice under a map.

    Args:
        grey_HW: the slice in a display window, shape (H, W), uint8.
        map_hw: shape (h, w), at least zero. It covers the whole slice.
        caption: a line above them; under it is the notice that it is no medical device.

    Returns:
        Shape (`CAPTION_ROWS` + `SIDE`, 2 * `SIDE`, 3), uint8.
    """
    size = (SIDE, SIDE)
    grey = Image.fromarray(grey_HW).resize(size, Image.Resampling.BICUBIC)
    share_HW1 = share_of_maximum(map_hw, *size)[..., None]
    color_HWC = matplotlib.colormaps["plasma"](share_HW1[..., 0])[..., :3] * 255.0
    grey_HWC = np.repeat(np.asarray(grey, np.float64)[..., None], 3, axis=2)
    mixed_HWC = grey_HWC + MAX_OPACITY * share_HW1 * (color_HWC - grey_HWC)
    picture = np.zeros((CAPTION_ROWS + SIDE, 2 * SIDE, 3), np.uint8)
    picture[CAPTION_ROWS:] = np.rint(np.concatenate([grey_HWC, mixed_HWC], axis=1))
    image = Image.fromarray(picture)
    ImageDraw.Draw(image).multiline_text((8, 4), f"{caption}\n{NOTICE}", fill="white")
    return np.asarray(image)


def make_key_image(
    picture: Picture, instance: Instance, description: str, *, keep_ids: bool
) -> Dataset:
    """Make a secondary capture that refers to a slice.

    Args:
        picture: shape (H, W, 3), uint8.
        instance: the slice.
        description: what the picture shows.
        keep_ids: write the patient's attributes.
    """
    document = SCImage(
        pixel_array=picture,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        study_instance_uid=instance.header.study_uid,
        series_number=SERIES_NUMBER,
        patient_orientation=_letters(instance.header.orientation) or ("L", "P"),
        **made_by(),
    )
    if not instance.header.orientation:
        document.PatientOrientation = None  # not known
    document.ConversionType = "WSD"  # by a workstation
    document.DerivationDescription = description
    document.ImageComments = NOTICE
    document.BurnedInAnnotation = "NO"  # the caption names nobody
    source = Dataset()
    source.ReferencedSOPClassUID = instance.header.sop_class_uid
    source.ReferencedSOPInstanceUID = instance.header.sop_instance_uid
    if instance.frame is not None:
        source.ReferencedFrameNumber = instance.frame
    source.PurposeOfReferenceCodeSequence = [
        CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)
    ]
    document.SourceImageSequence = [source]
    identify(document, instance.header, keep_ids=keep_ids)
    return document


def _letters(orientation: Sequence[float]) -> tuple[str, ...]:
    """The directions of rows and columns as DICOM abbreviates them.

    Source:
        DICOM PS3.3 C.7.6.1.1.1.
    """
    letters = []
    for cosines in filter(len, (orientation[:3], orientation[3:])):
        axis = int(np.argmax(np.abs(cosines)))
        letters.append(("LR", "PA", "HF")[axis][int(cosines[axis] < 0)])
    return tuple(letters)
