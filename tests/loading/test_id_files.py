"""Own folds and lists of ids decide which slices train and validate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ichfast.errors import FoldError, RecipeError
from ichfast.loading.id_files import (
    IdFile,
    fold_numbers,
    read_id_file,
    write_id_file,
)
from ichfast.loading.splits import FoldConfig, in_run_folder, split_slices
from ichfast.store.store import Store

BY_STUDY = {"S1": 0, "S2": 0, "S3": 2, "S4": 0, "S5": 2, "S6": 3}


def write(path: Path, header: str, *rows: str) -> str:
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def study_folds(folder: Path, **changed: int | str) -> str:
    rows = [f"{study},{fold}" for study, fold in {**BY_STUDY, **changed}.items()]
    return write(folder / "folds.csv", "StudyInstanceUID,fold", *rows)


@pytest.mark.parametrize(
    ("header", "column"),
    [
        ("SOPInstanceUID", "slice_id"),
        ("slice_id", "slice_id"),
        ("SeriesInstanceUID", "series"),
        ("series", "series"),
        ("Study Instance UID", "study"),
        ("PatientID", "patient"),
    ],
)
def test_folds_are_those_of_a_file_of_any_level(
    tmp_path: Path, tiny_store: Store, header: str, column: str
) -> None:
    table = tiny_store.table
    fold_of = dict(zip(table[column], table["study"].map(BY_STUDY), strict=True))
    rows = [f"{name},{fold}.0,text" for name, fold in fold_of.items()]
    path = write(tmp_path / "folds.csv", f"{header},Fold,note", *rows)
    split = split_slices(tiny_store, FoldConfig(file=path, fold=2))
    is_labelled_N = table["any"].notna()
    assert split.valid_N.tolist() == np.flatnonzero(table["study"] == "S3").tolist()
    expected = is_labelled_N & (table["study"] != "S3")
    assert split.train_N.tolist() == np.flatnonzero(expected).tolist()
    assert split.num_left_out == 0
    assert split.files["file"].column == column
    assert fold_numbers(Path(path)) == [0, 2, 3]


def test_slices_without_a_fold_take_no_part_and_are_counted(
    tmp_path: Path, tiny_store: Store
) -> None:
    path = study_folds(tmp_path, S6="", S4="")
    split = split_slices(tiny_store, FoldConfig(file=path, fold=2))
    studies = set(tiny_store.table["study"].iloc[split.train_N])
    assert studies == {"S1", "S2"}
    assert split.num_left_out == 5 + 3


@pytest.mark.parametrize(
    ("changed", "settings", "message"),
    [
        (
            {"S2": 1},
            FoldConfig(),
            r"puts 1 patient\(s\) in more than one fold, first P1: the m",
        ),
        (
            {"S1": "x"},
            FoldConfig(),
            r"the fold of S1 is 'x'; a fold is a number from 0 to 99",
        ),
        ({"S1": 100}, FoldConfig(), r"the fold of S1 is '100'"),
        (
            {},
            FoldConfig(file="x", fold=1),
            r"validate with in fold 1: .* have the folds 0, 2, 3 in",
        ),
        (
            {"S3": "", "S6": ""},
            FoldConfig(),
            r"no slices to train on in fold 0: .*folds 0 in",
        ),
        ({}, FoldConfig(kind="slice"), r"add --set folds\.kind=patient"),
    ],
)
def test_a_file_whose_folds_cannot_be_used_is_refused(
    tmp_path: Path,
    tiny_store: Store,
    changed: dict[str, int | str],
    settings: FoldConfig,
    message: str,
) -> None:
    folds = replace(settings, file=study_folds(tmp_path, **changed))
    with pytest.raises(FoldError, match=message):
        split_slices(tiny_store, folds)


def test_a_file_without_the_ids_of_the_store_is_refused(
    tmp_path: Path, tiny_store: Store
) -> None:
    def refusal(header: str, *rows: str) -> str:
        path = write(tmp_path / "folds.csv", header, *rows)
        with pytest.raises(FoldError) as raised:
            split_slices(tiny_store, FoldConfig(file=path))
        return str(raised.value)

    assert "has the columns id2, fold; it needs one of slice_id (SOP" in refusal(
        "id2,fold", "1,0"
    )
    assert "and patient (PatientID), and fold" in refusal("PatientID,part", "P1,0")
    assert "has S1 in the folds 0 and 1" in refusal("study,fold", "S1,0", "S1,1")
    assert "has no id of a study" in refusal("study,fold", ",0")
    message = refusal("study,fold", "1.2,0")
    assert "none of the 1 ids in" in message
    assert "is of a study of" in message
    assert "ids such as 1.2, the store such as S1; check" in message
    tiny_store.header = replace(tiny_store.header, keep_ids=False)
    assert "the ids of the store are hashes" in refusal("study,fold", "1.2,0")
    with pytest.raises(FoldError, match="no file of ids at"):
        split_slices(tiny_store, FoldConfig(file="none.csv"))
    with pytest.raises(FoldError, match="has no fold; give"):
        fold_numbers(Path(write(tmp_path / "f.csv", "study,fold", "S1,")))
    with pytest.raises(RecipeError, match=r"folds\.fold is in 0 to 99, got 100"):
        FoldConfig(file="folds.csv", fold=100)
    FoldConfig(file="folds.csv", fold=7)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("only.csv", ("PatientID,note", "P1,x", "P5,y")),
        ("only.csv", ("study", "S1", "S2", "S6", "S99")),
        ("only.txt", ("P1", "P5")),
        ("only.txt", ("P0", "P1", "P5")),
        ("only.txt", ("R1.dcm", "R2", "R6")),
    ],
)
def test_only_the_slices_of_a_list_take_part(
    tmp_path: Path,
    tiny_store: Store,
    caplog: pytest.LogCaptureFixture,
    name: str,
    lines: tuple[str, ...],
) -> None:
    path = write(tmp_path / name, *lines)
    split = split_slices(tiny_store, FoldConfig(num_folds=2, only=path))
    has_strangers = {"P0", "S99"} & set(lines)
    assert ("1 of " in caplog.text) == bool(has_strangers)
    assert not has_strangers & set(split.files["only"].ids)
    patients = tiny_store.table["patient"].to_numpy(dtype=object)
    assert {*patients[split.train_N], *patients[split.valid_N]} == {"P1", "P5"}
    both = FoldConfig(file=study_folds(tmp_path), fold=3, only=path)
    assert set(patients[split_slices(tiny_store, both).train_N]) == {"P1"}


def test_a_list_without_labelled_slices_is_refused(
    tmp_path: Path, tiny_store: Store
) -> None:
    path = write(tmp_path / "only.txt", "P4")
    with pytest.raises(FoldError, match=r"no slice with labels is in .*only\.txt"):
        split_slices(tiny_store, FoldConfig(num_folds=2, only=path))
    two = write(tmp_path / "only.csv", "name,age", "P1,3")
    with pytest.raises(FoldError, match="has the columns name, age; it needs one of"):
        split_slices(tiny_store, FoldConfig(num_folds=2, only=two))


def test_a_copy_has_the_ids_and_folds_and_nothing_else(
    tmp_path: Path, tiny_store: Store
) -> None:
    path = Path(study_folds(tmp_path))
    found = read_id_file(path, tiny_store, has_folds=True)
    path.write_text(
        "\n".join(f"{line},secret" for line in path.read_text().splitlines()) + "\n"
    )
    same = read_id_file(path, tiny_store, has_folds=True)
    assert same == found
    write_id_file(tmp_path / "copy.csv", found)
    copy = read_id_file(tmp_path / "copy.csv", tiny_store, has_folds=True)
    assert (copy, copy.digest) == (found, found.digest)
    assert copy.digest != replace(found, folds=(1, 0, 2, 0, 2, 3)).digest
    odd = IdFile(column="patient", ids=('a,"b', "P1", "ä"))
    tiny_store.table["patient"] = ["P1", 'a,"b', *["ä"] * 27]
    write_id_file(tmp_path / "odd.csv", odd)
    assert read_id_file(tmp_path / "odd.csv", tiny_store, has_folds=False) == odd
    folds = FoldConfig(file=str(path), only="gone.csv")
    saved = in_run_folder(folds, tmp_path)
    assert saved.file == str(tmp_path / "folds.csv")
    missing = in_run_folder(folds, tmp_path, only_missing=True)
    assert (missing.file, missing.only) == (str(path), str(tmp_path / "only.csv"))
    assert in_run_folder(FoldConfig(), tmp_path) == FoldConfig()
