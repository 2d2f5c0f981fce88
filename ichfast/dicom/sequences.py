"""What pydicom has read of a header: raw values, and sequences parsed with a ration.

pydicom leaves a value as it is until it is asked for, and then makes an object of each
item and each element of a sequence, and of each number of a list, however many.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_sequence
from pydicom.valuerep import VR

from ichfast.dicom import header
from ichfast.dicom.guard import Ration, Rationed
from ichfast.dicom.walker import MAX_VALUE_BYTES, Elements
from ichfast.errors import RejectError

_MACROS = (
    *(0x0020_9113, 0x0020_9116),  # PlanePosition-, PlaneOrientationSequence
    *(0x0028_9110, 0x0028_9145),  # PixelMeasures-, PixelValueTransformationSequence
    0x0028_9132,  # FrameVOILUTSequence
)
_FRAME_TAGS = frozenset(
    header.TAGS[keyword]
    for keyword in (
        *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
        *("SliceThickness", "RescaleIntercept", "RescaleSlope"),
        *("WindowCenter", "WindowWidth"),
    )
)
"""What is read in the macros: no more, or a frame could have a patient of its own."""


def raw_values(
    dataset: Dataset, wanted: frozenset[int], most: int = MAX_VALUE_BYTES
) -> Elements:
    """Those of the elements that are wanted.

    Raises:
        RejectError: ``bad-header``, one has more than `most` bytes.
    """
    found = {
        int(element.tag): (element.value, element.is_little_endian)
        for element in dataset.elements()
        if isinstance(element, RawDataElement)
        and isinstance(element.value, bytes)
        and element.tag in wanted
    }
    for value, _ in found.values():
        if len(value) > most:
            raise RejectError("bad-header", f"a value of {len(value):,} bytes")
    return found


def read_items(
    dataset: Dataset | None, tag: int, ration: Ration
) -> Sequence[Dataset] | None:
    """The items of a sequence; None where there is no such element.

    Raises:
        RejectError: as `Ration.take`.
    """
    if dataset is None or tag not in dataset:
        return None
    element: object = dataset.get_item(tag)
    if isinstance(element, RawDataElement):
        # Not parsed yet. pydicom would do it now, without a ration.
        value = element.value or b""
        parsed = read_sequence(
            Rationed(value, ration),
            element.is_implicit_VR,
            element.is_little_endian,
            len(value),
            "iso8859",
        )
        dataset[tag] = DataElement(tag, VR.SQ, parsed)
    items: Sequence[Dataset] = dataset[tag].value or ()
    return items


def read_groups(item: Dataset, ration: Ration) -> list[Elements]:
    """What is read in an item of a sequence of functional groups: values by group.

    Raises:
        RejectError: ``bad-header``, a value is too long; as `Ration.take`.

    Source:
        DICOM PS3.3 C.7.6.16.2, functional group macros.
    """
    return [
        raw_values(group, _FRAME_TAGS)
        for tag in _MACROS
        for group in (read_items(item, tag, ration) or ())[:1]
    ]
