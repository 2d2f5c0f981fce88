"""Attributes that all documents of ichfast share: what made them, and whose they are.

1. A document is filed with its images by its StudyInstanceUID, which it always has. It
   refers to the images by their UIDs.
2. With ids kept it also has the attributes by which a PACS finds the patient
   (`file_header.IDENTITY`), as they are in the images, in UTF-8. Without, these are
   empty, and it says that the identity was removed: a PACS files it under no patient,
   rather than under a wrong one.
3. It never has other attributes of the patient, the staff or the institution.
"""

from __future__ import annotations

import logging
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from ichfast import __version__
from ichfast.pacs.file_header import FileHeader, values_not_shown

NOTICE = "Research only. Not a medical device, not for diagnosis or patient care."
"""What every document says, in its series' description and where people read it."""

DEIDENTIFICATION = "Attributes of the patient left out by ichfast; UIDs are kept"


logging.getLogger("highdicom").setLevel(logging.WARNING)  # it logs UIDs


def made_by() -> dict[str, Any]:
    """Keyword arguments of every document: new UIDs, and the software."""
    return {
        "series_instance_uid": generate_uid(),
        "sop_instance_uid": generate_uid(),
        "instance_number": 1,
        "manufacturer": "ichfast",
        "manufacturer_model_name": "ichfast",
        "software_versions": __version__,
        "specific_character_set": "ISO_IR 192",  # UTF-8: a name in any of them
        "series_description": NOTICE.partition(",")[0],
    }


def identify(document: Dataset, header: FileHeader, *, keep_ids: bool) -> None:
    """Write into a document whose it is.

    Args:
        document: without a patient's attributes.
        header: of one of the images.
        keep_ids: take the patient's attributes from there.
    """
    if keep_ids:
        with values_not_shown():
            for keyword, value in header.identity.items():
                setattr(document, keyword, value)
    else:
        document.PatientIdentityRemoved = "YES"
        document.DeidentificationMethod = DEIDENTIFICATION
