"""What a document that refers to a DICOM file takes from its header.

The header is read by pydicom, because names of patients may be in any character set.
Files may be hostile, so `read_file_header` is called in a process with limits of time
and memory (`ichfast.system.limits`).
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import RE_VALID_UID

from ichfast.dicom.header import MAX_FRAMES, MAX_ID_LENGTH

IDENTITY = (
    *("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate"),
    *("PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "StudyID"),
)
"""Keywords by which a PACS files an instance under a patient and a study, and shows it
there."""

MAX_UID_LENGTH = 64
"""Upper limit of the characters of a UID.

Source:
    DICOM PS3.5 9.
"""

_KEYWORDS = (
    *("SpecificCharacterSet", *IDENTITY),
    *("NumberOfFrames", "ImageOrientationPatient"),
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"),
)

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it logs values


def is_uid(text: str) -> bool:
    """Whether a text is a UID that DICOM allows, and so the name of a file, too."""
    return len(text) <= MAX_UID_LENGTH and bool(RE_VALID_UID.fullmatch(text))


@dataclass(frozen=True, slots=True)
class FileHeader:
    """The header of a DICOM file."""

    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str

    num_frames: int
    """Number of frames; 1 of a file without frames."""

    orientation: tuple[float, ...]
    """(0020,0037), six cosines: of the rows, of the columns. Empty where absent."""

    identity: Mapping[str, str]
    """Values of `IDENTITY`, without those that are absent or empty."""

    @property
    def has_uids(self) -> bool:
        """Whether its four UIDs are such as DICOM allows."""
        return all(
            map(
                is_uid,
                (
                    *(self.sop_class_uid, self.sop_instance_uid),
                    *(self.study_uid, self.series_uid),
                ),
            )
        )

    @property
    def patient(self) -> tuple[str, str]:
        """PatientID and IssuerOfPatientID, which name a patient."""
        return (
            self.identity.get("PatientID", ""),
            self.identity.get("IssuerOfPatientID", ""),
        )

    def slice_ids(self) -> Iterator[tuple[str, int | None]]:
        """The ids that `ichfast.dicom` gives its slices, and the frame of each."""
        if self.num_frames == 1:
            yield self.sop_instance_uid, None
            return
        for frame in range(1, self.num_frames + 1):
            yield f"{self.sop_instance_uid}.{frame}", frame


@contextmanager
def values_not_shown() -> Iterator[None]:
    """Let pydicom take values that DICOM forbids, and show none in a warning."""
    with disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_file_header(content: bytes) -> FileHeader | None:
    """Read the header of a DICOM file; None if pydicom cannot read it."""
    try:
        with values_not_shown():
            header = dcmread(
                io.BytesIO(content),
                stop_before_pixels=True,
                force=True,
                specific_tags=list(_KEYWORDS),
            )
            return _parse(header)
    except Exception:  # noqa: BLE001  pydicom raises nearly anything on damage
        return None


def _parse(header: Dataset) -> FileHeader:
    identity = {name: _text(header, name) for name in IDENTITY}
    orientation = header.get("ImageOrientationPatient") or ()
    num_frames = int(header.get("NumberOfFrames") or 1)
    if not 1 <= num_frames <= MAX_FRAMES:
        raise ValueError("too many frames")
    return FileHeader(
        sop_class_uid=_text(header, "SOPClassUID"),
        sop_instance_uid=_text(header, "SOPInstanceUID"),
        study_uid=_text(header, "StudyInstanceUID"),
        series_uid=_text(header, "SeriesInstanceUID"),
        num_frames=num_frames,
        orientation=tuple(map(float, orientation)) if len(orientation) == 6 else (),
        identity={name: text for name, text in identity.items() if text},
    )


def _text(header: Dataset, keyword: str) -> str:
    value = header.get(keyword)
    parts = value if isinstance(value, MultiValue) else [value or ""]
    text = "\\".join(str(part).strip(" \0") for part in parts)
    if len(text) > MAX_ID_LENGTH:
        raise ValueError("longer than DICOM allows")
    return text
