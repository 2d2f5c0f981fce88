"""Label files are read exactly, and refused when they cannot be trusted."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pandas as pd
import pytest

from ichfast.errors import LabelError
from ichfast.labels import CLASSES, LabelTable, read_labels, with_any

DATA = Path(__file__).parents[2] / "shared" / "data"
REAL, HUNT = DATA / "labels", DATA / "hunt" / "labels"

SUBTYPES = CLASSES[1:]
WIDE = "image," + ",".join(CLASSES)
NAN = float("nan")


def long_rows(slice_id: str, *positive: str) -> list[str]:
    """Six rows as Kaggle writes them: `any` last."""
    positive = (*positive, "any") if positive else ()
    return [f"{slice_id}_{name},{int(name in positive)}" for name in (*SUBTYPES, "any")]


def write_csv(path: Path, rows: list[str], header: str = "ID,Label") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def read_rows(folder: Path, header: str, *rows: str) -> LabelTable:
    return read_labels(write_csv(folder / "labels.csv", list(rows), header))


def test_the_long_form_becomes_one_row_a_slice(tmp_path: Path) -> None:
    rows = [*long_rows("ID_b", "subdural"), *long_rows("ID_a")]
    table = read_labels(write_csv(tmp_path / "labels.csv", rows))
    assert table.ids.tolist() == ["ID_b", "ID_a"]
    np.testing.assert_array_equal(
        table.labels_NK, [[1, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]]
    )
    assert (table.num_duplicates, table.level) == (0, "slice")


def test_identical_rows_count_once_and_are_counted(tmp_path: Path) -> None:
    rows = [
        *long_rows("ID_a", "epidural"),
        *long_rows("ID_b"),
        *long_rows("ID_a", "epidural"),
    ]
    table = read_labels(write_csv(tmp_path / "labels.csv", rows))
    assert table.ids.tolist() == ["ID_a", "ID_b"]
    assert table.num_duplicates == 6


def test_the_wide_form_becomes_one_row_a_slice(tmp_path: Path) -> None:
    rows = ["ID_b,1,0,0,0,0,1", "ID_a,0,0,0,0,0,0", "ID_c,,,,,,", "ID_a,0,0,0,0,0,0"]
    table = read_rows(tmp_path, WIDE, *rows)
    assert table.ids.tolist() == ["ID_b", "ID_a"]
    np.testing.assert_array_equal(table.labels_NK[0], [1, 0, 0, 0, 0, 1])
    assert table.num_duplicates == 1


@pytest.mark.parametrize(
    "text",
    [
        "id,subdural,any,epidural,ivh,iph,sah\nID_a,1,1,0,0,0,0",
        "Subdural;ANY;SOPInstanceUID;EDH;IPH;IVH;SAH\n1;1;ID_a.dcm;0;0;0;0",
        "filename\tich\tedh\tiph\tivh\tsah\tsdh\nID_a.DCM\t1.0\t0.0\t0\t0\t0\t1",
        "any,edh,iph,ivh,sah,sdh,slice_id\nTrue,False,FALSE,false,0,TRUE,ID_a",
        "Image, any, edh, iph, ivh, sah, sdh\nID_a, 1, 0, 0, 0, 0, 1",
        "\ufeffID,Label\n" + "\n".join(long_rows("ID_a", "subdural")),
        "id;label;fold\n"
        + "\n".join(f"{r},0".replace(",", ";") for r in long_rows("ID_a", "subdural")),
        ",ID,Label\n" + "\n".join(f"7,{row}" for row in long_rows("ID_a", "subdural")),
        "ID,Label\n"
        + "\n".join(long_rows("ID_a.dcm", "subdural")[:3])
        + "\n"
        + "\n".join(long_rows("ID_a", "subdural")[3:]),
        "ID,Label\n" + "\n".join(long_rows("ID_a", "subdural")).replace("any", "ANY"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be"])
def test_separator_case_order_encoding_and_suffix_do_not_matter(
    tmp_path: Path, text: str, encoding: str
) -> None:
    if encoding == "utf-16-be":
        text = "\ufeff" + text.removeprefix("\ufeff")
    (tmp_path / "labels.csv").write_text(text, encoding)
    table = read_labels(tmp_path / "labels.csv")
    assert table.ids.tolist() == ["ID_a"]
    assert table.labels_NK.tolist() == [[1, 0, 0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("suffix", "opener"),
    [(".gz", gzip.open), (".bz2", bz2.open), (".xz", lzma.open), (".XZ", lzma.open)],
)
def test_a_compressed_csv_is_read_without_unpacking_it(
    tmp_path: Path, suffix: str, opener: type
) -> None:
    path = tmp_path / f"labels.csv{suffix}"
    with opener(path, "wt") as stream:
        stream.write("\n".join(["ID,Label", *long_rows("ID_a", "epidural")]))
    assert read_labels(path).ids.tolist() == ["ID_a"]


def test_the_csv_of_a_zip_is_read_and_what_a_mac_adds_is_not(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv.zip"
    with ZipFile(path, "w") as archive:
        archive.writestr("labels.csv", "\n".join(["ID,Label", *long_rows("ID_a")]))
        archive.writestr("__MACOSX/._labels.csv", "nothing")
    assert read_labels(path).ids.tolist() == ["ID_a"]
    with ZipFile(path, "a") as archive:
        archive.writestr("more.csv", "")
    with pytest.raises(LabelError, match="it holds 2 files, expected one csv"):
        read_labels(path)


@pytest.mark.parametrize("kind", ["bool", "Int8", "float64", "category"])
def test_a_parquet_file_is_read_whatever_the_type_of_its_columns(
    tmp_path: Path, kind: Any
) -> None:
    frame = pd.DataFrame({"ID": ["ID_a", "ID_b"]})
    values = ["0", "1"] if kind == "category" else [0, 1]
    for name in CLASSES:
        frame[name] = pd.array(values, dtype=kind)
    frame["boxes"] = [[1], [2, 3]]
    if kind in ("Int8", "float64"):
        frame.loc[0, "epidural"] = None
    frame.to_parquet(tmp_path / "labels.parquet")
    table = read_labels(tmp_path / "labels.parquet")
    first = NAN if kind in ("Int8", "float64") else 0
    np.testing.assert_array_equal(
        table.labels_NK, [[0, first, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]]
    )
    assert "columns left out: boxes" in table.description


def test_a_missing_label_stays_missing(tmp_path: Path) -> None:
    table = read_rows(
        tmp_path, WIDE, "a,0,0,,0,NaN,0", "b,1,na,null,0,0,0", "c,,,,,,", "a,0,,0,,,0"
    )
    np.testing.assert_array_equal(
        table.labels_NK, [[0, 0, 0, 0, NAN, 0], [1, NAN, NAN, 0, 0, 0]]
    )
    assert table.labels_NK.dtype == np.float32
    assert table.ids.tolist() == ["a", "b"]
    table = read_rows(tmp_path, "ID,Label", "a_any,1", "a_sdh,", "b_any,0", "b_sdh,0")
    np.testing.assert_array_equal(table.labels_NK[:, 0], [1, 0])
    np.testing.assert_array_equal(table.labels_NK[:, 5], [NAN, 0])
    assert np.isnan(table.labels_NK[:, 1:5]).all()
    assert "classes any, subdural;" in table.description


def test_any_is_the_or_of_the_five_only_where_all_five_are_known(
    tmp_path: Path,
) -> None:
    header = "id," + ",".join(SUBTYPES)
    table = read_rows(tmp_path, header, "a,0,0,0,0,1", "b,0,0,0,0,0", "c,1,,0,0,0")
    np.testing.assert_array_equal(table.labels_NK[:, 0], [1, 0, NAN])
    table = read_rows(tmp_path, WIDE, "a,,0,0,0,0,1", "b,1,,0,0,0,0")
    np.testing.assert_array_equal(table.labels_NK[:, 0], [1, 1])
    nothing = np.full((2, 6), NAN, dtype=np.float32)
    assert np.isnan(with_any(nothing)).all()


def test_the_description_names_form_rows_classes_and_columns_left_out(
    tmp_path: Path,
) -> None:
    table = read_rows(tmp_path, "fold,sdh,,id", "3,1,x,a", "4,0,y,b")
    assert table.description == (
        "labels: form wide, joined by slice, 2 rows, classes subdural; "
        "columns left out: fold, (without a name)"
    )
    many = ",".join(f"c{k}" for k in range(20))
    table = read_rows(tmp_path, f"id,any,{many}", f"a,1,{many}")
    assert table.description.endswith("c10, c11, and 8 more")
    long_name = "x" * 99
    table = read_rows(tmp_path, f'id,any,"{long_name}"', "a,1,")
    assert table.description.endswith(f"left out: {'x' * 40}")


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([*long_rows("ID_a"), "ID_a_any,1"], r"on 1 label\(s\), both .*ID_a any"),
        (["ID_a_epidural,2"], "not 0 or 1 in 1 row.*ID_a_epidural"),
        (["ID_a_epidural,0.5"], "not 0 or 1"),
        (["ID_a_frontal,1"], "class in ID is unknown.*ID_a_frontal"),
        (["nounderscore,1"], "ID is not `slice_class`.*nounderscore"),
        (
            [*long_rows("ID_b"), *long_rows("ID_a")[:-1]],
            r"a class that others have has no row in 1 slice\(s\), first ID_a",
        ),
        (
            [*long_rows("ID_a", "epidural")[:-1], "ID_a_any,0"],
            r"not the OR of the five.* 1 slice\(s\), first ID_a",
        ),
        (["_any,1"], "id is empty"),
        ([], "has no row"),
        (["ID_a_any,"], "no labelled row"),
    ],
)
def test_a_long_csv_that_contradicts_itself_is_refused_with_the_offender(
    tmp_path: Path, rows: list[str], problem: str
) -> None:
    with pytest.raises(LabelError, match=problem):
        read_labels(write_csv(tmp_path / "labels.csv", rows))


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (["ID_a,1,0,0,0,0,0"], "not the OR"),
        (["ID_a,0,1,,0,0,0"], "not the OR"),
        (["ID_a,0,0,0,0,0,0", "ID_a,1,1,0,0,0,0"], "disagree on 2 .* ID_a any, ID_a e"),
        (["ID_a,0,0,0,0,0,0", "ID_a.dcm,1,1,0,0,0,0"], r"disagree on 2 label\(s\)"),
        (["ID_b,0,0,0,0,0,0", "ID_a,0,0,0,-,0,0"], "intraventricular is not 0 .*ID_a"),
        (["ID_a,,,,,,"], "no labelled row"),
        ([",1,1,0,0,0,0"], "id is empty"),
    ],
)
def test_a_wide_csv_that_contradicts_itself_is_refused(
    tmp_path: Path, rows: list[str], problem: str
) -> None:
    with pytest.raises(LabelError, match=problem):
        read_rows(tmp_path, WIDE, *rows)


@pytest.mark.parametrize(
    ("key", "level"), [("SeriesInstanceUID", "series"), ("StudyInstanceUID", "study")]
)
def test_labels_of_series_and_studies_have_their_level(
    tmp_path: Path, key: str, level: str
) -> None:
    table = read_rows(tmp_path, f"{key},PatientID,any,sdh", "1.2,p,1,1", "1.3,p,0,0")
    assert (table.level, table.ids.tolist()) == (level, ["1.2", "1.3"])
    np.testing.assert_array_equal(table.labels_NK[:, 5], [1, 0])
    both = "StudyInstanceUID,SeriesInstanceUID,any"
    assert read_rows(tmp_path, both, "1,2,0", "1,3,1").level == "series"
    with_id = f"{key},{WIDE}"
    assert read_rows(tmp_path, with_id, "1.2,ID_a,0,0,0,0,0,0").level == "slice"


def test_a_label_of_cq500_is_what_two_of_three_readers_say(tmp_path: Path) -> None:
    header = ["name", *(f"R{n}:{k}" for n in (1, 2, 3) for k in ("ICH", "IPH", "SDH"))]
    table = read_rows(
        tmp_path,
        ",".join([*header, "Category", "R1:BleedLocation-Left"]),
        *("CQ500-CT-0,1,1,0,1,0,1,0,0,0,B1,1", "CQ500-CT-1,1,,0,0,0,0,,,0,B2,0"),
    )
    assert table.level == "patient"
    assert table.ids.tolist() == ["CQ500-CT-0", "CQ500-CT-1"]
    # Two saw a bleed and did not agree on its type.
    np.testing.assert_array_equal(table.labels_NK[0, [0, 2, 5]], [1, 0, 0])
    np.testing.assert_array_equal(table.labels_NK[1, [0, 2, 5]], [NAN, NAN, 0])
    assert np.isnan(table.labels_NK[:, [1, 3, 4]]).all()
    assert "subdural; extra classes bleedlocation_left; columns" in table.description
    assert table.description.endswith("columns left out: Category")
    assert table.extra["bleedlocation_left"].tolist() == [1, 0]


def test_columns_of_0_and_1_are_extra_classes_and_others_are_left_out(
    tmp_path: Path,
) -> None:
    header = "id,any,Midline Shift,fold,PatientID,Sex,Note,Study,Fracture,fracture,2nd"
    table = read_rows(
        tmp_path,
        header,
        *("a,0,1,0,0,F,,1,1,1,0", "b,,False,1,1,M,0,1,1,1,0", "b,,,1,1,M,1,1,1,1,0"),
        *("c,,NaN,1,1,M,see report,1,1,1,0", "d,,,1,1,M,1,1,1,1,0"),
    )
    assert list(table.extra) == ["midline_shift"]
    # A slice with a label of an extra class alone is kept, one without any is not.
    assert table.ids.tolist() == ["a", "b"]
    np.testing.assert_array_equal(table.extra["midline_shift"], [1, 0])
    np.testing.assert_array_equal(table.labels_NK[:, 0], [0, NAN])
    assert "classes any; extra classes midline_shift; columns left out: fold, Pat" in (
        table.description
    )
    with pytest.raises(LabelError, match=r"disagree on 1 label\(s\), .* first b shift"):
        read_rows(tmp_path, "id,any,shift", "a,0,1", "b,0,1", "b,0,0")
    many = ",".join(f"x{k}" for k in range(40))
    table = read_rows(tmp_path, f"id,any,{many}", "a,0" + ",1" * 40)
    assert list(table.extra) == [f"x{k}" for k in range(32)]
    assert "columns left out: x32, x33," in table.description
    assert read_rows(tmp_path, "ID,Label,shift", "a_any,1,1").extra == {}


def test_text_beside_the_labels_may_have_any_encoding(tmp_path: Path) -> None:
    text = "id,any,note,shift\na,0,schräg,1\n"
    (tmp_path / "labels.csv").write_bytes(text.encode("latin-1"))
    table = read_labels(tmp_path / "labels.csv")
    assert list(table.extra) == ["shift"]


def test_extra_classes_of_cq500_are_what_two_of_three_readers_say(
    tmp_path: Path,
) -> None:
    header = "name,R1:ICH,R2:ICH,R3:ICH,R1:MidlineShift,R2:MidlineShift,R3:MidlineShift"
    row = "CQ500-CT-0,0,0,0,1,0,1"
    table = read_rows(tmp_path, f"{header},R1:Other,R2:Other", f"{row},1,text")
    assert list(table.extra) == ["midlineshift"]
    assert table.extra["midlineshift"].tolist() == [1]
    assert table.description.endswith("columns left out: R1:Other, R2:Other")


def test_readers_of_cq500_may_agree_on_a_bleed_and_not_on_its_type(
    tmp_path: Path,
) -> None:
    names = ("ICH", "EDH", "IPH", "IVH", "SAH", "SDH")
    header = ",".join(["name", *(f"R{n}:{name}" for n in (1, 2, 3) for name in names)])
    row = "CQ500-CT-0,1,0,1,0,0,0,1,0,0,0,0,1,0,0,0,0,0,0"
    table = read_rows(tmp_path, header, row)
    assert table.labels_NK.tolist() == [[1, 0, 0, 0, 0, 0]]


def test_the_uid_of_a_slice_counts_before_other_ids(tmp_path: Path) -> None:
    table = read_rows(tmp_path, "image,ID,SOPInstanceUID,any", "a,b,1.2,0")
    assert table.ids.tolist() == ["1.2"]
    assert table.description.endswith("columns left out: image, ID")


def test_a_slice_of_physionet_is_named_by_patient_and_number(tmp_path: Path) -> None:
    header = (
        "PatientNumber,SliceNumber,Intraventricular,Intraparenchymal,Subarachnoid,"
        "Epidural,Subdural,No_Hemorrhage,Fracture_Yes_No"
    )
    table = read_rows(tmp_path, header, "49,1,0,0,0,0,0,1,0", "49,14,0,0,0,1,0,0,1")
    assert table.level == "slice number"
    assert table.ids.tolist() == ["49/1", "49/14"]
    assert table.labels_NK.tolist() == [[0] * 6, [1, 1, 0, 0, 0, 0]]
    assert table.extra["fracture_yes_no"].tolist() == [0, 1]
    table = read_rows(tmp_path, header, "49.0,1.0,0,0,0,0,0,1,0", ",,,,,,,,")
    assert table.ids.tolist() == ["49/1"]
    with pytest.raises(LabelError, match=r"SliceNumber is no number .* first 49/a"):
        read_rows(tmp_path, header, "49,a,0,0,0,0,0,1,0")
    with pytest.raises(LabelError, match=r"not the OR .*first 49/2"):
        read_rows(tmp_path, header, "49,2,0,0,0,1,0,1,0")


def test_a_file_of_no_known_form_is_refused_with_its_columns_and_the_nearest_form(
    tmp_path: Path,
) -> None:
    with pytest.raises(LabelError, match="no label file at"):
        read_labels(tmp_path / "none.csv")
    with pytest.raises(
        LabelError,
        match=r"it has the columns age, size; .* form, wide, also needs one of sliceid",
    ):
        read_rows(tmp_path, "age,size", "1,2")
    with pytest.raises(LabelError, match=r"wide, also needs one of any, epidural, .*"):
        read_rows(tmp_path, "SOPInstanceUID,data,labelName", "1.2,{},Subdural")
    with pytest.raises(LabelError, match=r"CT-ICH, also needs a column slicenumber"):
        read_rows(tmp_path, "PatientNumber,any", "1,1")
    with pytest.raises(LabelError, match=r"wide, also needs one of sliceid, sopinst"):
        read_rows(tmp_path, ",".join(CLASSES), "1,1,0,0,0,0")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.csv.xz", lzma.compress(b"ID,Label\n" * 99)[:-9]),
        ("cut.csv.gz", gzip.compress(b"ID,Label\n" * 99, mtime=0)[:-9]),
        (
            "damaged.csv.gz",
            gzip.compress(b"ID,Label\n" * 99, mtime=0)[:10] + bytes([7] * 99),
        ),
        ("packed.csv.zip", b"PK\3\4\x14\0\0\0\x08\0\x9c\xa7\n"),
        ("latin.csv", "ID,Label,Größe\n".encode("latin-1")),
        ("odd.csv", "ID,Label\n".encode("utf-16")[:-1]),
        ("table.parquet", b"PAR1" + bytes(99) + b"PAR1"),
        ("ragged.csv", b"ID,Label\na_any,1,2\n"),
        ("empty.csv", b""),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LabelError, match="cannot read the label file") as refusal:
        read_labels(tmp_path / name)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("ID,Label,Label", r"more than one column label \(Label, Label\)"),
        ("ID,id,Label", r"more than one column id \(ID, id\)"),
        ("ID,any,ICH", r"more than one column any \(any, ICH\)"),
    ],
)
def test_a_repeated_column_is_refused(
    tmp_path: Path, header: str, message: str
) -> None:
    with pytest.raises(LabelError, match=message):
        read_rows(tmp_path, header)


def test_a_repeated_column_that_is_left_out_does_no_harm(tmp_path: Path) -> None:
    assert read_rows(tmp_path, "ID,any,x,x", "a,1,2,3").ids.tolist() == ["a"]


@pytest.mark.slow
def test_the_whole_kaggle_csv_is_read_with_its_repeated_rows() -> None:
    path = REAL / "stage_1_train.csv.xz"
    if not path.is_file():
        pytest.skip("needs the real label csv beside the repository")
    table = read_labels(path)
    assert len(table.ids) == 674_258
    assert table.num_duplicates == 24
    # Prevalence as published for stage 1.
    assert table.labels_NK.sum(axis=0).tolist() == [
        97_103, 2_761, 32_564, 23_766, 32_122, 42_496,
    ]  # fmt: skip


REFUSED = {
    "any_soft_0.csv": "not the OR .* first ID_a",
    "stage1_duplicate_contradict.csv": "both 0 and 1, first ID_a epidural",
    "rsna_bhx.csv": "has the columns SOPInstanceUID, .* nearest form, wide",
}


@pytest.mark.skipif(not HUNT.is_dir(), reason="needs the label files of the hunt")
@pytest.mark.parametrize("path", sorted(HUNT.glob("*")), ids=lambda path: path.name)
def test_the_files_that_people_have_are_read_or_refused_for_a_reason(
    path: Path,
) -> None:
    if path.name in REFUSED:
        with pytest.raises(LabelError, match=REFUSED[path.name]):
            read_labels(path)
    else:
        assert len(read_labels(path).ids)
