"""A repaired store has the bytes it was written with, or an error names the rest."""

from __future__ import annotations

import os
import re
import shutil
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from ichfast.cli.main import cli
from ichfast.errors import StoreError
from ichfast.prepare import prepare
from ichfast.prepare.packing import pack_store
from ichfast.prepare.prepare import prepare_store
from ichfast.prepare.repair import repair_store
from ichfast.store.verify import verify_store
from tests.conftest import contents, random_hu, write_dicom
from tests.prepare.conftest import remount

run = partial(prepare_store, labels=None, workers=1, keep_ids=True)


@pytest.fixture
def store(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store in three units and an appended one, ids hashed."""
    monkeypatch.setattr(prepare, "UNIT_ENTRIES", 8)
    run([source], tmp_path / "store", keep_ids=False)
    write_dicom(source / "000a", "ID_30", hu_HW=random_hu(30))
    run([source], tmp_path / "store", keep_ids=False, append=True)
    return tmp_path / "store"


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 4
    path.write_bytes(content)


@pytest.mark.slow
def test_damaged_shards_get_their_bytes_back(store: Path, source: Path) -> None:
    before = contents(store)
    flip(store / "level-512" / "00000-24x32.npy", 5000)
    flip(store / "level-256" / "00001-17x13.npy", 10)
    os.truncate(store / "level-256" / "00002-24x32.npy", 70_000)
    (store / "level-512" / "00003-24x32.npy").unlink()
    assert len(verify_store(store)) == 4
    moved = source.rename(source.with_name("moved"))
    report = repair_store(store, [moved])
    assert report.repaired == (
        "level-512/00000-24x32.npy",
        "level-256/00001-17x13.npy",
        "level-256/00002-24x32.npy",
        "level-512/00003-24x32.npy",
    )
    assert contents(store) == before


@pytest.mark.slow
def test_damaged_packed_shards_get_their_bytes_back(
    store: Path, source: Path, tmp_path: Path
) -> None:
    packed, key = tmp_path / "packed", store.with_name("store.key")
    pack_store(store, packed, workers=1)
    before = contents(packed)
    flip(packed / "level-512" / "00000-24x32.icp", 1000)  # a record
    flip(packed / "level-256" / "00001-17x13.icp", -200)  # the index
    flip(packed / "level-256" / "00000-24x32.icp", -1)  # the footer
    os.truncate(packed / "level-256" / "00002-24x32.icp", 70_000)
    (packed / "level-512" / "00003-24x32.icp").unlink()
    assert len(verify_store(packed)) == 5
    with pytest.raises(StoreError, match=r"packed\.key"):
        repair_store(packed, [source])
    report = repair_store(packed, [source], id_key=key)
    assert report.repaired == (
        "level-256/00000-24x32.icp",
        "level-512/00000-24x32.icp",
        "level-256/00001-17x13.icp",
        "level-256/00002-24x32.icp",
        "level-512/00003-24x32.icp",
    )
    assert contents(packed) == before


@pytest.mark.slow
def test_a_sound_store_is_left_alone(store: Path, source: Path) -> None:
    assert repair_store(store, [source]).repaired == ()


@pytest.mark.slow
def test_a_source_that_has_changed_or_gone_is_said(store: Path, source: Path) -> None:
    flip(store / "level-512" / "00000-24x32.npy", 5000)
    flip(store / "level-512" / "00002-24x32.npy", 5000)
    damaged = contents(store)
    write_dicom(
        source / "000.dcm",
        "ID_0",
        hu_HW=random_hu(99),
        PatientID="MRN-0",
        StudyInstanceUID="1.77.0",
        SeriesInstanceUID="1.88.0",
        ImagePositionPatient=[0, 0, 0],
    )
    (source / "022.dcm").unlink()
    with pytest.raises(
        StoreError,
        match=r"2: 1 of its 7 files are not .*/00000-24x32.npy: the sources give",
    ):
        repair_store(store, [source])
    assert contents(store) == damaged


@pytest.mark.slow
@pytest.mark.parametrize("name", ["slices.parquet", "rejected.csv"])
def test_a_damaged_table_cannot_be_rebuilt_and_shards_are_all_the_same(
    store: Path, source: Path, name: str
) -> None:
    before = contents(store)
    flip(store / name, 5)
    flip(store / "level-512" / "00000-24x32.npy", 5000)
    with pytest.raises(
        StoreError, match=rf"1 file\(s\) repaired.*{name}.*not to be reb"
    ):
        repair_store(store, [source])
    after = contents(store)
    assert [file for file in after if after[file] != before[file]] == [name]


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_changes_nothing_but_repaired_files(
    source: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "UNIT_ENTRIES", 8)
    store, errors = small_disk / "store", []
    remount(small_disk, "size=20M")
    run([source], store)
    whole = contents(store)
    flip(store / "level-512" / "00000-24x32.npy", 5000)
    flip(store / "level-256" / "00002-24x32.npy", 5000)
    damaged = contents(store)
    used = sum(path.lstat().st_blocks for path in small_disk.rglob("*")) // 2
    for kib in range(used + 8, used + 20_000, 500):
        remount(small_disk, f"size={kib}k")
        before = contents(store)
        try:
            repair_store(store, [source])
        except StoreError as error:
            errors.append(str(error))
            after = contents(store)
            assert after.keys() == damaged.keys()
            assert all(after[name] in (before[name], whole[name]) for name in after)
        else:
            break
    assert len(errors) >= 2
    for message in errors:
        assert re.fullmatch(
            rf"cannot write {store} \(No space left on device\) with [01] file\(s\) "
            "repaired; make room or mend the disk, then the same command continues",
            message,
        )
    assert contents(store) == whole


@pytest.mark.slow
def test_a_read_only_folder_is_one_line(source: Path, small_disk: Path) -> None:
    store = small_disk / "store"
    remount(small_disk, "size=20M")
    run([source], store)
    flip(store / "level-512" / "00000-24x32.npy", 5000)
    before = contents(store)
    remount(small_disk, "ro")
    ended = CliRunner().invoke(cli, ["verify", str(store), "--repair", str(source)])
    assert ended.exit_code == 1
    assert ended.stderr == f"Error: cannot write {store}: Read-only file system\n"
    assert contents(store) == before


@pytest.mark.slow
def test_an_interrupted_repair_is_one_line_and_continues(
    store: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(store)
    flip(store / "level-512" / "00000-24x32.npy", 5000)
    flip(store / "level-512" / "00001-24x32.npy", 5000)
    damaged = contents(store)

    def copy_and_interrupt(*paths: Path) -> None:
        if paths[0].name.startswith("00001"):
            signal.raise_signal(signal.SIGTERM)
        shutil.copyfile(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(
            "ichfast.prepare.repair.shutil",
            SimpleNamespace(copyfile=copy_and_interrupt),
        )
        with pytest.raises(
            StoreError, match=r"stopped with 1 file\(s\) of .* repaired; th"
        ):
            repair_store(store, [source])
    after = contents(store)
    assert [name for name in after if after[name] != damaged[name]] == [
        "level-512/00000-24x32.npy"
    ]
    assert repair_store(store, [source]).repaired == ("level-512/00001-24x32.npy",)
    assert contents(store) == before
