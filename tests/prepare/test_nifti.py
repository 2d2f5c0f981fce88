"""Volumes in folders and archives become stores like DICOM files do."""

from __future__ import annotations

import json
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from ichfast.cli.main import cli
from ichfast.errors import SourceError
from ichfast.prepare.prepare import prepare_store
from ichfast.prepare.repair import repair_store
from ichfast.store.store import Store
from ichfast.store.verify import verify_store
from tests.conftest import contents, write_dicom
from tests.nifti.volumes import head_hu, nifti, packed, read_hu

run = partial(prepare_store, labels=None, workers=1, keep_ids=True, max_rejected="0")

NAME = "ID_0237f3c9_ID_40015688b9"


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Three volumes of 5, 4 and 6 slices; one is packed, one in a deeper folder."""
    folder = tmp_path / "volumes"
    (folder / "deep").mkdir(parents=True)
    text = b"Somebody^Secret"
    (folder / f"{NAME}.nii.gz").write_bytes(packed(nifti(head_hu((8, 9, 5), 1))))
    (folder / "b.nii").write_bytes(
        nifti(head_hu((9, 8, 4), 2), descrip=text, aux_file=text)
    )
    (folder / "deep" / "c.nii").write_bytes(nifti(head_hu((8, 9, 6), 3)))
    return folder


def ids_of(store: Path) -> list[str]:
    with Store(store) as opened:
        return sorted(opened.table["slice_id"].astype(str))


IDS = sorted(
    [
        *(f"{NAME}/{k}" for k in range(5)),
        *(f"b/{k}" for k in range(4)),
        *(f"deep/c/{k}" for k in range(6)),
    ]
)


def test_a_folder_of_volumes_becomes_a_store(volumes: Path, tmp_path: Path) -> None:
    report = run([volumes], tmp_path / "store")
    assert (report.slices, report.rejected) == (15, {})
    assert ids_of(tmp_path / "store") == IDS
    with Store(tmp_path / "store") as store:
        table = store.table
        rows = np.flatnonzero(table["slice_id"].astype(str).str.startswith("ID_"))
        stored_ZHW = np.stack([store.slice_HW(int(row)) for row in rows])
        expected_ZHW = read_hu((volumes / f"{NAME}.nii.gz").read_bytes())
        np.testing.assert_array_equal(stored_ZHW - 1024.0, expected_ZHW)
        first = table.iloc[rows[0]]
    assert first["patient"] == "ID_0237f3c9"
    assert first["study"] == "ID_40015688b9"
    assert first["series"] == NAME
    assert verify_store(tmp_path / "store") == []


def test_volumes_and_dicom_files_share_a_store(volumes: Path, tmp_path: Path) -> None:
    write_dicom(volumes / "d.dcm", "ID_1")
    report = run([volumes], tmp_path / "store")
    assert report.slices == 16


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz"])
def test_volumes_in_an_archive_are_read_in_place(
    volumes: Path, tmp_path: Path, suffix: str
) -> None:
    archive = tmp_path / f"all.{suffix}"
    files = sorted(path for path in volumes.rglob("*") if path.is_file())
    if suffix == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packing:
            for path in files:
                packing.write(path, path.relative_to(volumes))
    else:
        with tarfile.open(archive, "w:gz" if suffix == "tar.gz" else "w") as tar:
            for path in files:
                tar.add(path, path.relative_to(volumes))
    report = run([archive], tmp_path / "store")
    assert report.slices == 15
    assert ids_of(tmp_path / "store") == [f"all.{suffix}/{each}" for each in IDS]


def test_one_packed_volume_is_a_source(volumes: Path, tmp_path: Path) -> None:
    report = run([volumes / f"{NAME}.nii.gz"], tmp_path / "store")
    assert report.slices == 5


def test_hashed_ids_show_no_name_of_a_file(volumes: Path, tmp_path: Path) -> None:
    (volumes / "bad.nii").write_bytes((volumes / "b.nii").read_bytes()[:-1])
    report = run([volumes], tmp_path / "store", keep_ids=False, max_rejected="1")
    assert report.rejected == {"truncated-pixels": 1}
    texts = [
        content.decode("latin-1") for content in contents(tmp_path / "store").values()
    ]
    for name in (NAME, "ID_0237f3c9", "40015688b9", "deep", "bad.nii", "Somebody"):
        assert not any(name in text for text in texts), name
    rejected = pd.read_csv(tmp_path / "store" / "rejected.csv")
    assert list(rejected["path"]) == ["entry 2 of source 0"]


def test_no_text_of_a_header_is_stored(volumes: Path, tmp_path: Path) -> None:
    run([volumes], tmp_path / "store")
    for content in contents(tmp_path / "store").values():
        assert b"Somebody" not in content


@pytest.mark.slow
def test_new_volumes_are_appended(volumes: Path, tmp_path: Path) -> None:
    run([volumes], tmp_path / "store")
    (volumes / "d.nii").write_bytes(nifti(head_hu((8, 9, 3), 4)))
    report = run([volumes], tmp_path / "store", append=True)
    assert report.slices == 18
    assert ids_of(tmp_path / "store") == sorted([*IDS, "d/0", "d/1", "d/2"])


@pytest.mark.slow
def test_a_damaged_shard_is_repaired_from_volumes(
    volumes: Path, tmp_path: Path
) -> None:
    run([volumes], tmp_path / "store")
    before = contents(tmp_path / "store")
    for shard in (tmp_path / "store" / "level-512").glob("*.npy"):
        damaged = bytearray(shard.read_bytes())
        damaged[-1] ^= 1
        shard.write_bytes(damaged)
    report = repair_store(tmp_path / "store", [volumes])
    assert len(report.repaired) >= 1
    assert contents(tmp_path / "store") == before


@pytest.mark.slow
def test_workers_do_not_change_a_byte(volumes: Path, tmp_path: Path) -> None:
    run([volumes], tmp_path / "one")
    run([volumes], tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_codes_to_accept_hold_for_volumes(volumes: Path, tmp_path: Path) -> None:
    (volumes / "w.nii").write_bytes(nifti(np.clip(head_hu((8, 9, 2)), 0, 80)))
    report = run([volumes], tmp_path / "store")
    assert (report.slices, report.rejected) == (15, {"not-hu": 1})
    report = run([volumes], tmp_path / "all", accept=("not-hu",))
    assert (report.slices, report.rejected) == (17, {})
    with Store(tmp_path / "all") as store:
        assert (store.table["quirks"].astype(str) == "not-hu").sum() == 2


def test_equal_names_in_two_sources_are_a_conflict_that_is_counted(
    volumes: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "b.nii").write_bytes(nifti(head_hu((9, 8, 4), 9)))
    with pytest.raises(SourceError, match="duplicate-conflict"):
        run([volumes, other], tmp_path / "store")


def test_the_command_prepares_a_folder_of_volumes(
    volumes: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    arguments = ["prepare", str(volumes), "--store", str(store), "--workers", "1"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["slices"] == 15
