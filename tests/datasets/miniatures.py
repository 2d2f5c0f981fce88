"""Data sets in miniature: synthetic heads in the folders and files of a real data set.

Each function writes one set to a folder, with the names, tables and formats that the
page of the set in `docs/datasets` describes. RSNA's ids are no UIDs, which pydicom must
be told to let pass.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pandas as pd
import pydicom
from pydicom.config import disable_value_validation
from pydicom.uid import CTImageStorage

from ichfast.labels import CLASSES, read_labels
from ichfast.synth.dataset import synthesize

SIZE = 64
"""Rows and columns of a slice."""

MIN_SLICES = 10
"""Slices of a head. The last series of synthetic heads can be shorter than others."""

SHORT_NAMES = ("ICH", "EDH", "IPH", "IVH", "SAH", "SDH")
"""The names of the classes in CQ500."""

COMMON = dict.fromkeys(CLASSES[1:], 0.2)
"""Share of the slices with each bleed: every class is in every part of a set."""


@dataclass(frozen=True, slots=True)
class Head:
    """A series of a synthetic head."""

    slices: Sequence[pydicom.Dataset]
    """From the feet upwards."""

    labels_NK: npt.NDArray[np.float32]
    """Shape (slices, 6)."""

    @property
    def patient(self) -> str:
        """RSNA's id of the patient, such as ``ID_0123abcd``."""
        return str(self.slices[0].PatientID)

    @property
    def name(self) -> str:
        """The name of its file in sets that are made of RSNA's."""
        return f"{self.patient}_{self.slices[0].StudyInstanceUID}"

    def hu_DHW(self) -> npt.NDArray[np.int16]:
        """The volume in HU; slices from the feet upwards, rows to the back."""
        first = self.slices[0]
        stored = np.stack([each.pixel_array for each in self.slices]).astype(np.int32)
        hu = stored * int(first.RescaleSlope) + int(first.RescaleIntercept)
        return np.clip(hu, -1024, 3071).astype(np.int16)


@disable_value_validation()
def heads(folder: Path, *, num_slices: int, seed: int) -> list[Head]:
    """Synthetic heads, one for each patient.

    Args:
        folder: for the files of all heads.
        num_slices: of all series together.
        seed: another seed gives other patients.
    """
    report = synthesize(
        folder,
        num_slices=num_slices,
        seed=seed,
        prevalence=COMMON,
        quirks=False,
        size=SIZE,
    )
    table = read_labels(report.labels_path)
    labels_of = dict(zip(table.ids, table.labels_NK, strict=True))
    found: dict[str, Head] = {}
    for series in sorted(report.dicom_dir.iterdir()):
        slices = sorted(
            (pydicom.dcmread(path) for path in series.iterdir()),
            key=lambda each: float(each.ImagePositionPatient[2]),
        )
        labels = np.stack([labels_of[str(each.SOPInstanceUID)] for each in slices])
        head = Head(slices, labels)
        if len(slices) >= MIN_SLICES:
            found.setdefault(head.patient, head)
    return list(found.values())


@disable_value_validation()
def write_rsna(folder: Path, *, seed: int = 1) -> list[Head]:
    """RSNA 2019: flat folders of DICOM files, the label csv and a sample submission.

    Returns:
        The heads with labels.
    """
    root = folder / "rsna-intracranial-hemorrhage-detection"
    labelled = heads(folder / "synthetic", num_slices=220, seed=seed)
    for name, part in (("stage_2_train", labelled[1:]), ("stage_2_test", labelled[:1])):
        (root / name).mkdir(parents=True)
        rows = []
        for head in part:
            for each, labels_K in zip(head.slices, head.labels_NK, strict=True):
                each.save_as(root / name / f"{each.SOPInstanceUID}.dcm")
                rows += [
                    (f"{each.SOPInstanceUID}_{label}", int(value))
                    for label, value in zip(CLASSES, labels_K, strict=True)
                ]
        table = pd.DataFrame(rows, columns=["ID", "Label"])
        if name == "stage_2_test":
            table["Label"] = 0.5
            table.to_csv(root / "stage_2_sample_submission.csv", index=False)
        else:
            table.to_csv(root / "stage_2_train.csv", index=False)
    return labelled[1:]


@disable_value_validation()
def write_cq500(folder: Path) -> None:
    """CQ500: a zip for each patient with several series, and `reads.csv`."""
    (folder / "cq500").mkdir(parents=True)
    reads = []
    for number, head in enumerate(heads(folder / "synthetic", num_slices=260, seed=2)):
        name = f"CQ500-CT-{number}"
        patient = f"CQ500CT{number}"
        with zipfile.ZipFile(folder / "cq500" / f"{name}.zip", "w") as archive:
            for series, kernel in (("CT Plain", "STANDARD"), ("CT BONE", "BONEPLUS")):
                part = f"{patient} {patient}/Unknown Study/{series}"
                for at, each in enumerate(hospital_series(head, series, kernel)):
                    each.PatientID = each.PatientName = name
                    content = io.BytesIO()
                    each.save_as(content)
                    archive.writestr(f"{part}/CT{at:06d}.dcm", content.getvalue())
        of_study = head.labels_NK.max(axis=0).astype(int)
        # The third reader overlooks all bleeds.
        read = {
            f"R{reader}:{short}": value if reader < 3 else 0
            for reader in (1, 2, 3)
            for short, value in zip(SHORT_NAMES, of_study, strict=True)
        }
        read |= {f"R{reader}:CalvarialFracture": number % 2 for reader in (1, 2, 3)}
        reads.append({"name": name, "Category": "B1", **read})
    pd.DataFrame(reads).to_csv(folder / "reads.csv", index=False)


@disable_value_validation()
def write_pacs(folder: Path) -> None:
    """A PACS export: studies with several series, and labels by study.

    All files have the same PatientID, as many tools leave it that anonymize.
    """
    rows = []
    for number, head in enumerate(heads(folder / "synthetic", num_slices=260, seed=3)):
        study = f"1.2.826.0.1.3680043.8.498.{number + 1}"
        for at, (series, kernel) in enumerate((("Head", "H31s"), ("Bone", "H70h"))):
            out = folder / "export" / f"study{number:02d}" / f"series{at}"
            out.mkdir(parents=True)
            for each in hospital_series(head, series, kernel):
                each.StudyInstanceUID = study
                each.PatientID = each.PatientName = "ANONYMOUS"
                each.Manufacturer = "SIEMENS" if number % 2 else "GE MEDICAL SYSTEMS"
                each.SeriesNumber = at + 1
                each.save_as(out / f"{each.InstanceNumber:04d}.dcm")
        of_study = head.labels_NK.max(axis=0).astype(int)
        labels = dict(zip(CLASSES, of_study, strict=True))
        rows.append({"StudyInstanceUID": study, **labels})
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)


@disable_value_validation()
def write_physionet(folder: Path) -> None:
    """PhysioNet CT-ICH 1.3.1: numbered NIfTI volumes, masks, labels by slice number."""
    root = folder / "ct-ich"
    rows = []
    for number, head in enumerate(
        heads(folder / "synthetic", num_slices=200, seed=4), 49
    ):
        save_volume(root / "ct_scans" / f"{number:03d}.nii", head, head.hu_DHW())
        save_volume(root / "masks" / f"{number:03d}.nii", head, masks_DHW(head) > 0)
        for at, labels_K in enumerate(head.labels_NK.astype(int)):
            _, epidural, parenchymal, ventricular, subarachnoid, subdural = labels_K
            rows.append(
                {
                    "PatientNumber": number,
                    "SliceNumber": at + 1,
                    "Intraventricular": ventricular,
                    "Intraparenchymal": parenchymal,
                    "Subarachnoid": subarachnoid,
                    "Epidural": epidural,
                    "Subdural": subdural,
                    "No_Hemorrhage": 1 - labels_K[0],
                    "Fracture_Yes_No": number % 2,
                }
            )
    table = pd.DataFrame(rows)
    table.to_csv(root / "hemorrhage_diagnosis_raw_ct.csv", index=False)


@disable_value_validation()
def write_bhsd(folder: Path, of: Sequence[Head]) -> None:
    """BHSD: NIfTI volumes of RSNA's patients, and masks with a value for each class.

    Args:
        folder: for the set.
        of: RSNA's heads.
    """
    for head in of:
        root = folder / "BHSD" / "label_192"
        save_volume(root / "images" / f"{head.name}.nii.gz", head, head.hu_DHW())
        masks = masks_DHW(head)
        save_volume(root / "ground truths" / f"{head.name}.nii.gz", head, masks)


@disable_value_validation()
def write_instance(folder: Path) -> None:
    """INSTANCE22: numbered NIfTI volumes, and masks of any hemorrhage."""
    for number, head in enumerate(
        heads(folder / "synthetic", num_slices=200, seed=5), 1
    ):
        root = folder / "train_2"
        save_volume(root / "data" / f"{number:03d}.nii.gz", head, head.hu_DHW())
        save_volume(root / "label" / f"{number:03d}.nii.gz", head, masks_DHW(head) > 0)


def masks_DHW(head: Head) -> npt.NDArray[np.uint8]:
    """Masks with the values of BHSD: a square in each slice with the class."""
    values = {"epidural": 1, "intraparenchymal": 2, "intraventricular": 3}
    values |= {"subarachnoid": 4, "subdural": 5}
    masks = np.zeros((len(head.slices), SIZE, SIZE), np.uint8)
    for name, value in values.items():
        has_class_N = head.labels_NK[:, CLASSES.index(name)] == 1
        masks[has_class_N, 30:34, 5 * value : 5 * value + 4] = value
    return masks


def save_volume(path: Path, head: Head, values_DHW: npt.NDArray[np.generic]) -> None:
    """Write a volume of a head as NIfTI.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``.
        head: gives the places of its slices.
        values_DHW: slices from the feet upwards, rows to the back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    first, second = head.slices[:2]
    # DICOM's x and y point to the left and to the back, those of NIfTI to the right
    # and to the front.
    corner = np.array(first.ImagePositionPatient, float) * (-1, -1, 1)
    step = float(second.ImagePositionPatient[2]) - float(first.ImagePositionPatient[2])
    height, width = (float(each) for each in first.PixelSpacing)
    affine = np.diag([-width, -height, step, 1.0])
    affine[:3, 3] = corner
    is_mask = values_DHW.dtype != np.int16
    volume_WHD = values_DHW.transpose(2, 1, 0).astype(np.uint8 if is_mask else np.int16)
    nibabel.save(nibabel.Nifti1Image(volume_WHD, affine), path)


def hospital_series(head: Head, name: str, kernel: str) -> Iterator[pydicom.Dataset]:
    """The slices of a head with the header that a scanner writes.

    Args:
        head: the slices.
        name: of the series; another name gives another series.
        kernel: of the reconstruction.
    """
    for at, each in enumerate(head.slices):
        slice_ = deepcopy(each)
        series = f"{each.SeriesInstanceUID}.{name}"
        slice_.SeriesInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[series])
        slice_.StudyInstanceUID = pydicom.uid.generate_uid(
            entropy_srcs=[str(each.StudyInstanceUID)]
        )
        slice_.SOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[series, str(at)])
        slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID
        slice_.SOPClassUID = CTImageStorage
        slice_.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        slice_.SeriesDescription = name
        slice_.ConvolutionKernel = kernel
        slice_.SliceThickness = 5
        slice_.InstanceNumber = at + 1
        yield slice_
