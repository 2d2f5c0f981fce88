"""A repaired store has the bytes it was written with, or an error names the rest."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from ichfast.errors import StoreError
from ichfast.prepare import prepare
from ichfast.prepare.prepare import prepare_store
from ichfast.prepare.repair import repair_store
from ichfast.store.verify import verify_store
from tests.conftest import contents, random_hu, write_dicom

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
