"""Documents parse again, refer to the right slices, and say no more than they may."""

from __future__ import annotations

import errno
import logging
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage

from ichfast.errors import PredictionError
from ichfast.evaluation.predictions import probs_NK, read_predictions
from ichfast.evaluation.study_table import join_slices
from ichfast.labels import CLASSES
from ichfast.pacs.file_header import FileHeader, read_file_header
from ichfast.pacs.findings import Algorithm, Finding
from ichfast.pacs.instances import Instance
from ichfast.runs.record import read_record, write_record
from ichfast.runs.trained import checkpoint_digest
from tests.cli import test_cli
from tests.cli.test_cli import ok, refused
from tests.conftest import random_hu, write_dicom
from tests.evaluation.planted import calibration_of, plant
from tests.nifti.volumes import head_hu, nifti
from tests.predict.test_series_runs import series_run
from tests.runs.trainedruns import write_folds
from tests.sources.dicomweb_server import StubServer, serving
from tests.test_privacy import KNOWN, TAGS

highdicom = pytest.importorskip("highdicom", reason="needs the extra pacs")

from highdicom.sr import srread
from pydicom.sr.codedict import codes

from ichfast.pacs.attributes import NOTICE
from ichfast.pacs.documents import _write as write_document
from ichfast.pacs.documents import check_folder
from ichfast.pacs.key_image import CAPTION_ROWS, SIDE, draw_map, make_key_image
from ichfast.pacs.structured_report import concept_of, make_report

IDENTITY = {
    "PatientID": "MRN-1",
    "PatientName": "M\u00fcller^J\u00f6rg",
    "PatientBirthDate": "19500101",
    "PatientSex": "M",
    "StudyDate": "20200229",
}
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
ALGORITHM = Algorithm(digests=["ab" * 32], settings={"tta": "flips"})


def instance_of(number: int, frame: int | None = None, **changed: Any) -> Instance:
    header = FileHeader(
        CTImageStorage, f"1.99.{number}", "1.77", "1.88", 1, AXIAL, IDENTITY
    )  # fmt: skip
    return Instance(replace(header, **changed), frame)


def findings_of(peak: Instance, threshold: float | None = None) -> list[Finding]:
    return [
        Finding(
            class_name=name,
            probability=0.1 + k / 10,
            peak=peak,
            peak_probability=0.1 + k / 10,
            threshold=threshold,
        )
        for k, name in enumerate(CLASSES)
    ]


def written(document: Dataset, path: Path) -> Any:
    document.save_as(path)
    return dcmread(path)


def referenced(items: Any) -> list[str]:
    return [item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in items]


# ---- one document ----


def test_a_report_has_a_group_for_each_class(tmp_path: Path) -> None:
    instances = [instance_of(k) for k in range(5)]
    made = make_report(
        findings_of(instances[3], threshold=0.3), instances, ALGORITHM, keep_ids=True
    )
    written(made, tmp_path / "a.sr.dcm")
    report = srread(tmp_path / "a.sr.dcm")
    every = [each.header.sop_instance_uid for each in instances]
    assert [uid for _, _, uid, _ in report.get_evidence()] == every
    groups = report.content.get_image_measurement_groups()
    assert [group.finding_type for group in groups] == [*map(concept_of, CLASSES)]
    for k, group in enumerate(groups):
        assert referenced(group.source_images) == every
        measured = {each.name: each for each in group.get_measurements()}
        probability = measured[codes.DCM.Probability]
        assert probability.value == pytest.approx(0.1 + k / 10)
        assert referenced(probability.referenced_images) == [every[3]]
        assert measured[codes.DCM.ThresholdValue].value == 0.3
        [answer] = group.get_qualitative_evaluations()
        assert answer[0].value == (codes.SCT.Yes if k >= 2 else codes.SCT.No)


def test_a_report_names_what_predicted_and_that_it_is_no_medical_device(
    tmp_path: Path,
) -> None:
    made = make_report(
        findings_of(instance_of(0)), [instance_of(0)], ALGORITHM, keep_ids=True
    )
    report = written(made, tmp_path / "a.sr.dcm")
    content = (tmp_path / "a.sr.dcm").read_bytes()
    assert f"checkpoint sha256:{'ab' * 32}".encode() in content
    assert b"tta=flips" in content
    assert codes.DCM.ThresholdValue.meaning.encode() not in content
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert report.ContentSequence[-1].TextValue == NOTICE
    assert report.SeriesDescription == "Research only. Not a medical device"
    assert (report.VerificationFlag, report.PreliminaryFlag) == (
        "UNVERIFIED",
        "PRELIMINARY",
    )


def test_frames_are_referred_to_by_number(tmp_path: Path) -> None:
    enhanced = {"sop_class_uid": EnhancedCTImageStorage, "num_frames": 3}
    frames = [instance_of(7, frame, **enhanced) for frame in (1, 2, 3)]
    made = make_report(findings_of(frames[1]), frames, ALGORITHM, keep_ids=True)
    written(made, tmp_path / "a.sr.dcm")
    report = srread(tmp_path / "a.sr.dcm")
    assert [uid for _, _, uid, _ in report.get_evidence()] == ["1.99.7"]
    group = report.content.get_image_measurement_groups()[0]
    [peak] = group.get_measurements()[0].referenced_images
    assert peak.referenced_frame_numbers == [2]
    image = make_key_image(
        np.zeros((4, 4, 3), np.uint8), frames[2], "map", keep_ids=True
    )
    assert image.SourceImageSequence[0].ReferencedFrameNumber == 3


def test_each_slice_is_referred_to_in_its_series(tmp_path: Path) -> None:
    instances = [instance_of(k, series_uid=f"1.88.{k % 2}") for k in range(4)]
    made = make_report(findings_of(instances[1]), instances, ALGORITHM, keep_ids=True)
    written(made, tmp_path / "a.sr.dcm")
    evidence = srread(tmp_path / "a.sr.dcm").get_evidence()
    assert sorted((uid, series) for _, series, uid, _ in evidence) == [
        (f"1.99.{k}", f"1.88.{k % 2}") for k in range(4)
    ]


@pytest.mark.parametrize("kind", ["report", "key image"])
def test_the_patient_is_in_a_document_only_if_ids_are_kept(
    tmp_path: Path, kind: str
) -> None:
    def made(*, keep_ids: bool) -> Any:
        one = instance_of(0)
        document = (
            make_report(findings_of(one), [one], ALGORITHM, keep_ids=keep_ids)
            if kind == "report"
            else make_key_image(
                np.zeros((4, 4, 3), np.uint8), one, "map", keep_ids=keep_ids
            )
        )
        return written(document, tmp_path / "a.dcm")

    kept, removed = made(keep_ids=True), made(keep_ids=False)
    assert {name: str(kept[name].value) for name in IDENTITY} == IDENTITY
    assert "PatientIdentityRemoved" not in kept
    assert not any(removed[name].value for name in IDENTITY)
    assert removed.PatientIdentityRemoved == "YES"
    for document in (kept, removed):
        assert document.StudyInstanceUID == "1.77"
        assert document.SeriesInstanceUID != "1.88"
        assert not document.ReferringPhysicianName


def test_a_key_image_shows_the_slice_and_the_map(tmp_path: Path) -> None:
    grey_HW = np.full((20, 20), 100, np.uint8)
    map_hw = np.zeros((2, 2), np.float32)
    map_hw[0, 1] = 7.0
    picture = draw_map(grey_HW, map_hw, "caption")
    assert picture.shape == (CAPTION_ROWS + SIDE, 2 * SIDE, 3)
    assert picture[:CAPTION_ROWS].max() > 128  # letters
    plain, mapped = np.split(picture[CAPTION_ROWS:], 2, axis=1)
    assert (plain == 100).all()
    assert (mapped[-9, 9] == 100).all()
    assert (mapped[9, -9] != 100).any()
    tilted = (0.0, -1.0, 0.0, 0.2, 0.0, -0.98)
    one = instance_of(4, orientation=tilted)
    image = written(
        make_key_image(picture, one, "what it shows", keep_ids=True), tmp_path / "a.dcm"
    )
    np.testing.assert_array_equal(image.pixel_array, picture)
    source = image.SourceImageSequence[0]
    assert source.ReferencedSOPInstanceUID == "1.99.4"
    assert source.ReferencedSOPClassUID == CTImageStorage
    assert image.PatientOrientation == ["A", "F"]
    assert image.DerivationDescription == "what it shows"
    assert (image.ImageComments, image.ConversionType) == (NOTICE, "WSD")
    one = instance_of(4, orientation=())
    assert not make_key_image(picture, one, "", keep_ids=True).PatientOrientation


# ---- headers ----


@pytest.mark.parametrize(
    ("charsets", "name"),
    [
        (["ISO_IR 100"], "M\u00fcller^J\u00f6rg"),
        (["ISO_IR 192"], "Wang^XiaoDong=\u738b^\u5c0f\u6771"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce"),
    ],
)
def test_names_of_any_character_set_are_kept(
    tmp_path: Path, charsets: list[str], name: str
) -> None:
    write_dicom(
        tmp_path / "a.dcm", "1.99.1", SpecificCharacterSet=charsets, PatientName=name
    )
    header = read_file_header((tmp_path / "a.dcm").read_bytes())
    assert header
    assert header.identity["PatientName"] == name
    one = Instance(header, None)
    for made in (
        make_report(findings_of(one), [one], ALGORITHM, keep_ids=True),
        make_key_image(np.zeros((4, 4, 3), np.uint8), one, "map", keep_ids=True),
    ):
        document = written(made, tmp_path / "b.dcm")
        assert document.PatientName == name
        assert document.SpecificCharacterSet == "ISO_IR 192"


def test_a_header_has_no_more_than_a_pacs_needs(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", "1.99.1", **TAGS, **KNOWN)
    header = read_file_header((tmp_path / "a.dcm").read_bytes())
    assert header
    assert header.has_uids
    expected = {name: TAGS[name] for name in (
        "PatientName", "PatientBirthDate", "StudyDate", "StudyTime", "AccessionNumber",
        "StudyID",
    )}  # fmt: skip
    assert header.identity == {**expected, "PatientID": "MRN-4711", "PatientSex": "F"}


def test_values_that_dicom_forbids_are_copied_and_not_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    forbidden: dict[str, Any] = {
        "PatientID": "Secret\\2",
        "PatientName": "Secret" * 20,
        "PatientBirthDate": "Secret",
        "PatientSex": "Secret",
        "StudyDate": "29990231",
        "StudyTime": "Secret",
        "StudyID": "Secret" * 7,
        "AccessionNumber": "Secret" * 7,
    }
    with disable_value_validation():
        write_dicom(tmp_path / "a.dcm", "1.99.1", **forbidden)
    header = read_file_header((tmp_path / "a.dcm").read_bytes())
    assert header
    one = Instance(header, None)
    made = make_report(findings_of(one), [one], ALGORITHM, keep_ids=True)
    write_document(tmp_path / "b.dcm", made)  # a warning is an error in tests
    with disable_value_validation():
        document = dcmread(tmp_path / "b.dcm")
        for name, value in forbidden.items():
            assert document.get_item(name).value.decode().strip() == value
    assert "Secret" not in caplog.text


@pytest.mark.parametrize(
    "changed",
    [{"NumberOfFrames": 10**6}, {"PatientID": "x" * 300}, {"SOPInstanceUID": "ID_1"}],
)
def test_a_header_that_documents_cannot_refer_to_is_none(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    slice_id = changed.pop("SOPInstanceUID", "1.99.1")
    write_dicom(tmp_path / "a.dcm", slice_id, **changed)
    header = read_file_header((tmp_path / "a.dcm").read_bytes())
    assert header is None or not header.has_uids


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PredictionError, match=r"documents to \S+: File exists; n"):
        check_folder(tmp_path / "file")
    check_folder(tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder").is_dir()


# ---- the command ----


@pytest.fixture(scope="module")
def run(tiny_store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is calibrated, beside another of the same store that is not."""
    first, _ = write_folds(tmp_path_factory.mktemp("runs"), tiny_store_path)
    calibration = calibration_of(plant(20), factor=3.0, shift=1.0)
    write_record(first, replace(read_record(first), calibration=calibration))
    return first


def predict(*arguments: str | Path) -> dict[str, Any]:
    return ok("predict", *arguments, "--device", "cpu", "--batch-size", "8")


def write_studies(folder: Path) -> None:
    """A study with everything planted, and one for each reason to have no document."""
    for k in range(9):
        of_study = {
            "StudyInstanceUID": f"1.77.{k // 3}",
            "SeriesInstanceUID": f"1.88.{k // 3}",
            "PatientID": f"MRN-{k // 3}" if k < 8 else "MRN-9",
            "ImagePositionPatient": [0, 0, 5.0 * k],
        }
        slice_id = f"1.99.{k}" if k // 3 != 1 else f"ID_{k}"
        name = folder / f"Snodgrass_{k}.dcm"
        write_dicom(name, slice_id, hu_HW=random_hu(k), **{**TAGS, **KNOWN, **of_study})
    # Of these the second is rejected, and nobody knows which patient is right.
    for number, patient in enumerate(("MRN-3", "MRN-4")):
        of_study = {"StudyInstanceUID": "1.77.3", "PatientID": patient}
        name = folder / f"twin_{number}.dcm"
        write_dicom(name, "1.99.9", hu_HW=random_hu(number), **of_study)
    (folder / "volume.nii").write_bytes(nifti(head_hu((32, 24, 3), 0)))


@pytest.mark.slow
def test_documents_hold_the_identity_only_if_ids_are_kept(
    run: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    write_studies(source)
    command = (
        run,
        out / "p.csv",
        "--dicom",
        source,
        "--sr",
        out / "sr",
        "--key-images",
    )
    made = predict(*command)
    reasons = {"no-header": 1, "no-uid": 1, "patients": 2}
    assert (made["reports"], made["key_images"]) == (1, 1)
    assert made["no_document"] == reasons
    files = sorted((out / "sr").iterdir())
    assert [file.name for file in files] == ["1.77.0.key.dcm", "1.77.0.sr.dcm"]
    planted = {part for text in TAGS.values() for part in str(text).split("^")}
    planted |= {"MRN-0", "Snodgrass"}
    for file in files:
        assert not [each for each in planted if each.encode() in file.read_bytes()]
        assert dcmread(file).PatientIdentityRemoved == "YES"
    predict(*command[:-1])
    assert [file.name for file in (out / "sr").iterdir()] == ["1.77.0.sr.dcm"]
    options = ("--keep-ids", "--device", "cpu", "--batch-size", "8")
    result = test_cli.run("predict", *command, *options)
    assert result.exit_code == 0
    may = {"MRN-0", *(
        part
        for name in (
            *("PatientName", "PatientBirthDate", "StudyDate", "StudyTime"),
            *("AccessionNumber", "StudyID"),
        )
        for part in TAGS[name].split("^")
    )}  # fmt: skip
    for file in files:
        content = file.read_bytes()
        assert {each for each in planted if each.encode() in content} == may
        assert dcmread(file).PatientID == "MRN-0"
    said = capfd.readouterr()
    shown = said.out + said.err + result.output + caplog.text
    assert not [each for each in (*planted, "1.77", "1.99") if each in shown]


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some files of two real studies."""
    folder = Path(__file__).parents[3] / "shared" / "data" / "headct_series"
    if not folder.is_dir():
        pytest.skip("the real series of ../shared/data are not here")
    path = tmp_path_factory.mktemp("heads")
    for archive in sorted(folder.glob("*.tar.xz")):
        with tarfile.open(archive) as tar:
            members = [each for each in tar if each.isfile()][:7]
            for number, member in enumerate(members):
                opened = tar.extractfile(member)
                assert opened
                file = path / f"{archive.stem}-{number}.dcm"
                file.write_bytes(opened.read())
    return path


@pytest.mark.slow
def test_documents_of_real_studies_parse_again_and_refer_to_their_slices(
    run: Path, heads: Path, tmp_path: Path
) -> None:
    out, sr = tmp_path / "p.parquet", tmp_path / "sr"
    predict(run, out, "--dicom", heads, "--sr", sr, "--key-images", "--keep-ids")
    table = read_predictions(out)
    files = {dcmread(file).SOPInstanceUID: dcmread(file) for file in heads.iterdir()}
    calibration = read_record(run).calibration
    assert calibration
    assert table["study"].nunique() == 2
    for study, slices in table.groupby("study"):
        report = srread(sr / f"{study}.sr.dcm")
        evidence = report.get_evidence()
        assert sorted(uid for _, _, uid, _ in evidence) == sorted(slices["slice_id"])
        for study_uid, series_uid, uid, class_uid in evidence:
            file = files[uid]
            assert (study_uid, series_uid, class_uid) == (
                *(file.StudyInstanceUID, file.SeriesInstanceUID, file.SOPClassUID),
            )
        groups = report.content.get_image_measurement_groups()
        for k, group in enumerate(groups):
            probability, threshold = group.get_measurements()
            probs_N = probs_NK(slices)[:, k]
            assert probability.value == pytest.approx(probs_N.max())
            peak = slices["slice_id"].iloc[int(probs_N.argmax())]
            assert referenced(probability.referenced_images) == [peak]
            chosen = calibration.classes[k].threshold
            assert chosen
            assert threshold.value == chosen.probability
        assert checkpoint_digest(run).encode() in (sr / f"{study}.sr.dcm").read_bytes()
        image = dcmread(sr / f"{study}.key.dcm")
        peak = slices["slice_id"].iloc[int(slices["any"].argmax())]
        assert image.SourceImageSequence[0].ReferencedSOPInstanceUID == peak
        assert image.pixel_array.shape == (CAPTION_ROWS + SIDE, 2 * SIDE, 3)
        for document in (report, image):
            assert document.StudyInstanceUID == study
            assert document.PatientID == files[peak].PatientID


@pytest.mark.slow
def test_an_ensemble_has_no_thresholds(run: Path, heads: Path, tmp_path: Path) -> None:
    runs = (run, run.with_name("fold1"))
    predict(*runs, tmp_path / "p.csv", "--dicom", heads, "--sr", tmp_path / "sr")
    for file in (tmp_path / "sr").iterdir():
        content = file.read_bytes()
        assert codes.DCM.ThresholdValue.meaning.encode() not in content
        assert all(checkpoint_digest(each).encode() in content for each in runs)


@pytest.mark.slow
def test_a_report_of_a_series_run_names_it_and_its_backbones(
    run: Path, heads: Path, tmp_path: Path
) -> None:
    runs = [run, run.with_name("fold1")]
    series = series_run(tmp_path, runs, 1)
    out, sr = tmp_path / "p.parquet", tmp_path / "sr"
    made = predict(series, out, "--dicom", heads, "--sr", sr, "--key-images")
    assert (made["reports"], made["key_images"]) == (2, 2)
    digests = [f"sha256:{checkpoint_digest(each)}" for each in (series, *runs)]
    table = join_slices(read_predictions(out), "study").set_index("study")
    for file in sr.glob("*.sr.dcm"):
        report = srread(file)
        assert [
            each for each in digests if each.encode() not in file.read_bytes()
        ] == []
        for group in report.content.get_image_measurement_groups():
            [probability] = group.get_measurements()
            name = group.tracking_identifier
            expected = table.loc[report.StudyInstanceUID, name]
            assert probability.value == pytest.approx(expected)


@pytest.mark.slow
def test_studies_of_a_server_are_predicted_like_files(
    run: Path, heads: Path, tmp_path: Path
) -> None:
    pytest.importorskip("dicomweb_client", reason="needs the extra pacs")
    studies: dict[str, dict[str, bytes]] = {}
    for file in heads.iterdir():
        header = dcmread(file, stop_before_pixels=True)
        key = f"{header.SeriesInstanceUID}/{header.SOPInstanceUID}.dcm"
        studies.setdefault(header.StudyInstanceUID, {})[key] = file.read_bytes()
    listed = tmp_path / "studies.txt"
    listed.write_text("\n".join(studies))
    predict(run, tmp_path / "a.csv", "--dicom", heads, "--keep-ids")
    with serving(StubServer(studies)) as stub:
        options = ("--dicom", stub.url, "--studies", listed, "--sr", tmp_path / "sr")
        made = predict(run, tmp_path / "b.csv", *options, "--keep-ids")
    assert made["reports"] == 2
    ours, theirs = (
        read_predictions(tmp_path / name).sort_values("slice_id", ignore_index=True)
        for name in ("a.csv", "b.csv")
    )
    pd.testing.assert_frame_equal(ours, theirs)


@pytest.mark.slow
def test_documents_that_cannot_be_written_leave_the_predictions(
    run: Path, heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.dcm"
    text.write_text("no DICOM")

    def fill_the_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Dataset, "save_as", fill_the_disk)
    out, sr = tmp_path / "p.csv", tmp_path / "sr"
    command = ("predict", run, out, "--dicom", heads, "--dicom", text, "--sr", sr)
    said = refused(*command, "--device", "cpu")
    assert "sr.dcm: No space left on device" in said
    assert len(read_predictions(out)) == 14
    assert (tmp_path / "p.csv.rejected.csv").exists()
    assert list(sr.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--studies", "list"), "--studies goes with --dicom dicomweb://HOST/PATH"),
        (("--sr", "sr"), "--sr goes with --dicom"),
        (("--dicom", ".", "--key-images"), "--key-images goes with --sr DIR"),
    ],
)
def test_documents_need_files_and_a_folder(
    tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "p.csv"
    assert message in refused("predict", tmp_path, out, *options, status=2)


def test_the_extra_is_named_before_the_work_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ichfast.pacs.documents.find_spec", lambda _: None)
    command = ("predict", tmp_path, tmp_path / "p.csv", "--dicom", tmp_path)
    said = refused(*command, "--sr", tmp_path / "sr")
    assert said.endswith("need highdicom; pip install 'ichfast[pacs]'")
    assert not (tmp_path / "sr").exists()
