"""Raw values and sequences of a header that pydicom has read.

pydicom keeps a value as bytes until it is asked for. Then it makes an object of each
number of a list, so values are taken from it as bytes, and only needed sequences are
parsed.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_sequence
from pydicom.valuerep import VR

from ichfast.dicom import header
from ichfast.dicom.guard import BudgetedBytes, ReadBudget
from ichfast.dicom.walker import MAX_VALUE_BYTES, Elements
from ichfast.errors import RejectError

_MACROS = (
    *(0x0018_9314, 0x0018_9321),  # CTReconstruction-, CTExposureSequence
    *(0x0018_9325, 0x0018_9329),  # CTXRayDetails-, CTImageFrameTypeSequence
    0x0018_9341,  # ContrastBolusUsageSequence
    *(0x0020_9113, 0x0020_9116),  # PlanePosition-, PlaneOrientationSequence
    *(0x0028_9110, 0x0028_9145),  # PixelMeasures-, PixelValueTransformationSequence
    0x0028_9132,  # FrameVOILUTSequence
)
_FRAME_TAGS = frozenset(
    header.TAGS[keyword]
    for keyword in (
        *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
        *("SliceThickness", "RescaleIntercept", "RescaleSlope", "RescaleType"),
        *("FrameType", "WindowCenter", "WindowWidth", "SpacingBetweenSlices", "KVP"),
        *("ConvolutionKernel", "ConvolutionKernelGroup", "ExposureInmAs"),
        "ContrastBolusAgentAdministered",
    )
)
"""Elements read from the macros. With others, a frame could have its own patient."""


def raw_values(
    dataset: Dataset, wanted: frozenset[int], max_bytes: int = MAX_VALUE_BYTES
) -> Elements:
    """Take the values of the wanted elements out of a dataset.

    Args:
        dataset: what pydicom has read.
        wanted: tags.
        max_bytes: upper limit of the length of a value.

    Raises:
        RejectError: ``bad-header``, a value is longer than `max_bytes`.
    """
    found = {
        int(element.tag): raw
        for element in dataset.elements()
        if element.tag in wanted and (raw := _raw_value(element)) is not None
    }
    for value, _ in found.values():
        if len(value) > max_bytes:
            raise RejectError("bad-header", f"a value of {len(value):,} bytes")
    return found


def _raw_value(element: DataElement | RawDataElement) -> tuple[bytes, bool] | None:
    """The bytes of a value; None of a sequence or of what pydicom has converted."""
    if isinstance(element, RawDataElement) and isinstance(element.value, bytes):
        return element.value, element.is_little_endian
    return None if element.value else (b"", True)


def read_items(
    dataset: Dataset | None, tag: int, budget: ReadBudget
) -> Sequence[Dataset] | None:
    """Parse a sequence, even if the file gives it another VR.

    Args:
        dataset: what pydicom has read; None: nothing.
        tag: tag of the sequence.
        budget: budget of the file.

    Returns:
        Its items; None where there is no such element.

    Raises:
        RejectError: ``bad-header``, the budget is spent.
    """
    if dataset is None or tag not in dataset:
        return None
    element: object = dataset.get_item(tag)
    if isinstance(element, RawDataElement):
        value = element.value or b""
        parsed = read_sequence(
            BudgetedBytes(value, budget),
            element.is_implicit_VR,
            element.is_little_endian,
            len(value),
            "iso8859",
        )
        dataset[tag] = DataElement(tag, VR.SQ, parsed)
    items: Sequence[Dataset] = dataset[tag].value or ()
    return items


def read_groups(item: Dataset, budget: ReadBudget) -> list[Elements]:
    """Read the functional group macros in an item.

    Args:
        item: an item of the shared or per-frame functional groups.
        budget: budget of the file.

    Returns:
        The wanted values, one mapping for each macro.

    Raises:
        RejectError: ``bad-header``, a value is too long or the budget is spent.

    Source:
        DICOM PS3.3 C.7.6.16.2, functional group macros.
    """
    return [
        raw_values(group, _FRAME_TAGS)
        for tag in _MACROS
        for group in (read_items(item, tag, budget) or ())[:1]
    ]
