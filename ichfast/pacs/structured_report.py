"""The structured report of a study (DICOM TID 1500), through highdicom.

It has a measurement group for each class:

    Finding              the class
    Source               every slice of the study that was predicted
    Probability          of the study, inferred from the slice with the highest one
    Threshold Value      from which a slice is called positive, where the run has one
    Slice at threshold   whether a slice reaches it

Each group names the algorithm: the version of ichfast, the SHA-256 of each checkpoint,
and how it predicted. Of the codes, those of the subtypes and of the last row are
private (`SCHEME`).

The document is preliminary and unverified, and a comment says that it is no medical
device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from highdicom import sr
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from ichfast import __version__
from ichfast.pacs.attributes import NOTICE, identify, made_by
from ichfast.pacs.findings import Algorithm, Finding
from ichfast.pacs.instances import Instance

SCHEME = "99ICHFAST"
"""Designator of the private coding scheme."""

SERIES_NUMBER = 9801

_UNIT = codes.UCUM.NoUnits

_AT_THRESHOLD = sr.CodedConcept("at-threshold", SCHEME, "Slice at threshold")


def make_report(
    findings: Sequence[Finding],
    instances: Sequence[Instance],
    algorithm: Algorithm,
    *,
    keep_ids: bool,
) -> Dataset:
    """Make the report of a study.

    Args:
        findings: one for each class.
        instances: the slices of the study that were predicted, at least one.
        algorithm: what predicted.
        keep_ids: write the patient's attributes.
    """
    report = sr.MeasurementReport(
        observation_context=_observer(algorithm),
        procedure_reported=codes.LN.HeadCT,
        imaging_measurements=[
            _group(finding, instances, algorithm) for finding in findings
        ],
    )
    report[0].ContentSequence.append(
        sr.TextContentItem(
            codes.DCM.Comment,
            NOTICE,
            relationship_type=sr.RelationshipTypeValues.CONTAINS,
        )
    )
    document = sr.ComprehensiveSR(
        evidence=[_evidence(each) for each in instances],
        content=report[0],
        series_number=SERIES_NUMBER,
        is_complete=True,
        coding_schemes=[CodingSchemeIdentificationItem(SCHEME, name="ichfast")],
        **made_by(),
    )
    identify(document, instances[0].header, keep_ids=keep_ids)
    return document


def concept_of(class_name: str) -> Any:
    """The code of a class."""
    if class_name == "any":
        return codes.SCT.IntracranialHemorrhage
    return sr.CodedConcept(class_name, SCHEME, f"{class_name} hemorrhage".capitalize())


def _observer(algorithm: Algorithm) -> Any:
    return sr.ObservationContext(
        observer_device_context=sr.ObserverContext(
            observer_type=codes.DCM.Device,
            observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
                uid=generate_uid(entropy_srcs=[*algorithm.digests, __version__]),
                name="ichfast",
                model_name=f"ichfast {__version__}",
            ),
        )
    )


def _group(
    finding: Finding, instances: Sequence[Instance], algorithm: Algorithm
) -> Any:
    measured = [(codes.DCM.Probability, finding.probability)]
    evaluations = []
    if finding.threshold is not None:
        measured.append((codes.DCM.ThresholdValue, finding.threshold))
        is_reached = finding.peak_probability >= finding.threshold
        answer = codes.SCT.Yes if is_reached else codes.SCT.No
        evaluations.append(sr.QualitativeEvaluation(_AT_THRESHOLD, answer))
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(generate_uid(), finding.class_name),
        finding_type=concept_of(finding.class_name),
        algorithm_id=sr.AlgorithmIdentification(
            name="ichfast", version=__version__, parameters=algorithm.parameters
        ),
        measurements=[
            sr.Measurement(
                name,
                float(value),
                _UNIT,
                referenced_images=[
                    _reference(sr.SourceImageForMeasurement, finding.peak)
                ]
                if name == codes.DCM.Probability
                else None,
            )
            for name, value in measured
        ],
        qualitative_evaluations=evaluations,
        source_images=[
            _reference(sr.SourceImageForMeasurementGroup, each) for each in instances
        ],
    )


def _reference(kind: Any, instance: Instance) -> Any:
    return kind(
        instance.header.sop_class_uid,
        instance.header.sop_instance_uid,
        None if instance.frame is None else [instance.frame],
    )


def _evidence(instance: Instance) -> Dataset:
    """An image as highdicom takes it, without what belongs to a patient."""
    evidence = Dataset()
    evidence.SOPClassUID = instance.header.sop_class_uid
    evidence.SOPInstanceUID = instance.header.sop_instance_uid
    evidence.StudyInstanceUID = instance.header.study_uid
    evidence.SeriesInstanceUID = instance.header.series_uid
    for keyword in (
        *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
        *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
    ):
        setattr(evidence, keyword, None)
    return evidence
