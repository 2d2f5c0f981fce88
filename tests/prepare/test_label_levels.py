"""Labels of slices, series, studies and patients are joined to the rows they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ichfast.errors import LabelError
from ichfast.labels import CLASSES, LabelTable, read_labels
from ichfast.prepare.labelling import add_labels, count_values, warn_of_strangers
from ichfast.prepare.plan import label_plan
from ichfast.prepare.prepare import prepare_store
from ichfast.prepare.pseudonyms import stored_id
from ichfast.report.overview import describe_store, format_overview
from ichfast.store.store import Store
from ichfast.store.tables import LABEL_COLUMNS
from tests.conftest import random_hu, write_dicom

KEY = b"k" * 32
NAN = float("nan")
NEGATIVE, SUBDURAL = (0, 0, 0, 0, 0, 0), (1, 0, 0, 0, 0, 1)


def labels(level: str, **labels_of: Sequence[float]) -> LabelTable:
    return LabelTable(
        ids=np.array([name.replace("__", "/") for name in labels_of], dtype=np.object_),
        labels_NK=np.array(list(labels_of.values()), dtype=np.float32),
        num_duplicates=0,
        level=level,
    )


def store_rows(
    key: bytes | None = None, *, patients: Mapping[str, str] | None = None
) -> pa.Table:
    """Two patients with a study of two series each, of three slices each."""
    names = dict(patients or {}) or {"p0": "p0", "p1": "p1"}
    rows = [
        {"slice_id": f"{p}{s}{z}", "patient": names[f"p{p}"], "study": f"t{p}"}
        | {"series": f"s{p}{s}", "instance_number": z + 1}
        for p in range(2)
        for s in range(2)
        for z in range(3)
    ]
    table = pa.Table.from_pylist(rows)
    for name in ("slice_id", "patient", "study", "series"):
        column = pa.array([stored_id(key, each) for each in table[name].to_pylist()])
        if name != "slice_id":
            column = column.dictionary_encode()
        number = table.schema.get_field_index(name)
        table = table.set_column(number, name, column)
    for name in LABEL_COLUMNS:
        table = table.append_column(name, pa.nulls(len(table), pa.int8()))
    return table


def one_series(rows: pa.Table, patient: str, numbers: Sequence[int]) -> pa.Table:
    """The first slices, as those of the series of one patient."""
    rows = rows.slice(0, len(numbers))
    columns: dict[str, Any] = {
        "patient": pa.array([patient] * len(numbers)).dictionary_encode(),
        "series": pa.array(["s"] * len(numbers)).dictionary_encode(),
        "instance_number": pa.array(numbers, pa.int64()),
    }
    for name, column in columns.items():
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    return rows


join = partial(add_labels, key=None, relabel=False)


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize(
    ("level", "name", "rows_found"), [("study", "t1", 6), ("series", "s11", 3)]
)
def test_a_label_of_a_bag_is_in_all_its_rows_and_in_no_other(
    level: str, name: str, rows_found: int, key: bytes | None
) -> None:
    table = labels(level, **{name: SUBDURAL, "another": NEGATIVE})
    joined = join(store_rows(key), table, key=key)
    expected = [None] * (12 - rows_found) + [1] * rows_found
    assert joined.rows[f"{level}_subdural"].to_pylist() == expected
    assert joined.rows["subdural"].null_count == 12
    assert (joined.num_found, joined.num_changed) == (1, 0)
    known, positives = count_values(joined.rows)
    assert (known[f"{level}_any"], positives[f"{level}_any"]) == (1, 1)
    assert positives[f"{level}_epidural"] == 0
    assert set(known) == {f"{level}_{each}" for each in CLASSES}


def test_a_label_of_a_bag_that_differs_is_an_error_or_replaced() -> None:
    first = join(store_rows(), labels("study", t0=SUBDURAL, t1=NEGATIVE)).rows
    other = labels("study", t0=NEGATIVE, t1=NEGATIVE)
    with pytest.raises(LabelError, match=r"for 1 study\(s\), first t0; .* --relabel"):
        join(first, other)
    replaced = join(first, other, relabel=True)
    assert (replaced.num_found, replaced.num_changed) == (2, 6)
    assert set(replaced.rows["study_subdural"].to_pylist()) == {0}
    with pytest.raises(LabelError, match="`any` is not the OR"):
        join(first, labels("study", t0=(0, *[NAN] * 5)), relabel=True)
    followed = join(first, labels("study", t0=(NAN, *[NAN] * 4, 0)), relabel=True)
    assert set(followed.rows["study_any"].to_pylist()) == {0}


@pytest.mark.parametrize("whole", ["study", "series"])
def test_labels_of_a_bag_and_its_slices_must_agree(whole: str) -> None:
    name = "t0" if whole == "study" else "s00"
    size = 6 if whole == "study" else 3
    of_slices = {f"00{z}" if z < 3 else f"01{z - 3}": NEGATIVE for z in range(size)}
    with_one = labels("slice", **{**of_slices, "002": SUBDURAL})
    without = labels("slice", **of_slices)
    negative = join(store_rows(), labels(whole, **{name: NEGATIVE})).rows
    positive = join(store_rows(), labels(whole, **{name: SUBDURAL})).rows
    with pytest.raises(
        LabelError,
        match=rf"1 label\(s\) of a {whole} contradict those of its slices: any is 0, "
        rf"and 1 for one of them, first {name}; ",
    ):
        join(negative, with_one)
    with pytest.raises(
        LabelError, match=rf"any is 1, and 0 for all of them, first {name}; "
    ):
        join(positive, without)
    join(negative, without)
    join(positive, with_one)
    # A slice that is not labelled may be the one with the bleed.
    join(positive, labels("slice", **dict(list(of_slices.items())[1:])))
    # The other order of the files, also to relabel: slices are not guessed.
    labelled = join(store_rows(), with_one).rows
    for relabel in (False, True):
        with pytest.raises(LabelError, match=rf"any is 0, and .*first {name}; "):
            join(labelled, labels(whole, **{name: NEGATIVE}), relabel=relabel)


def test_labels_of_a_study_and_its_series_must_agree() -> None:
    both = join(store_rows(), labels("series", s00=NEGATIVE, s01=NEGATIVE)).rows
    with pytest.raises(LabelError, match="of a study contradict those of its series"):
        join(both, labels("study", t0=SUBDURAL))
    one = join(store_rows(), labels("series", s00=NEGATIVE)).rows
    join(one, labels("study", t0=SUBDURAL))
    rows = join(one, labels("study", t0=NEGATIVE)).rows
    with pytest.raises(LabelError, match="any is 0, and 1 for one of them, first t0; "):
        join(rows, labels("series", s01=SUBDURAL))


def test_to_relabel_slices_moves_the_labels_of_their_series_and_study() -> None:
    rows = join(store_rows(), labels("study", t0=NEGATIVE)).rows
    rows = join(rows, labels("series", s00=NEGATIVE)).rows
    all_negative = {f"00{z}": NEGATIVE for z in range(3)}
    rows = join(rows, labels("slice", **all_negative)).rows
    rows = join(rows, labels("slice", **{"001": SUBDURAL}), relabel=True).rows
    assert rows["series_subdural"].to_pylist() == [1] * 3 + [None] * 9
    assert rows["study_any"].to_pylist() == [1] * 6 + [None] * 6
    assert rows["study_epidural"].to_pylist() == [0] * 6 + [None] * 6
    rows = join(rows, labels("slice", **{"001": NEGATIVE}), relabel=True).rows
    assert rows["series_subdural"].to_pylist() == [0] * 3 + [None] * 9
    # Slices of the other series have no label, so one of them may be positive.
    assert rows["study_subdural"].to_pylist() == [1] * 6 + [None] * 6


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize(
    "spelled", ["CQ500-CT-7", "CQ500CT7", "cq500-ct-7", "CQ500-CT-07", "CQ500CT007"]
)
@pytest.mark.parametrize("in_file", ["CQ500-CT-7", "cq500ct007"])
def test_a_patient_of_cq500_is_found_in_any_spelling(
    key: bytes | None, spelled: str, in_file: str
) -> None:
    rows = store_rows(key, patients={"p0": "CQ500-CT-77", "p1": spelled})
    reads = labels("patient", **{in_file: SUBDURAL, "CQ500-CT-8": NEGATIVE})
    joined = join(rows, reads, key=key)
    assert joined.rows["study_subdural"].to_pylist() == [None] * 6 + [1] * 6
    assert joined.num_found == 1


def test_readers_of_cq500_who_agree_on_a_bleed_alone_label_a_study() -> None:
    rows = store_rows(patients={"p0": "CQ500-CT-0", "p1": "CQ500-CT-1"})
    reads = labels("patient", **{"CQ500-CT-0": (1, 0, 0, 0, 0, 0)})
    rows = join(rows, reads).rows
    assert rows["study_any"].to_pylist() == [1] * 6 + [None] * 6
    assert rows["study_subdural"].to_pylist() == [0] * 6 + [None] * 6


def test_labels_of_patients_that_contradict_their_slices_are_named_as_in_the_file() -> (
    None
):
    rows = store_rows(KEY, patients={"p0": "CQ500-CT-0", "p1": "CQ500-CT-1"})
    rows = join(rows, labels("slice", **{"001": SUBDURAL, "101": SUBDURAL}), key=KEY)
    reads = labels("patient", **{"CQ500-CT-0": NEGATIVE, "CQ500-CT-1": NEGATIVE})
    with pytest.raises(LabelError, match=r"^2 label.*, first CQ500-CT-0, CQ500-CT-1;"):
        join(rows.rows, reads, key=KEY)


def test_the_label_of_a_patient_with_two_studies_is_refused() -> None:
    rows = store_rows(patients={"p0": "CQ500-CT-0", "p1": "CQ500-CT-0"})
    with pytest.raises(
        LabelError,
        match=r"1 labelled patient\(s\) have more than one study, first CQ500-CT-0, "
        "and the file does not tell .* StudyInstanceUID",
    ):
        join(rows, labels("patient", **{"CQ500-CT-0": NEGATIVE}))


@pytest.mark.parametrize("patient", ["49", "049", "0049"])
@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([1, 2, 3], [0, 0, 1]),
        ([3, 1, 2], [1, 0, 0]),
        ([0, 1, 2], [0, 0, 1]),
        ([0, 1, 2, 3], [0, 0, 1, None]),
        ([103, 102, 101], [1, 0, 0]),
        ([3, 2], [1, 0]),
        ([1, 2, 3, 4], [0, 0, 1, None]),
    ],
)
def test_slice_numbers_are_those_of_the_instances_from_1(
    key: bytes | None, patient: str, numbers: list[int], expected: list[int | None]
) -> None:
    rows = one_series(store_rows(), stored_id(key, patient), numbers)
    table = labels(
        "slice number", **{"49__1": NEGATIVE, "49__2": NEGATIVE, "49__3": SUBDURAL}
    )
    joined = join(rows, table, key=key)
    assert joined.rows["subdural"].to_pylist() == expected
    assert joined.num_found == len(expected) - expected.count(None)


@pytest.mark.parametrize("numbers", [[101, 102], [3, 4, 5, 6], [1, 1, 2]])
def test_slice_numbers_that_do_not_tell_the_slices_are_left_out_with_a_warning(
    numbers: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    rows = one_series(store_rows(), "049", numbers)
    table = labels("slice number", **{f"49__{k}": NEGATIVE for k in (1, 2, 3)})
    assert join(rows, table).rows["any"].null_count == len(numbers)
    message = f"first 49 with {len(numbers)} slices in the store and 3 in the file"
    assert message in caplog.text


def test_slice_numbers_of_a_patient_with_two_series_are_refused() -> None:
    with pytest.raises(
        LabelError, match=r"more than one series, first 3, .*SeriesInst"
    ):
        join(
            store_rows(patients={"p0": "003", "p1": "4"}),
            labels("slice number", **{"3__1": NEGATIVE}),
        )


def test_extra_classes_are_columns_of_the_level_of_the_file() -> None:
    fracture = np.array([1, NAN], np.float32)
    of_study = replace(
        labels("study", t0=NEGATIVE, t1=NEGATIVE), extra={"fracture": fracture}
    )
    rows = join(store_rows(), of_study).rows
    assert rows["extra_study_fracture"].to_pylist() == [1] * 6 + [None] * 6
    of_slices = replace(
        labels("slice", **{"000": NEGATIVE}),
        extra={"fracture": np.zeros(1, np.float32), "shift": np.ones(1, np.float32)},
    )
    rows = join(rows, of_slices).rows
    assert rows["extra_fracture"].to_pylist() == [0] + [None] * 11
    known, positives = count_values(rows)
    assert known["extra_study_fracture"] == positives["extra_study_fracture"] == 1
    assert (known["extra_shift"], positives["extra_fracture"]) == (1, 0)
    other = replace(of_slices, extra={"fracture": np.ones(1, np.float32)})
    with pytest.raises(LabelError, match=r"contradict .* for 1 slice\(s\), first 000"):
        join(rows, other)
    replaced = join(rows, other, relabel=True)
    assert replaced.num_changed == 1
    assert replaced.rows["extra_fracture"][0].as_py() == 1
    assert replaced.rows["extra_shift"][0].as_py() == 1
    # What is new in the file is new to the store.
    assert label_plan(of_slices, None) != label_plan(other, None)
    assert label_plan(labels("study", t0=NEGATIVE), None) != label_plan(
        labels("slice", t0=NEGATIVE), None
    )


@pytest.mark.parametrize(
    ("level", "in_file", "kind", "in_store", "element"),
    [
        ("series", "1.9", "series", "s00", "SeriesInstanceUIDs"),
        ("study", "1.9", "study", "t0", "StudyInstanceUIDs"),
        ("patient", "CQ500-CT-9", "patient", "p0", "PatientIDs"),
        ("slice number", "49__1", "patient", "p0", "PatientIDs"),
    ],
)
def test_labels_of_nothing_are_a_warning_with_an_id_of_each_side(
    caplog: pytest.LogCaptureFixture,
    level: str,
    in_file: str,
    kind: str,
    in_store: str,
    element: str,
) -> None:
    table = labels(level, **{in_file: NEGATIVE})
    assert join(store_rows(), table).num_found == 0
    warn_of_strangers(store_rows(), table, None)
    shown = in_file.partition("__")[0]
    assert (
        f"none of the 1 labels is of a {kind} of the store: the label file has ids "
        f"such as {shown}, the store such as {in_store}; check" in caplog.text
    )
    warn_of_strangers(store_rows(KEY), table, KEY)
    assert f"are hashes; compare the file's with the {element}" in caplog.text


run = partial(prepare_store, labels=None, workers=1)


def write_study(folder: Path, patient: str, study: str, count: int) -> None:
    folder.mkdir(parents=True)
    for z in range(count):
        write_dicom(
            folder / f"CT{z:06d}.dcm",
            f"{study}.{z}",
            hu_HW=random_hu(z),
            PatientID=patient,
            StudyInstanceUID=study,
            SeriesInstanceUID=f"{study}.99",
            InstanceNumber=z + 1,
        )


@pytest.mark.parametrize("keep_ids", [True, False])
def test_a_store_has_the_labels_of_all_levels_of_several_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, keep_ids: bool
) -> None:
    source, store_path = tmp_path / "source", tmp_path / "store"
    for number, count in ((0, 2), (12, 3)):
        name = f"CQ500CT{number}"
        folder = source / f"{name} {name}" / "Unknown Study" / "CT Plain"
        write_study(folder, f"CQ500-CT-{number}", f"1.2.{number}", count)
    reads = tmp_path / "reads.csv"
    readers = [f"R{n}:{name}" for n in (1, 2, 3) for name in ("ICH", "SDH", "Fracture")]
    header = ",".join(["name", "Category", *readers])
    rows = ["CQ500-CT-0,B1,0,0,1,0,0,1,1,1,0", "CQ500-CT-12,B2,1,1,0,1,1,0,0,0,0"]
    reads.write_text("\n".join([header, *rows, "CQ500-CT-13,B2,0,0,0,0,0,0,0,0,0"]))
    caplog.set_level("INFO")
    go = partial(run, [source], store_path, keep_ids=keep_ids)
    report = go(labels=read_labels(reads))
    assert (report.labelled, report.labels_without_slice) == (0, 1)
    assert report.known == {"study_any": 2, "study_subdural": 2} | {
        "extra_study_fracture": 2
    }
    assert report.positives == {"study_any": 1, "study_subdural": 1} | {
        "extra_study_fracture": 1
    }
    assert "0 labelled, 2 studies labelled, 0 duplicates" in caplog.messages[-1]
    assert go(labels=read_labels(reads)).already_finished
    slices = tmp_path / "slices.csv"
    slices.write_text("SOPInstanceUID,sdh\n1.2.12.1,1\n1.2.0.0,0\n")
    report = go(labels=read_labels(slices), append=True)
    assert (report.partly_labelled, report.known["subdural"]) == (2, 2)
    assert report.positives["study_any"] == 1
    with Store(store_path) as store:
        assert store.table["study_subdural"].value_counts().to_dict() == {1: 3, 0: 2}
        assert store.table["extra_study_fracture"].sum() == 2
        text = format_overview(describe_store(store))
    assert "\n  study_subdural           1   50.00%\n" in text
    assert "\n  extra_study_fracture" in text
    strangers = tmp_path / "strangers.csv"
    strangers.write_text("SeriesInstanceUID,any\n1.7,1\n")
    for _ in range(2):
        caplog.clear()
        go(labels=read_labels(strangers), append=True)
        (warning,) = [each for each in caplog.messages if each.startswith("none of")]
        assert "is of a series of the store" in warning


@pytest.mark.parametrize("keep_ids", [True, False])
def test_slices_that_are_appended_get_the_labels_of_their_study(
    tmp_path: Path, *, keep_ids: bool
) -> None:
    source, store_path = tmp_path / "source", tmp_path / "store"
    write_study(source / "first", "p", "1.2.3", 2)
    (tmp_path / "labels.csv").write_text("StudyInstanceUID,any,shift\n1.2.3,1,0\n")
    go = partial(run, [source], store_path, keep_ids=keep_ids)
    go(labels=read_labels(tmp_path / "labels.csv"))
    write_study(source / "more", "p", "1.2.3", 3)  # two of them are there already
    write_study(source / "other", "p", "1.2.4", 1)
    report = go(append=True)
    assert (report.slices, report.known["study_any"]) == (4, 1)
    with Store(store_path) as store:
        table = store.table.sort_values("study_any")
    assert table["study_any"].fillna(9).tolist() == [1, 1, 1, 9]
    assert table["extra_study_shift"].fillna(9).tolist() == [0, 0, 0, 9]
    assert table["study_epidural"].isna().all()
