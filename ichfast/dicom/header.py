"""Values of a DICOM header, converted from their raw bytes.

pydicom's own conversion warns about each of RSNA's ``ID_...`` UIDs and takes as long as
the rest of the reading. So values are converted here: leniently, without warnings, and
only those that are needed. A header that cannot belong to a CT slice raises
`RejectError`, whose detail quotes only the value that is at fault.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from ichfast.dicom.walker import Elements
from ichfast.errors import RejectError

TAGS = {
    "MediaStorageSOPInstanceUID": 0x0002_0003,
    "TransferSyntaxUID": 0x0002_0010,
    "ImageType": 0x0008_0008,
    "SOPClassUID": 0x0008_0016,
    "SOPInstanceUID": 0x0008_0018,
    "Modality": 0x0008_0060,
    "Manufacturer": 0x0008_0070,
    "ManufacturerModelName": 0x0008_1090,
    "FrameType": 0x0008_9007,
    "PatientID": 0x0010_0020,
    "PatientSex": 0x0010_0040,
    "PatientAge": 0x0010_1010,
    "ContrastBolusAgent": 0x0018_0010,
    "SliceThickness": 0x0018_0050,
    "KVP": 0x0018_0060,
    "SpacingBetweenSlices": 0x0018_0088,
    "ContrastBolusVolume": 0x0018_1041,
    "Exposure": 0x0018_1152,
    "ExposureInuAs": 0x0018_1153,
    "ConvolutionKernel": 0x0018_1210,
    "ConvolutionKernelGroup": 0x0018_9316,
    "ExposureInmAs": 0x0018_9332,
    "ContrastBolusAgentAdministered": 0x0018_9342,
    "StudyInstanceUID": 0x0020_000D,
    "SeriesInstanceUID": 0x0020_000E,
    "SeriesNumber": 0x0020_0011,
    "InstanceNumber": 0x0020_0013,
    "ImagePositionPatient": 0x0020_0032,
    "ImageOrientationPatient": 0x0020_0037,
    "SamplesPerPixel": 0x0028_0002,
    "PhotometricInterpretation": 0x0028_0004,
    "NumberOfFrames": 0x0028_0008,
    "Rows": 0x0028_0010,
    "Columns": 0x0028_0011,
    "PixelSpacing": 0x0028_0030,
    "BitsAllocated": 0x0028_0100,
    "BitsStored": 0x0028_0101,
    "HighBit": 0x0028_0102,
    "PixelRepresentation": 0x0028_0103,
    "PixelPaddingValue": 0x0028_0120,
    "PixelPaddingRangeLimit": 0x0028_0121,
    "WindowCenter": 0x0028_1050,
    "WindowWidth": 0x0028_1051,
    "RescaleIntercept": 0x0028_1052,
    "RescaleSlope": 0x0028_1053,
    "RescaleType": 0x0028_1054,
    "ModalityLUTType": 0x0028_3004,
}
"""Tags of the elements that are read, by keyword.

Source:
    DICOM PS3.6, registry of data elements.
"""

MAX_PIXELS = 4096**2
"""Upper limit of rows x columns of a slice."""

MAX_FRAMES = 4096
"""Upper limit of frames in a file. A few bytes of header can state any number, and each
frame takes memory before its pixels are read."""

MAX_FILE_PIXELS = 2**30
"""Upper limit of pixels in all frames of a file: 2 GiB as uint16. A few KB of
compressed frames can exceed it."""

MAX_ID_LENGTH = 256
"""Upper limit of characters of an id, four times what DICOM allows. The ids of each
slice are kept until its unit is written."""

_ABSENT = b"", True

_PHOTOMETRICS = frozenset(
    (
        *("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "XYB"),
        *("YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"),
    )
)
"""Defined terms of PhotometricInterpretation, which a rejection may quote.

Source:
    DICOM PS3.3 C.7.6.3.1.2.
"""


class Header:
    """Converts the values of a header, by keyword.

    Args:
        elements: raw values.
    """

    def __init__(self, elements: Elements) -> None:
        self._elements = elements
        self.quirks: set[str] = set()
        """Names of the defects mended in the values converted so far."""

    def has(self, keyword: str) -> bool:
        """Whether the element is there, with a value or empty."""
        return TAGS[keyword] in self._elements

    def text(self, keyword: str) -> str:
        """Value as text without padding; empty where absent."""
        return parse_text(self._raw(keyword)[0])

    def identifier(self, keyword: str) -> str:
        """Value of an id as text without padding; empty where absent.

        Raises:
            RejectError: ``bad-header``, the id is longer than `MAX_ID_LENGTH`.
        """
        identifier = self.text(keyword)
        if len(identifier) > MAX_ID_LENGTH:
            raise RejectError(
                "bad-header",
                f"{keyword} has {len(identifier):,} characters, the limit is "
                f"{MAX_ID_LENGTH}",
            )
        return identifier

    def unsigned(self, keyword: str) -> int | None:
        """First value of a 16-bit element; None where absent."""
        value, is_little_endian = self._raw(keyword)
        if len(value) < 2:
            return None
        return int.from_bytes(value[:2], "little" if is_little_endian else "big")

    def numbers(self, keyword: str) -> tuple[float, ...]:
        """Values of a decimal string; NaN for a malformed one, () where absent."""
        value, _ = self._raw(keyword)
        numbers, is_malformed = parse_numbers(value)
        if is_malformed:
            self.quirks.add("malformed_number")
        if keyword == "WindowCenter" and len(numbers) > 1:
            self.quirks.add("two_windows")
        return numbers

    def number(self, keyword: str, default: float = math.nan) -> float:
        """First value of a decimal string; NaN if malformed.

        Args:
            keyword: a key of `TAGS`.
            default: result where the element is absent.
        """
        return (*self.numbers(keyword), default)[0]

    def optional_number(self, keyword: str) -> float:
        """First value of a decimal string; NaN if absent or malformed, no quirk."""
        numbers, _ = parse_numbers(self._raw(keyword)[0])
        return (*numbers, math.nan)[0]

    def double(self, keyword: str) -> float:
        """Value of a 64-bit floating-point element; NaN where absent."""
        value, is_little_endian = self._raw(keyword)
        if len(value) < 8:
            return math.nan
        (number,) = struct.unpack_from("<d" if is_little_endian else ">d", value)
        return float(number)

    def integer(self, keyword: str, default: int) -> int:
        """First value of an integer string.

        Args:
            keyword: a key of `TAGS`.
            default: result where the element is absent or malformed.
        """
        number = self.number(keyword, default)
        return default if math.isnan(number) else int(number)

    def vector(self, keyword: str, length: int) -> tuple[float, ...]:
        """Values of a decimal string, or () if they are not as expected.

        Args:
            keyword: a key of `TAGS`.
            length: expected number of values, all of them valid.
        """
        numbers = self.numbers(keyword)
        is_whole = len(numbers) == length and not any(map(math.isnan, numbers))
        return numbers if is_whole else ()

    def _raw(self, keyword: str) -> tuple[bytes, bool]:
        return self._elements.get(TAGS[keyword], _ABSENT)


def parse_text(value: bytes) -> str:
    """Decode a value without checks and warnings.

    RSNA's UIDs are ``ID_...`` strings, which a strict parser refuses. Other files have
    bytes of an undeclared character set.

    Source:
        DICOM PS3.5 6.2 (padding with space or NUL).
    """
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        text = value.decode("latin-1")
    return text.strip(" \0\t\r\n")


def parse_numbers(value: bytes) -> tuple[tuple[float, ...], bool]:
    r"""Parse a decimal string, such as ``00040\00040``, ``-1.024e3`` or ``1,5``.

    Returns:
        Its numbers, NaN for one that is not finite, none for an empty string; and
        whether it is malformed.

    Source:
        DICOM PS3.5 6.2, value representation DS.
    """
    if not value.strip(b" \0"):
        return (), False
    numbers = tuple(_parse_number(text) for text in parse_text(value).split("\\"))
    return numbers, b"," in value or any(map(math.isnan, numbers))


def _parse_number(text: str) -> float:
    try:
        number = float(text.strip(" \0").replace(",", "."))
    except ValueError:
        return math.nan
    # Python reads 1_0 as ten, and digits of all scripts.
    if "_" in text or not text.isascii():
        return math.nan
    return number if math.isfinite(number) else math.nan


def check_grey(header: Header) -> None:
    """Check that an image is grey, of more than 8 bits per pixel.

    Raises:
        RejectError: ``colour``, it has several samples or 8 bits per pixel.
    """
    samples = header.unsigned("SamplesPerPixel") or 1
    photometric = header.text("PhotometricInterpretation") or "MONOCHROME2"
    if samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise RejectError(
            "colour",
            f"{samples} samples per pixel, photometric interpretation "
            f"{quoted(photometric, _PHOTOMETRICS)}; expected grey",
        )
    if photometric == "MONOCHROME1":
        header.quirks.add("monochrome1")
    bits_allocated = header.unsigned("BitsAllocated") or 16
    if bits_allocated <= 8:
        raise RejectError(
            "colour", f"{bits_allocated} bits per pixel, like a screenshot; expected 16"
        )


def quoted(value: str, known: frozenset[str]) -> str:
    """Quote a defined term; any other value may be a name in the wrong element.

    Args:
        value: of an element.
        known: the defined terms of the element.
    """
    return repr(value) if not value or value in known else "no defined term"


_PLACEHOLDERS = frozenset(
    (
        *("anon", "anonym", "anonymous", "anonymouspatient", "anonymouspat"),
        *("anonymised", "anonymisedpatient", "anonymized", "anonymizedpatient"),
        *("deidentified", "pseudonymised", "pseudonymized", "redacted", "removed"),
        *("unknown", "unknownpatient", "undefined", "unspecified", "unidentified"),
        *("none", "null", "nil", "na", "notavailable", "notapplicable", "empty"),
        *("noid", "noname", "nopatient", "nopatientid", "patient", "patientid"),
    )
)
"""Texts that programs write in place of a patient's id, without case, punctuation and
spaces."""


def read_patient_id(header: Header) -> str:
    """PatientID; empty where it is absent, or a placeholder that many patients share.

    Placeholders are those of `_PLACEHOLDERS`, and zeros or the letter x, however many.

    Raises:
        RejectError: by `Header.identifier`.
    """
    identifier = header.identifier("PatientID")
    plain = "".join(filter(str.isalnum, identifier.casefold()))
    is_filler = not plain.strip("0") or not plain.strip("x")
    if identifier and (is_filler or plain in _PLACEHOLDERS):
        header.quirks.add("placeholder_patient")
        return ""
    return identifier


@dataclass(frozen=True, slots=True)
class Layout:
    """Shape and encoding of the pixels of a file."""

    rows: int
    columns: int
    num_frames: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    is_signed: bool

    @property
    def frame_bytes(self) -> int:
        """Size of one uncompressed frame, bytes."""
        return self.rows * self.columns * self.bits_allocated // 8


def read_layout(header: Header) -> Layout:
    """Read the pixel layout, and check that it can be stored.

    Raises:
        RejectError: ``bad-header``, an element is missing or impossible;
            ``too-large``, it exceeds `MAX_FRAMES`, `MAX_PIXELS` or `MAX_FILE_PIXELS`.
    """
    rows, columns = _required(header, "Rows"), _required(header, "Columns")
    bits_allocated = _required(header, "BitsAllocated")
    is_signed = _required(header, "PixelRepresentation") == 1
    bits_stored = header.unsigned("BitsStored") or bits_allocated
    high_bit = header.unsigned("HighBit")
    num_frames = header.number("NumberOfFrames", 1)
    if num_frames == 0:
        header.quirks.add("frame_count")
        num_frames = 1
    shape = f"{rows} rows x {columns} columns x {num_frames:.0f} frames"
    if rows * columns == 0 or not num_frames >= 1:
        raise RejectError("bad-header", shape)
    num_pixels = rows * columns
    if (
        num_frames > MAX_FRAMES
        or num_pixels > MAX_PIXELS
        or num_pixels * num_frames > MAX_FILE_PIXELS
    ):
        raise RejectError(
            "too-large",
            f"{shape}; the limits are {MAX_FRAMES:,} frames, {MAX_PIXELS:,} pixels in "
            f"a frame and {MAX_FILE_PIXELS:,} in a file",
        )
    if bits_allocated not in (16, 32) or bits_stored > bits_allocated:
        raise RejectError(
            "bad-header",
            f"{bits_stored} bits stored in {bits_allocated} allocated, expected 16",
        )
    return Layout(
        rows=rows,
        columns=columns,
        num_frames=int(num_frames),
        bits_allocated=bits_allocated,
        bits_stored=bits_stored,
        high_bit=bits_stored - 1 if high_bit is None else high_bit,
        is_signed=is_signed,
    )


def _required(header: Header, keyword: str) -> int:
    value = header.unsigned(keyword)
    if value is None:
        raise RejectError("bad-header", f"{keyword} is missing")
    return value


def read_rescale(header: Header) -> tuple[float, float, bool]:
    """Read the rescale, HU = raw x slope + intercept.

    Returns:
        Slope, 1 where missing; intercept, 0 where missing; whether both are present.

    Raises:
        RejectError: ``bad-header``, one of them is malformed or the slope is 0.
    """
    slope, intercept = (
        header.numbers("RescaleSlope"),
        header.numbers("RescaleIntercept"),
    )
    if (slope and not abs(slope[0]) > 0) or (intercept and math.isnan(intercept[0])):
        raise RejectError(
            "bad-header", "RescaleSlope or RescaleIntercept is not a usable number"
        )
    return (*slope, 1.0)[0], (*intercept, 0.0)[0], bool(slope and intercept)


def read_padding(header: Header, *, is_signed: bool) -> tuple[int, int] | None:
    """Read the range of padding values.

    It is often written as US although the pixels are signed: 63536 then means -2000.

    Args:
        header: header of the file.
        is_signed: whether pixels are signed.

    Returns:
        First and last raw value of the padding; None where none is declared.

    Source:
        DICOM PS3.3 C.7.5.1.1.2: the representation is that of the pixels.
    """
    value = header.unsigned("PixelPaddingValue")
    if value is None:
        return None
    limit = header.unsigned("PixelPaddingRangeLimit")
    first, last = (
        number - 0x10000 if is_signed and number >= 0x8000 else number
        for number in (value, value if limit is None else limit)
    )
    return min(first, last), max(first, last)


def read_position(header: Header, cosines: tuple[float, ...]) -> float:
    """Compute the position of a slice along its normal.

    Args:
        header: header of the slice.
        cosines: orientation of the slice, six numbers, or ().

    Returns:
        Position, mm; NaN where unknown.

    Source:
        DICOM PS3.3 C.7.6.2.1.1: the normal is rows x columns of the orientation.
    """
    corner = header.vector("ImagePositionPatient", 3)
    if not cosines or not corner:
        return math.nan
    (ax, ay, az), (bx, by, bz) = cosines[:3], cosines[3:]
    normal = (ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx)
    return sum(n * c for n, c in zip(normal, corner, strict=True))
