"""Prepare stores axial CT slices, and counts the other images of a study by code."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from ichfast.cli.main import cli
from ichfast.errors import StoreError
from ichfast.prepare import prepare
from ichfast.prepare.prepare import prepare_store
from ichfast.prepare.repair import repair_store
from ichfast.report.overview import describe_store
from ichfast.store.store import Store
from ichfast.system.checksums import with_checksum
from tests.conftest import contents, random_hu, write_dicom
from tests.dicom.real_files import HUNT, needs_hunt

run = partial(prepare_store, labels=None, workers=1, keep_ids=True, max_rejected="0")


@needs_hunt
@pytest.mark.slow
def test_a_hospital_study_becomes_its_axial_slices(tmp_path: Path) -> None:
    report = run([HUNT / "hospital_study"], tmp_path / "store")
    assert report.slices == 30
    assert report.rejected == {"derived": 26, "not-ct": 1, "not-hu": 5}


@needs_hunt
@pytest.mark.slow
def test_a_localizer_among_frames_is_counted(tmp_path: Path) -> None:
    report = run([HUNT / "enh_frame_localizer.dcm"], tmp_path / "store")
    assert report.slices == 1
    assert report.rejected == {"localizer": 1}
    rejected = pd.read_csv(tmp_path / "store" / "rejected.csv")
    assert list(rejected["detail"]) == [
        "1 of 2 frames: FrameType (0008,9007) has LOCALIZER"
    ]


# ---- --accept ----


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Four slices, two reformats, one of them coronal, and a localizer."""
    folder = tmp_path / "study"
    folder.mkdir()
    derived = {"ImageType": ["DERIVED", "SECONDARY", "MPR"]}
    for number in range(4):
        write_dicom(folder / f"a{number}", f"ID_{number}", hu_HW=random_hu(number))
    write_dicom(folder / "b", "ID_4", hu_HW=random_hu(4), **derived)
    coronal = {**derived, "ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}
    write_dicom(folder / "c", "ID_5", hu_HW=random_hu(5), **coronal)
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    write_dicom(folder / "d", "ID_6", hu_HW=random_hu(6), **scout)
    return folder


def test_accepted_images_are_stored_and_named_in_the_quirks(
    study: Path, tmp_path: Path
) -> None:
    report = run([study], tmp_path / "store", accept=("derived", "not-axial"))
    assert (report.slices, report.rejected) == (6, {"localizer": 1})
    with Store(tmp_path / "store") as store:
        quirks = dict(store.table[["slice_id", "quirks"]].astype(str).to_numpy())
        overview = describe_store(store)
    assert (quirks["ID_3"], quirks["ID_4"]) == ("", "derived")
    assert quirks["ID_5"] == "derived;not-axial"
    assert overview.quirks == {"derived": 2, "not-axial": 1}
    assert overview.rejected == {"localizer": 1}


def test_nothing_is_accepted_by_default(study: Path, tmp_path: Path) -> None:
    report = run([study], tmp_path / "store")
    assert (report.slices, report.rejected) == (4, {"derived": 2, "localizer": 1})


def test_a_store_that_was_made_before_these_options_goes_on(
    study: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    run([study], store)
    document = json.loads((store / "store.json").read_bytes())
    for name in ("accept", "select", "series"):
        del document["plan"][name]
    del document["crc32c"]
    (store / "store.json").write_text(with_checksum(document))
    assert run([study], store).already_finished
    assert run([study], store, append=True).slices == 4
    (shard,) = (store / "level-512").iterdir()
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    assert len(repair_store(store, [study]).repaired) == 1
    with pytest.raises(StoreError, match=r"accept \(nothing, now derived\)"):
        run([study], store, accept=("derived",))


@pytest.mark.parametrize(
    ("code", "near"), [("derivd", "did you mean derived"), ("colour", "known are")]
)
def test_only_codes_of_images_can_be_accepted(
    study: Path, tmp_path: Path, code: str, near: str
) -> None:
    with pytest.raises(StoreError, match=f"unknown code to accept '{code}'; .*{near}"):
        run([study], tmp_path / "store", accept=("derived", code))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("is_finished", [True, False])
@pytest.mark.parametrize("append", [True, False])
def test_a_store_is_not_continued_with_other_accepted_codes(
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_finished: bool,
    append: bool,
) -> None:
    if is_finished:
        run([study], tmp_path / "store", accept=("derived", "localizer"))
    else:
        with monkeypatch.context() as patch:
            patch.setattr(prepare, "merge", interrupt)
            with pytest.raises(StoreError, match="the same command continues"):
                run([study], tmp_path / "store", accept=("derived", "localizer"))
    write_dicom(study / "e", "ID_7", hu_HW=random_hu(7))
    for accept in ((), ("derived",)):
        with pytest.raises(StoreError, match=r"accept \(derived,localizer, now"):
            run([study], tmp_path / "store", accept=accept, append=append)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_append_with_the_same_codes_in_another_order_is_made(
    study: Path, tmp_path: Path
) -> None:
    run([study], tmp_path / "store", accept=("localizer", "derived", "not-axial"))
    write_dicom(study / "e", "ID_7", hu_HW=random_hu(7))
    accept = ("not-axial", "derived", "localizer", "derived")
    assert run([study], tmp_path / "store", accept=accept, append=True).slices == 8


@pytest.mark.slow
def test_a_repair_decodes_the_accepted_images_again(
    study: Path, tmp_path: Path
) -> None:
    run([study], tmp_path / "store", accept=("derived", "localizer", "not-axial"))
    before = contents(tmp_path / "store")
    shard = tmp_path / "store" / "level-512" / "00000-24x32.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 4
    shard.write_bytes(content)
    repair_store(tmp_path / "store", [study])
    assert contents(tmp_path / "store") == before


def test_the_command_takes_codes_separated_by_commas(
    study: Path, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    options = ["--max-rejected", "100%", "--accept", "derived,not-axial"]
    command = ["prepare", str(study), "--store", str(out), "--workers", "1", *options]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    assert '"rejected": {"localizer": 1}' in result.stdout
    wrong = CliRunner().invoke(cli, ["prepare", str(study), "--accept", "mip"])
    assert wrong.exit_code == 1
    assert "unknown code to accept 'mip'" in wrong.stderr


def test_a_store_that_is_predicted_has_its_images_already(tmp_path: Path) -> None:
    out = str(tmp_path / "p.csv")
    command = ["predict", "run", out, "--store", "store", "--accept", "derived"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 2
    assert "--accept goes with --dicom" in result.stderr
