"""Appending adds new slices to a finished store and keeps its shards."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ichfast.errors import LabelError, SourceError, StoreError
from ichfast.labels import CLASSES, LabelTable
from ichfast.prepare import prepare
from ichfast.prepare.plan import label_plan
from ichfast.prepare.prepare import prepare_store
from ichfast.store.header import read_header
from ichfast.store.store import Store
from ichfast.store.tables import read_rejected
from ichfast.store.verify import verify_store
from tests.conftest import contents, random_hu, write_dicom


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "UNIT_ENTRIES", 8)


run = partial(prepare_store, labels=None, workers=1, keep_ids=True)
append = partial(run, append=True)


def grow(source: Path) -> None:
    """Add three slices, one before and one between the existing ones."""
    for name, number in (("000a", 30), ("010b", 31), ("zzz", 32)):
        write_dicom(source / name, f"ID_{number}", hu_HW=random_hu(number))


def labels_of(**values: int) -> LabelTable:
    return LabelTable(
        ids=np.array(list(values), dtype=np.object_),
        labels_NK=np.repeat(
            np.array(list(values.values()), np.float32)[:, np.newaxis], len(CLASSES), 1
        ),
        num_duplicates=0,
    )


@pytest.mark.parametrize("keep_ids", [True, False])
def test_what_is_new_in_a_folder_is_added_and_the_shards_keep_their_bytes(
    source: Path, tmp_path: Path, *, keep_ids: bool
) -> None:
    store = tmp_path / "store"
    run([source], store, keep_ids=keep_ids)
    before = contents(store)
    grow(source)
    (source / "notes.txt").write_text("no image")
    report = append([source], store, keep_ids=keep_ids, max_rejected="1")
    assert (report.slices, report.duplicates) == (26, 0)
    assert report.rejected == {"not-dicom": 1}
    after = contents(store)
    shards = {name for name in before if name.startswith("level-")}
    assert {name: after[name] for name in shards} == {n: before[n] for n in shards}
    new = {name for name in after if name not in before}
    assert new == {"level-512/00003-24x32.npy", "level-256/00003-24x32.npy"}
    assert verify_store(store) == []
    name = pd.read_csv(store / "rejected.csv")["path"].tolist()
    assert name == [
        "notes.txt" if keep_ids else "entry 25 of source 0, appended from unit 3 on"
    ]


@pytest.mark.slow
def test_every_slice_reads_as_in_a_store_made_at_once(
    source: Path, tmp_path: Path
) -> None:
    run([source], tmp_path / "store")
    grow(source)
    append([source], tmp_path / "store")
    run([source], tmp_path / "at_once")
    with Store(tmp_path / "store") as store, Store(tmp_path / "at_once") as at_once:
        where = ["shard", "row_in_shard"]
        pd.testing.assert_frame_equal(
            store.table.drop(columns=where), at_once.table.drop(columns=where)
        )
        assert store.header.counts == at_once.header.counts
        for index in range(len(store)):
            for level in store.levels:
                np.testing.assert_array_equal(
                    store.slice_HW(index, level), at_once.slice_HW(index, level)
                )


def test_another_folder_with_the_same_names_is_new(
    source: Path, tmp_path: Path
) -> None:
    run([source], tmp_path / "store")
    other = tmp_path / "other"
    other.mkdir()
    write_dicom(other / "000.dcm", "ID_0", hu_HW=random_hu(0))
    write_dicom(other / "001.dcm", "ID_50", hu_HW=random_hu(50))
    write_dicom(other / "002.dcm", "ID_2", hu_HW=random_hu(99))
    (other / "003.txt").write_text("no image")
    report = append([other], tmp_path / "store", max_rejected="2")
    assert (report.slices, report.duplicates) == (24, 1)
    assert report.rejected == {"duplicate-conflict": 1, "not-dicom": 1}
    rejected = pd.read_csv(tmp_path / "store" / "rejected.csv")
    assert rejected["path"].tolist() == ["002.dcm", "003.txt"]
    detail = rejected["detail"][0]
    assert detail.startswith("same SOPInstanceUID as a slice stored before")
    assert verify_store(tmp_path / "store") == []


@pytest.mark.slow
def test_a_moved_source_costs_no_disk(source: Path, tmp_path: Path) -> None:
    run([source], tmp_path / "store")
    shards = sorted((tmp_path / "store").glob("level-*/*"))
    moved = source.rename(tmp_path / "moved")
    report = append([moved], tmp_path / "store")
    assert (report.slices, report.duplicates) == (23, 23)
    report = append([moved.rename(tmp_path / "again")], tmp_path / "store")
    assert (report.slices, report.duplicates) == (23, 46)
    assert read_header(tmp_path / "store").counts["entries"] == 3 * 23
    assert sorted((tmp_path / "store").glob("level-*/*")) == shards


def test_nothing_new_is_a_no_op(source: Path, tmp_path: Path) -> None:
    run([source], tmp_path / "store")
    before = contents(tmp_path / "store")
    assert append([source], tmp_path / "store").already_finished
    assert contents(tmp_path / "store") == before


def test_without_a_store_appending_is_preparing(source: Path, tmp_path: Path) -> None:
    run([source], tmp_path / "plain")
    append([source], tmp_path / "store")
    assert contents(tmp_path / "store") == contents(tmp_path / "plain")


def test_the_command_that_appended_then_finds_a_finished_store(
    source: Path, tmp_path: Path
) -> None:
    labelled = partial(run, labels=labels_of(ID_1=1))
    labelled([source], tmp_path / "store")
    grow(source)
    with pytest.raises(StoreError, match=r"entries \(23, now 26\).* with --append"):
        labelled([source], tmp_path / "store")
    append([source], tmp_path / "store")
    assert labelled([source], tmp_path / "store").already_finished
    with pytest.raises(StoreError, match=r"labels \(.*, now none\)"):
        run([source], tmp_path / "store")


def test_labels_go_to_all_slices_that_have_none(source: Path, tmp_path: Path) -> None:
    store_path = tmp_path / "store"
    run([source], store_path, labels=labels_of(ID_1=1))
    grow(source)
    report = append([source], store_path)
    assert report.labelled == 1
    labels = labels_of(ID_1=1, ID_2=0, ID_31=1, ID_none=0)
    report = append([source], store_path, labels=labels)
    assert (report.labelled, report.labels_without_slice) == (3, 1)
    assert append([source], store_path, labels=labels).already_finished
    with Store(store_path) as store:
        of = dict(zip(store.table["slice_id"], store.labels_NK()[:, 0], strict=True))
    assert (of["ID_1"], of["ID_2"], of["ID_31"]) == (1, 0, 1)
    assert np.isnan(of["ID_3"])
    before = contents(store_path)
    with pytest.raises(LabelError, match=r"contradict .* 1 slice\(s\), first ID_1"):
        append([source], store_path, labels=labels_of(ID_1=0))
    assert contents(store_path) == before


def test_labels_are_joined_and_compared_over_old_and_new_slices(
    source: Path, tmp_path: Path
) -> None:
    store_path = tmp_path / "store"
    report = run([source], store_path, labels=labels_of(ID_1=1, ID_5=0, ID_no=0))
    assert (report.labelled, report.labels_without_slice) == (2, 1)
    grow(source)
    before = contents(store_path)
    with pytest.raises(LabelError, match=r"contradict .* 2 slice\(s\)"):
        append([source], store_path, labels=labels_of(ID_1=0, ID_5=1, ID_30=1))
    # Refused before anything is decoded.
    assert contents(store_path) == before
    append([source], store_path, labels=labels_of(ID_1=1, ID_30=1))
    with Store(store_path) as store:
        of = dict(zip(store.table["slice_id"], store.labels_NK()[:, 0], strict=True))
    assert (of["ID_1"], of["ID_5"], of["ID_30"]) == (1, 0, 1)
    assert np.isnan(of["ID_2"])


def test_relabel_replaces_labels_that_differ_and_counts_them(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store_path = tmp_path / "store"
    run([source], store_path, labels=labels_of(ID_1=1, ID_2=0, ID_3=0))
    digest, shards = read_header(store_path).digest, set(contents(store_path))
    corrected = labels_of(ID_1=0, ID_2=0, ID_4=1, ID_none=1)
    with pytest.raises(LabelError, match="add --relabel to replace the store's"):
        append([source], store_path, labels=corrected)
    caplog.set_level("INFO")
    report = append([source], store_path, labels=corrected, relabel=True)
    assert (report.relabelled, report.labelled, report.files) == (1, 4, 0)
    assert "labels replaced of 1," in caplog.messages[-1]
    with Store(store_path) as store:
        of = dict(zip(store.table["slice_id"], store.labels_NK()[:, 0], strict=True))
    assert [of[f"ID_{k}"] for k in (1, 2, 3, 4)] == [0, 0, 0, 1]
    # Runs on the store before recognize this one (docs/leaks.md).
    assert read_header(store_path).lineage == (digest,)
    assert read_header(store_path).digest != digest
    assert set(contents(store_path)) == shards
    assert verify_store(store_path) == []
    again = append([source], store_path, labels=corrected, relabel=True)
    assert (again.already_finished, again.relabelled) == (True, 0)
    assert read_header(store_path).lineage == (digest,)


def test_relabel_leaves_what_the_file_does_not_know(
    source: Path, tmp_path: Path
) -> None:
    run([source], tmp_path / "store", labels=labels_of(ID_1=1, ID_2=0))
    labels = replace(
        labels_of(ID_1=0, ID_2=0),
        labels_NK=np.array([[np.nan] * 5 + [0], [np.nan] * 5 + [1]], dtype=np.float32),
    )
    append([source], tmp_path / "store", labels=labels, relabel=True)
    with Store(tmp_path / "store") as store:
        of = dict(zip(store.table["slice_id"], store.labels_NK().tolist(), strict=True))
    assert of["ID_1"] == [1, 1, 1, 1, 1, 0]
    # `any` follows the subtypes.
    assert of["ID_2"] == [1, 0, 0, 0, 0, 1]
    labels = replace(
        labels_of(ID_1=0), labels_NK=np.array([[0] + [np.nan] * 5], dtype=np.float32)
    )
    with pytest.raises(LabelError, match=r"`any` is not the OR .*first ID_1"):
        append([source], tmp_path / "store", labels=labels, relabel=True)


def test_relabel_without_a_store_to_append_to_or_labels_is_refused(
    source: Path, tmp_path: Path
) -> None:
    for options in ({"labels": labels_of(ID_1=1)}, {"append": True}):
        with pytest.raises(StoreError, match="it needs --append and --labels FILE"):
            run([source], tmp_path / "store", relabel=True, **options)


@pytest.mark.parametrize("keep_ids", [True, False])
@pytest.mark.parametrize(
    ("label_id", "difference"),
    [
        ("ID_1.png", "the file's have a suffix that the store's have not"),
        ("train/ID_1", "the file's have the name of a folder in front"),
        ("id_1", "they differ in upper and lower case"),
        ("0123456789abcdef", "the file's look like hashes"),
        ("other", "check that the file is of these slices"),
    ],
)
def test_labels_of_no_slice_are_a_warning_that_tells_what_differs(
    source: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    label_id: str,
    difference: str,
    *,
    keep_ids: bool,
) -> None:
    run([source], tmp_path / "store", keep_ids=keep_ids)
    with Store(tmp_path / "store") as store:
        stored = store.table["slice_id"].tolist()
    caplog.clear()
    report = append(
        [source],
        tmp_path / "store",
        labels=labels_of(**{label_id: 1}),
        keep_ids=keep_ids,
    )
    assert (report.labelled, report.labels_without_slice) == (0, 1)
    (message,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert message.startswith("none of the 1 labels is of a slice of the store")
    assert f"ids such as {label_id}, the store such as " in message
    assert any(f"the store such as {each}; " in message for each in stored)
    # Hashes do not show the case that the DICOM files have.
    if not keep_ids and label_id in ("id_1", "other"):
        difference = "the store's are hashes; compare the file's"
    assert difference in message


def test_labels_by_the_hashes_of_the_store_are_told_from_others(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run([source], tmp_path / "store", keep_ids=False)
    with Store(tmp_path / "store") as store:
        hashed = str(store.table["slice_id"][3])
    labels = labels_of(**{hashed: 1})
    append([source], tmp_path / "store", labels=labels, keep_ids=False)
    assert "the file's are hashed already; prepare needs those" in caplog.text


def test_labels_that_are_missing_are_filled_by_class(
    source: Path, tmp_path: Path
) -> None:
    def table(*labels_K: float) -> LabelTable:
        return LabelTable(
            ids=np.array(["ID_1"], dtype=np.object_),
            labels_NK=np.array([labels_K], dtype=np.float32),
            num_duplicates=0,
        )

    store_path, nan = tmp_path / "store", np.nan
    report = run([source], store_path, labels=table(nan, nan, 0, 0, 0, 1))
    assert (report.labelled, report.partly_labelled) == (0, 1)
    assert report.slices_without_label == report.slices - 1
    before = contents(store_path)
    for wrong, message in (
        (table(nan, 0, 0, 0, 0, 0), r"contradict .* 1 slice\(s\), first ID_1"),
        (table(0, 0, nan, nan, nan, nan), r"`any` is not the OR .*first ID_1"),
    ):
        with pytest.raises(LabelError, match=message):
            append([source], store_path, labels=wrong)
    assert contents(store_path) == before
    report = append([source], store_path, labels=table(nan, 0, nan, nan, nan, nan))
    assert (report.labelled, report.partly_labelled) == (1, 0)
    with Store(store_path) as store:
        labels_NK = store.labels_NK()[store.table["slice_id"] == "ID_1"]
    np.testing.assert_array_equal(labels_NK, [[1, 0, 0, 0, 0, 1]])


def test_labels_of_no_slice_change_none(source: Path, tmp_path: Path) -> None:
    run([source], tmp_path / "store", labels=labels_of(ID_1=1))
    report = append([source], tmp_path / "store", labels=labels_of())
    assert (report.labelled, report.labels_without_slice) == (1, 0)


@pytest.mark.slow
def test_a_store_is_appended_to_again_and_again(source: Path, tmp_path: Path) -> None:
    run([source], tmp_path / "store")
    for number in (50, 51, 52):
        write_dicom(source / f"{number}", f"ID_{number}", hu_HW=random_hu(number))
        report = append([source], tmp_path / "store")
        assert report.slices == number - 50 + 24
        assert verify_store(tmp_path / "store") == []
    units = [shard.name[:5] for shard in read_header(tmp_path / "store").shards]
    assert sorted(set(units)) == [f"{number:05}" for number in range(6)]


def test_other_options_cannot_be_appended(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run([source], tmp_path / "store")
    with pytest.raises(StoreError, match=r"levels \(512,256, now 512\)"):
        append([source], tmp_path / "store", levels=(512,))
    monkeypatch.setattr(prepare, "UNIT_ENTRIES", 9)
    with pytest.raises(StoreError, match=r"unit \(8, now 9\)"):
        append([source], tmp_path / "store")


def test_too_many_new_rejects_leave_the_store_as_it_was(
    source: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    run([source], store)
    before = contents(store)
    (source / "a.txt").write_text("no image")
    with pytest.raises(SourceError, match=r"1 of 1 files .*journal/rejected.csv"):
        append([source], store)
    after = contents(store)
    assert {name: after[name] for name in before} == before
    assert verify_store(store) == []
    with pytest.raises(StoreError, match="--append"):
        run([source], store)
    assert append([source], store, max_rejected="1").rejected == {"not-dicom": 1}


STEPS = ("plan.json", "slices.parquet", "rejected.csv", "entries.parquet", "store.json")
"""What the parent process writes; for what workers write see `test_prepare`."""


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("is_last", [False, True])
def test_an_append_cut_short_at_any_file_ends_in_the_same_bytes(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    *,
    is_last: bool,
) -> None:
    run([source], tmp_path / "calm")
    shutil.copytree(tmp_path / "calm", tmp_path / "store")
    before = contents(tmp_path / "store")
    grow(source)
    append([source], tmp_path / "calm")
    rename = Path.replace
    num_seen = 0

    def replace_and_fail(self: Path, target: Path) -> Path:
        nonlocal num_seen
        result = rename(self, target)
        num_seen += target.name == name
        # Tables and header are written twice: ready in the journal, then published.
        if num_seen == (2 if is_last else 1):
            raise RuntimeError("power cut")
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace_and_fail)
        try:
            append([source], tmp_path / "store")
        except RuntimeError:
            was_published = is_last
        else:
            was_published = True
    if not was_published:
        after = contents(tmp_path / "store")
        assert {file: after[file] for file in before} == before
    append([source], tmp_path / "store")
    assert contents(tmp_path / "store") == contents(tmp_path / "calm")


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_an_append_begun_with_other_files_begins_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run([source], tmp_path / "store")
    grow(source)
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "merge", interrupt)
        with pytest.raises(StoreError, match="3 of 3 files done; the same command"):
            append([source], tmp_path / "store")
    write_dicom(source / "000b", "ID_33", hu_HW=random_hu(33))
    assert append([source], tmp_path / "store").slices == 27
    assert verify_store(tmp_path / "store") == []


def test_nothing_is_left_of_an_append_that_is_given_up(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run([source], tmp_path / "store")
    before = contents(tmp_path / "store")
    write_dicom(tmp_path / "other", "ID_50", hu_HW=random_hu(50))
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "merge", interrupt)
        with pytest.raises(StoreError, match="1 of 1 files done; the same command"):
            append([tmp_path / "other"], tmp_path / "store")
    assert len(contents(tmp_path / "store")) > len(before)
    with pytest.raises(StoreError, match="was being appended to when a run was cut"):
        run([source], tmp_path / "store")
    assert append([source], tmp_path / "store").already_finished
    assert contents(tmp_path / "store") == before


def test_file_names_like_formulas_are_none_in_a_csv_and_stay_in_an_append(
    source: Path, tmp_path: Path
) -> None:
    store, names = tmp_path / "store", ["+1.txt", "=HYPERLINK(1).txt", "a.txt"]
    for name in names[:2]:
        (source / name).write_text("no slice")
    run([source], store, max_rejected="50%")
    (source / names[2]).write_text("no slice")
    write_dicom(source / "new.dcm", "ID_new")
    append([source], store, max_rejected="50%")
    found = pd.read_csv(store / "rejected.csv")["path"].tolist()
    assert found == ["'+1.txt", "'=HYPERLINK(1).txt", "a.txt"]
    assert read_rejected(store, read_header(store))["path"].tolist() == names


def test_a_label_that_is_missing_is_not_one_that_is_0_in_the_plan() -> None:
    zero = labels_of(ID_1=0)
    missing = replace(zero, labels_NK=np.array([[0] * 5 + [np.nan]], np.float32))
    assert label_plan(missing, b"key") != label_plan(zero, b"key")
    # The digest of complete labels, by which stores made before are recognized.
    assert label_plan(zero, None) == {
        "labels": hashlib.sha256(b"ID_1" + bytes(6)).hexdigest()
    }
