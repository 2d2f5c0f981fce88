"""A run of prepare stores every CT slice once."""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
import tarfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from ichfast.errors import SourceError, StoreError
from ichfast.labels import CLASSES, LabelTable, read_labels
from ichfast.prepare import prepare
from ichfast.prepare.prepare import prepare_store
from ichfast.store.header import read_header
from ichfast.store.store import Store
from ichfast.store.verify import verify_store
from tests.conftest import SHAPES, contents, random_hu, write_dicom

DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "UNIT_ENTRIES", 8)


run = partial(prepare_store, labels=None, workers=1, keep_ids=True)


# What is stored


def test_every_slice_is_stored_once_in_the_order_of_position(
    source: Path, tmp_path: Path
) -> None:
    report = run([source], tmp_path / "store")
    assert (report.slices, report.series, report.patients) == (23, 3, 2)
    assert report.rejected == {}
    assert not report.already_finished
    with Store(tmp_path / "store") as store:
        assert store.header.num_bytes == report.bytes
        order = ["patient", "study", "series", "position_mm"]
        pd.testing.assert_frame_equal(
            store.table, store.table.sort_values(order, ignore_index=True)
        )
        assert sorted(store.table["slice_id"]) == sorted(f"ID_{k}" for k in range(23))
        for index, slice_id in enumerate(store.table["slice_id"]):
            expected_HW = random_hu(int(slice_id[3:])) + 1024
            np.testing.assert_array_equal(store.slice_HW(index), expected_HW)
    assert verify_store(tmp_path / "store") == []


def test_a_row_holds_what_the_header_said(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    write_dicom(
        tmp_path / "source" / "tilted.dcm",
        "ID_1",
        ImageOrientationPatient=[1, 0, 0, 0, 0.8, -0.6],
        InstanceNumber=7,
        SliceThickness=5,
        BitsStored=15,
    )
    run([tmp_path / "source"], tmp_path / "store")
    with Store(tmp_path / "store") as store:
        row = store.table.iloc[0]
    assert row["tilt_deg"] == pytest.approx(-36.8699)
    assert (row["instance_number"], row["thickness_mm"]) == (7, 5.0)
    assert (row["row_spacing_mm"], row["column_spacing_mm"]) == (0.5, 0.4)
    assert (row["rows"], row["columns"]) == SHAPES[0]
    assert (row["bits_stored"], row["is_signed"]) == (15, True)
    assert (row["patient"], row["study"]) == ("MRN-4711", "1.77.1")
    assert (row["series"], row["slice_id"]) == ("1.77.2", "ID_1")
    assert (row["window_center"], row["window_width"]) == (40, 80)
    assert row["transfer_syntax_uid"] == ExplicitVRLittleEndian


def test_order_bytes_and_table_do_not_depend_on_the_workers(
    source: Path, tmp_path: Path
) -> None:
    run([source], tmp_path / "one", workers=1)
    run([source], tmp_path / "three", workers=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_level_256_can_be_left_out(source: Path, tmp_path: Path) -> None:
    run([source], tmp_path / "store", levels=(512,))
    with Store(tmp_path / "store") as store:
        assert store.levels == (512,)
    assert not (tmp_path / "store" / "level-256").exists()


def test_labels_are_joined_by_slice_id(source: Path, tmp_path: Path) -> None:
    ids = np.array(["ID_3", "ID_nowhere", "ID_20"], dtype=np.object_)
    labels_NK = np.array([[1, 0, 0, 0, 0, 1], [0] * 6, [0] * 6], dtype=np.float32)
    labels = LabelTable(ids=ids, labels_NK=labels_NK, num_duplicates=0)
    for keep_ids in (True, False):
        store_path = tmp_path / f"store-{keep_ids}"
        report = run([source], store_path, labels=labels, keep_ids=keep_ids)
        assert report.labelled == 2
        assert report.labels_without_slice == 1
        assert report.slices_without_label == 21
        with Store(store_path) as store:
            z = store.table["position_mm"]
            assert store.labels_NK()[z == -7.5].tolist() == [[1, 0, 0, 0, 0, 1]]
            assert store.labels_NK()[z == -50].tolist() == [[0] * 6]
            assert np.isnan(store.labels_NK()).all(axis=1).sum() == 21


def test_limit_takes_the_first_entries_of_the_listing(
    source: Path, tmp_path: Path
) -> None:
    assert run([source], tmp_path / "store", limit=7).slices == 7


def test_the_store_may_lie_in_its_source(source: Path) -> None:
    run([source], source / "store", keep_ids=False)
    assert run([source], source / "store", keep_ids=False).already_finished


@pytest.mark.slow
def test_real_series_become_the_store_that_their_labels_promise(tmp_path: Path) -> None:
    archive = DATA / "rsna_series" / "ID_5f8484c3e0.tar.xz"
    if not archive.is_file():
        pytest.skip("the real series are not on this machine")
    labels = read_labels(DATA / "labels" / "train_long.csv")
    report = run([archive], tmp_path / "store", labels=labels, workers=2)
    assert (report.slices, report.series, report.labelled) == (28, 1, 28)
    with Store(tmp_path / "store") as store:
        assert store.slice_HW(0).shape == (512, 512)
        assert not store.labels_NK().any()
        assert (np.diff(store.table["position_mm"]) > 0).all()


# What is not


def test_each_file_that_is_no_slice_is_listed_with_its_reason(
    source: Path, tmp_path: Path
) -> None:
    (source / "labels.csv").write_text("ID,Label\n")
    (source / "nothing").touch()
    report = run([source], tmp_path / "store", max_rejected="2")
    assert report.slices == 23
    assert report.rejected == {"empty": 1, "not-dicom": 1}
    table = pd.read_csv(tmp_path / "store" / "rejected.csv")
    assert table["path"].tolist() == ["labels.csv", "nothing"]
    assert table["reason"].tolist() == ["not-dicom", "empty"]


def test_too_many_rejects_are_an_error_that_costs_no_work(
    source: Path, tmp_path: Path
) -> None:
    for k in range(3):
        (source / f"{k}.txt").write_text("no image")
    with pytest.raises(SourceError, match=r"3 of 26 files .*3 not-dicom.*allows 5%"):
        run([source], tmp_path / "store")
    pages = list((tmp_path / "store" / "journal").glob("*.page"))
    assert len(pages) == 4
    assert len(pd.read_csv(tmp_path / "store" / "rejected.csv")) == 3
    before = {page: page.stat().st_mtime_ns for page in pages}
    with pytest.raises(SourceError, match="allows 11%"):
        run([source], tmp_path / "store", max_rejected="11%")
    assert {page: page.stat().st_mtime_ns for page in pages} == before
    assert run([source], tmp_path / "store", max_rejected="12%").slices == 23


def test_nothing_readable_is_an_error_and_leaves_no_store(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.txt").write_text("no image")
    with pytest.raises(SourceError, match=r"none of 1 files .*1 not-dicom"):
        run([tmp_path / "source"], tmp_path / "store", max_rejected="100%")
    assert not (tmp_path / "store").exists()


def test_a_missing_source_leaves_no_store(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere"):
        run([tmp_path / "nowhere"], tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("workers", [0, 33, 100_000])
def test_too_many_workers_and_none_are_refused(
    source: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    with pytest.raises(StoreError, match=rf"from 1 to 32 here, 16 .* got {workers};"):
        run([source], tmp_path / "store", workers=workers)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("text", ["", "x", "-1", "101%", "nan%", "5.5"])
def test_max_rejected_is_a_number_or_a_share(
    source: Path, tmp_path: Path, text: str
) -> None:
    with pytest.raises(StoreError, match="max_rejected is a number"):
        run([source], tmp_path / "store", max_rejected=text)


def test_the_same_slice_twice_is_kept_once(source: Path, tmp_path: Path) -> None:
    shutil.copy(source / "004.dcm", source / "z_same.dcm")
    write_dicom(source / "z_other.dcm", "ID_4", hu_HW=random_hu(99))
    report = run([source], tmp_path / "store")
    assert (report.slices, report.duplicates) == (23, 1)
    assert report.rejected == {"duplicate-conflict": 1}
    row = pd.read_csv(tmp_path / "store" / "rejected.csv").iloc[0]
    assert row["path"] == "z_other.dcm"
    assert row["detail"].startswith("same SOPInstanceUID as 004.dcm")
    assert verify_store(tmp_path / "store") == []


def test_the_first_in_the_listing_is_kept_in_any_order_of_the_archive(
    tmp_path: Path,
) -> None:
    for name in ("a", "b"):
        write_dicom(tmp_path / name, "ID_1", hu_HW=random_hu(ord(name)))
    with tarfile.open(tmp_path / "both.tar.gz", "w:gz") as archive:
        for name in ("b", "a"):
            archive.add(tmp_path / name, name)
    run([tmp_path / "both.tar.gz"], tmp_path / "store", max_rejected="1")
    with Store(tmp_path / "store") as store:
        np.testing.assert_array_equal(store.slice_HW(0), random_hu(ord("a")) + 1024)


# The same command, and another


def test_a_finished_store_is_left_alone(source: Path, tmp_path: Path) -> None:
    first = run([source], tmp_path / "store", keep_ids=False)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")}
    again = run([source], tmp_path / "store", keep_ids=False, workers=2)
    assert again.already_finished
    of_the_run = ("already_finished", "files", "seconds", "files_per_s")
    assert (again.files, again.files_per_s) == (0, 0)
    same = asdict(first) | {name: getattr(again, name) for name in of_the_run}
    assert asdict(again) == same
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")}
    del before[tmp_path / "store" / ".lock"], after[tmp_path / "store" / ".lock"]
    assert after == before


def one_label() -> LabelTable:
    return LabelTable(
        ids=np.array(["ID_1"], dtype=np.object_),
        labels_NK=np.zeros((1, len(CLASSES)), dtype=np.float32),
        num_duplicates=0,
    )


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"levels": (512,)}, r"levels \(512,256, now 512\)"),
        ({"limit": 22}, r"entries \(23, now 22\), listing"),
        ({"labels": one_label()}, r"labels \(none, now"),
    ],
)
def test_a_finished_store_is_not_turned_into_another(
    source: Path, tmp_path: Path, options: dict[str, Any], difference: str
) -> None:
    run([source], tmp_path / "store")
    before = contents(tmp_path / "store")
    with pytest.raises(StoreError, match=difference):
        run([source], tmp_path / "store", **options)
    assert contents(tmp_path / "store") == before


def stop_before_merging(source: Path, store: Path, *, keep_ids: bool) -> None:
    """Begin a run and interrupt it when every unit has its page."""
    with pytest.MonkeyPatch.context() as patch:

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(prepare, "merge", interrupt)
        with pytest.raises(StoreError, match="the same command continues"):
            run([source], store, keep_ids=keep_ids)


def test_an_unfinished_store_is_not_continued_from_another_source(
    source: Path, tmp_path: Path
) -> None:
    stop_before_merging(source, tmp_path / "store", keep_ids=True)
    write_dicom(source / "new.dcm", "ID_new")
    with pytest.raises(StoreError, match=r"entries \(23, now 24\), listing .* --store"):
        run([source], tmp_path / "store")


def test_labels_may_come_late_to_an_unfinished_store(
    source: Path, tmp_path: Path
) -> None:
    stop_before_merging(source, tmp_path / "store", keep_ids=True)
    assert run([source], tmp_path / "store", labels=one_label()).labelled == 1


def test_what_a_crash_has_left_is_removed(source: Path, tmp_path: Path) -> None:
    run([source], tmp_path / "calm")
    store = tmp_path / "store"
    stop_before_merging(source, store, keep_ids=True)
    (store / "level-512" / ".00001.npy.0123456789ab.tmp").touch()
    (store / "level-512" / "00001-9x9.npy").touch()
    (store / ".slices.parquet.0123456789ab.tmp").touch()
    run([source], store)
    assert contents(store) == contents(tmp_path / "calm")


def test_two_runs_at_once_are_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with (tmp_path / "store" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="another ichfast command is writing"):
            run([source], tmp_path / "store")
    assert run([source], tmp_path / "store").slices == 23


def test_a_folder_with_other_files_is_never_made_a_store(
    source: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("never saved elsewhere")
    with pytest.raises(StoreError, match="holds files that no store has"):
        run([source], tmp_path / "thesis")
    assert list(contents(tmp_path / "thesis")) == ["chapter.tex"]


def test_a_source_inside_the_store_is_no_source(source: Path) -> None:
    with pytest.raises(SourceError, match=r"no file in .*, outside "):
        run([source / "000.dcm"], source)


# Privacy


def test_no_id_reaches_the_disk_or_the_log(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (source / "MRN-0.txt").write_text("no image")
    caplog.set_level(logging.DEBUG)
    store = tmp_path / "store"
    stop_before_merging(source, store, keep_ids=False)
    check_no_id(store, caplog.text)
    report = run([source], store, keep_ids=False)
    assert report.patients == 2
    check_no_id(store, caplog.text)
    assert pd.read_csv(store / "rejected.csv")["path"].tolist() == [
        "entry 23 of source 0"
    ]
    with Store(store) as opened:
        assert not opened.header.keep_ids
        for column in ("slice_id", "patient", "study", "series"):
            assert opened.table[column].str.fullmatch("[0-9a-f]{16}").all()


def test_names_cannot_be_tried_out_on_the_digests_of_a_store(
    source: Path, tmp_path: Path
) -> None:
    labels, plans = one_label(), []
    for name in ("one", "two"):  # each with its own key
        run([source], tmp_path / name, labels=labels, keep_ids=False)
        plans.append(read_header(tmp_path / name).plan)
    for digest in ("listing", "labels", "ids"):
        assert plans[0][digest] != plans[1][digest]


def check_no_id(store: Path, log_text: str) -> None:
    texts = [json.dumps(pd.read_parquet(p).to_dict()) for p in store.rglob("*.parquet")]
    texts += [content.decode("latin-1") for content in contents(store).values()]
    for text in (*texts, log_text):
        for secret in ("MRN-", "ID_1", "1.77.", "1.88.", "Somebody", "Secret"):
            assert secret not in text


def test_the_key_is_private_and_gives_the_same_ids_again(
    source: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    key = tmp_path / "store.key"
    run([source], store, keep_ids=False)
    assert key.stat().st_mode & 0o777 == 0o600
    before = contents(store)
    shutil.rmtree(store)
    run([source], store, keep_ids=False)
    assert contents(store) == before
    shutil.rmtree(store)
    key.unlink()
    run([source], store, keep_ids=False)
    with Store(store) as opened:
        assert opened.table["patient"][0].encode() not in before["slices.parquet"]


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_lost_key_is_not_replaced_under_a_store(
    source: Path, tmp_path: Path, *, is_finished: bool
) -> None:
    if is_finished:
        run([source], tmp_path / "store", keep_ids=False)
    else:
        stop_before_merging(source, tmp_path / "store", keep_ids=False)
    (tmp_path / "store.key").unlink()
    with pytest.raises(StoreError, match=r"store.key is missing.*restore it"):
        run([source], tmp_path / "store", keep_ids=False)


def test_an_absent_patient_id_stays_absent(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    write_dicom(tmp_path / "source" / "a.dcm", "ID_1", PatientID="")
    run([tmp_path / "source"], tmp_path / "store", keep_ids=False)
    with Store(tmp_path / "store") as store:
        assert store.table["patient"].tolist() == [""]
