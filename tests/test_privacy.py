"""Nothing that identifies a patient is written or printed, for any outcome of a file.

DICOM files full of distinctive strings go through every command that writes or logs.
All bytes that this leaves, and all lines it prints, are searched for the strings.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydicom import dcmread
from pydicom.uid import UID

from ichfast.dicom.acquisition import CONTRASTS, IMAGE_TYPES, KERNELS, SEXES, VENDORS
from ichfast.labels import CLASSES
from ichfast.prepare.pseudonyms import HASH_DIGITS
from ichfast.store.store import Store
from tests.conftest import write_dicom

NUM_PATIENTS, NUM_SLICES = 10, 30

TO_HAND_ON = (
    *("run/report.html", "model.pt2", "model.pt2.card.md", "submission.csv"),
    *("predictions.csv", "predictions.csv.sha256", "predictions.parquet"),
    "metrics.json",
)
"""Outputs that people pass on, which must not name their folders either."""

PATIENT, STUDY, SERIES = "MRN-8817263", "1.2.826.27182818.", "1.2.826.16180339."
SLICE = "1.2.826.31415926."
IDS = (PATIENT, STUDY, SERIES, SLICE)
"""How each id begins; a number follows."""

TAGS: dict[str, Any] = {
    "PatientName": "Quibblesworth^Zebulon",
    "OtherPatientNames": "Thistledown^Zebulon",
    "PatientBirthDate": "19230417",
    "PatientAddress": "7 Gargoyle Lane",
    "PatientTelephoneNumbers": "555-0199-771",
    "PatientComments": "arrived with Hortensia",
    "StudyDate": "20031109",
    "SeriesDate": "20031110",
    "AcquisitionDateTime": "20031111071113.421337",
    "StudyTime": "081357.421338",
    "AccessionNumber": "ACC7755019",
    "StudyID": "STUDY-31337",
    "InstitutionName": "Saint Ottoline Infirmary",
    "ReferringPhysicianName": "Fizzlewick^Ambrose",
    "OperatorsName": "Crumplehorn^Dorothea",
    "StudyDescription": "after a fall in Bramblewood",
    "ImageComments": "compare with Peregrine",
    "StationName": "CT-GRISELDA",
    "DeviceSerialNumber": "SN-424242Q",
    "FrameOfReferenceUID": "1.2.826.14142135.1",
    "SeriesDescription": "head of Wilfreda",
    "Manufacturer": "Tattersall^Jemima",
    "ManufacturerModelName": "Jemima Tattersall",
    "ConvolutionKernel": "Thaddeus",
    "ContrastBolusAgent": "asked for by Leopoldine",
}
KNOWN: dict[str, Any] = {
    "KVP": "120",
    "Exposure": "285",
    "SpacingBetweenSlices": "5",
    "PatientSex": "F",
    "PatientAge": "042Y",
    "SeriesNumber": "2",
}
"""Values that a store has."""
PRIVATE = "scanned for Bartholomew"
FILE_NAME = "Snodgrass_Wilhelmina"
STRINGS = (
    *(part for value in TAGS.values() for part in value.split("^")),
    *("ZETA VENDOR", PRIVATE, *FILE_NAME.split("_")),
)
"""What must not be found with --keep-ids either, except for names of files."""


def write_patient_file(path: Path, number: int, **changed: Any) -> None:
    """Write slice `number`, with everything planted in it."""
    hu_HW = np.random.default_rng(number).integers(-1000, 2000, (64, 64), np.int16)
    patient = number % NUM_PATIENTS
    write_dicom(
        path,
        f"{SLICE}{number}",
        hu_HW=changed.pop("hu_HW", hu_HW),
        **TAGS,
        **KNOWN,
        PatientID=f"{PATIENT}{patient}",
        StudyInstanceUID=f"{STUDY}{patient}",
        SeriesInstanceUID=f"{SERIES}{patient}",
        ImagePositionPatient=[0, 0, 5.0 * number],
    )
    file = dcmread(path)
    file.private_block(0x0029, "ZETA VENDOR", create=True).add_new(1, "LO", PRIVATE)
    for keyword, value in changed.items():
        if value is None:
            del file[keyword]
        else:
            setattr(file, keyword, value)
    file.save_as(path)


def write_rejects(folder: Path) -> set[str]:
    """Write a file for each way of being rejected; return the codes."""
    changes: dict[str, dict[str, Any]] = {
        "not-ct": {"Modality": "MR"},
        "localizer": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        "no-pixels": {"PixelData": None},
        "colour": {"PhotometricInterpretation": "PALETTE COLOR"},
        "truncated-pixels": {"PixelData": bytes(50)},
        "bad-header": {"RescaleSlope": None, "Rows": None},
        "too-large": {"Rows": 60_000, "Columns": 60_000},
        "duplicate-conflict": {"SOPInstanceUID": UID(f"{SLICE}0")},
    }
    for number, (code, changed) in enumerate(changes.items(), 100):
        path = folder / f"{FILE_NAME}_{code}.dcm"
        write_patient_file(path, number, **changed)
    write_patient_file(folder / f"{FILE_NAME}_syntax.dcm", 120)
    content = (folder / f"{FILE_NAME}_syntax.dcm").read_bytes()
    (folder / f"{FILE_NAME}_syntax.dcm").write_bytes(
        content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.77")
    )
    text = " ".join([*map(str, TAGS.values()), *IDS])
    (folder / f"{FILE_NAME}_letter.txt").write_text(text)
    (folder / f"{FILE_NAME}_empty.dcm").touch()
    (folder / f"{FILE_NAME}.zip").write_bytes(b"PK\3\4" + text.encode())
    return {*changes, "no-decoder", "not-dicom", "empty", "unreadable-archive"}


def write_labels(path: Path) -> None:
    """One row a slice, half of them with a bleed."""
    labels_NK = np.zeros((NUM_SLICES, len(CLASSES)), dtype=int)
    labels_NK[::2, [0, 1]] = labels_NK[::4, -1] = 1
    table = pd.DataFrame(labels_NK, columns=list(CLASSES))
    table.insert(0, "slice_id", [f"{SLICE}{k}" for k in range(NUM_SLICES)])
    table.to_csv(path, index=False)


RUN_EACH = """
import json, sys, traceback
from pathlib import Path
from ichfast.cli.main import cli

for command in json.loads(sys.argv[1]):
    print("$", command[0], file=sys.stderr)
    try:
        cli(["--debug", *command], standalone_mode=False)
    except Exception:
        traceback.print_exc()
    if command[0] == "inspect":
        with next(Path("store").glob("level-512/*.npy")).open("r+b") as shard:
            shard.write(b"damage")
"""
"""Runs commands, with all they have to say, and damages a shard after inspect."""


@dataclass(frozen=True)
class Traces:
    """What the commands left."""

    out: Path
    """The folder they wrote to."""

    said: str
    """All of stdout and stderr, of their worker processes as well."""

    codes: set[str]
    """Codes of the files that are to be rejected."""


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Traces:
    """Run every command that reads patients' files, or what became of them."""
    top = tmp_path_factory.mktemp("privacy")
    sources = [top / f"{FILE_NAME}-first", top / f"{FILE_NAME}-second"]
    for folder in sources:
        folder.mkdir()
    for number in range(NUM_SLICES):
        folder = sources[number >= NUM_SLICES - 3]
        write_patient_file(folder / f"{FILE_NAME}-{number:02}.dcm", number)
    codes = write_rejects(sources[0])
    (sources[1] / f"{FILE_NAME}.csv").write_text(PATIENT)
    write_labels(top / "labels.csv")
    out = top / "out"
    out.mkdir()
    prepare = ["prepare", str(sources[0]), "--workers", "1", "--store"]
    every = ["--max-rejected", "100%"]
    commands = [
        [*prepare, "store", "--labels", str(top / "labels.csv")],  # too many rejects
        [*prepare, "store", "--labels", str(top / "labels.csv"), *every],
        [*prepare, "store", str(sources[1]), "--append", *every],
        [*prepare, "kept", "--keep-ids", *every],
        [*prepare, "kept-none", "--keep-ids", *every, "--select", "kernel == bone"],
        [*prepare, "kept-one", "--keep-ids", *every, "--series", "one-per-study",
         "--select", "not kernel == bone and sex == F"],
        ["inspect", "store"],
        ["verify", "store"],  # is damaged
        ["verify", "store", "--repair", str(sources[0]), "--repair", str(sources[1])],
        ["verify", "store"],
        ["preview", "store", "preview.png", "--size", "32"],
        ["train", "--store", "store", "--out", "run", "--arch", "efficientnet-b0",
         "--size", "32", "--device", "cpu", "--set", "train.epochs=1",
         "--set", "data.batch_size=8"],
        ["predict", "run", "predictions.csv", "--device", "cpu"],
        ["predict", "run", "predictions.parquet", "--device", "cpu",
         "--store", "store"],
        ["evaluate", "predictions.csv", "--store", "store", "--by", "manufacturer",
         "--by", "model", "--by", "age_decade"],
        ["submit", "predictions.csv", "submission.csv"],
        ["report", "run", "--predictions", "predictions.csv", "--device", "cpu"],
        ["export", "run", "model.pt2"],
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", RUN_EACH, json.dumps(commands)],
        cwd=out,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=True,
    )
    return Traces(out, done.stdout, codes)


def texts_in(folder: Path) -> Iterator[tuple[str, str]]:
    """Name and text of each file; of tables the text that they pack, too."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = str(path.relative_to(folder))
            yield name, name + path.read_bytes().decode("latin-1")
            if path.suffix == ".parquet":
                table = pq.read_table(path)
                yield name, f"{table.schema.metadata} {table.to_pylist()}"


def found_in(text: str, strings: tuple[str, ...]) -> list[str]:
    return [string for string in strings if string in text]


@pytest.mark.slow
def test_every_command_did_what_it_is_searched_for(traces: Traces) -> None:
    said = [line for line in traces.said.splitlines() if line.startswith("ichfast.")]
    assert [line.partition(":")[0] for line in said] == [
        "ichfast.errors.SourceError",  # --max-rejected
        "ichfast.errors.SourceError",  # --select keeps nothing
        "ichfast.errors.StoreError",  # the damage
    ], traces.said
    assert '"repaired": ["level-512/' in traces.said
    rejected = pd.read_csv(traces.out / "store" / "rejected.csv")
    assert set(rejected["reason"]) == traces.codes
    with Store(traces.out / "store") as store:
        assert len(store) == NUM_SLICES
    for name in ("store.png", "preview.png", *TO_HAND_ON):
        assert (traces.out / name).stat().st_size > 0


@pytest.mark.slow
def test_no_string_of_a_header_and_no_id_is_written(traces: Traces) -> None:
    found = {
        name: strings
        for name, text in texts_in(traces.out)
        if not name.startswith("kept")
        if (strings := found_in(text, (*STRINGS, *IDS)))
    }
    assert found == {}


@pytest.mark.slow
def test_what_is_handed_on_names_no_folder_of_this_machine(traces: Traces) -> None:
    folders = (str(traces.out), str(Path(__file__).parents[1]), sys.prefix)
    texts = dict(texts_in(traces.out))
    assert {name: found_in(texts[name], folders) for name in TO_HAND_ON} == {
        name: [] for name in TO_HAND_ON
    }


HASH = f"[0-9a-f]{{{HASH_DIGITS}}}"

TEXT_COLUMNS = {
    **dict.fromkeys(("slice_id", "patient", "study", "series"), HASH),
    "transfer_syntax_uid": "[0-9.]*",
    "quirks": "[a-z0-9_;-]*",
    "manufacturer": "|".join(VENDORS),
    "kernel": "|".join(KERNELS),
    "contrast": "|".join(CONTRASTS),
    "sex": "|".join(SEXES),
    "image_type": "|".join(IMAGE_TYPES),
    **dict.fromkeys(("model", "kernel_name"), "no text of these files"),
}
"""What a text in each column looks like."""


@pytest.mark.slow
def test_every_column_of_a_store_is_a_number_or_a_checked_text(traces: Traces) -> None:
    rows = pq.read_table(traces.out / "store" / "slices.parquet")
    texts = {f.name for f in rows.schema if not is_number(f.type)}
    assert texts == TEXT_COLUMNS.keys()
    wrong = {
        name: value
        for name, form in TEXT_COLUMNS.items()
        for value in set(rows[name].to_pylist()) - {None}
        if not re.fullmatch(form, value)
    }
    assert wrong == {}
    assert {rows[name][0].as_py() for name in ("manufacturer", "sex")} == {"other", "F"}
    assert rows["age_decade"].to_pylist() == [40] * NUM_SLICES


def is_number(kind: pa.DataType) -> bool:
    return any(
        check(kind)
        for check in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    )


@pytest.mark.slow
def test_no_string_of_a_header_and_no_id_is_said(traces: Traces) -> None:
    assert found_in(traces.said, (*STRINGS, *IDS)) == []


@pytest.mark.slow
def test_kept_ids_are_all_that_is_kept(traces: Traces) -> None:
    with Store(traces.out / "kept") as store:
        for column, prefix in zip(
            ("patient", "study", "series", "slice_id"), IDS, strict=True
        ):
            assert store.table[column].str.startswith(prefix).all()
    found = {
        name: strings
        for name, text in texts_in(traces.out / "kept")
        if (strings := found_in(text, STRINGS))
    }
    # With ids, rejected.csv names the files; their names are the clinic's own.
    assert found == {"rejected.csv": FILE_NAME.split("_")}


@pytest.mark.slow
def test_the_key_is_its_owners_and_not_in_the_store(traces: Traces) -> None:
    [key] = traces.out.rglob("*.key")
    assert key == traces.out / "store.key"
    assert key.stat().st_mode & 0o777 == 0o600
    secret = key.read_bytes().decode("latin-1")
    others = {name for name, text in texts_in(traces.out) if secret in text}
    assert others == {"store.key"}
