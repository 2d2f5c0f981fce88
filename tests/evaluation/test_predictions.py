"""The predictions table can be written and read in each format, and is checked."""

from __future__ import annotations

import csv
import io
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ichfast.errors import PredictionError
from ichfast.evaluation.predictions import (
    COLUMNS,
    LABEL_COLUMNS,
    TEXT_COLUMNS,
    check_destination,
    labels_NK,
    probs_NK,
    read_predictions,
    write_predictions,
)
from ichfast.labels import CLASSES
from ichfast.store.tables import patients_N
from ichfast.system.checksums import checksum_path
from ichfast.system.spreadsheet import FORMULA_STARTS
from tests.evaluation.foreign_tables import RIGHT, Write, right_table
from tests.mutations import mutations


def a_table() -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "slice_id": ["0012", "b"],
            "series": ["r", "r"],
            "study": ["s", "s"],
            "patient": ["p", "p"],
            "position_mm": [1.5, np.nan],
            "fold": [0, -1],
            "run": ["exp-00+exp-10", "exp-10"],
            "trained_on": pd.array([False, pd.NA], dtype="boolean"),
        }
    )
    table[list(CLASSES)] = np.linspace(0.1, 0.9, 12).reshape(2, 6)
    table[list(LABEL_COLUMNS)] = [[1, 0, 0, 0, 0, 1], [np.nan] * 6]
    return table


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npz"])
def test_ids_like_formulas_are_harmless_in_a_csv_and_come_back(
    tmp_path: Path, suffix: str
) -> None:
    table = a_table()
    table["slice_id"] = ['=HYPERLINK("http://a","b")', "+49 30"]
    table["patient"] = ["@SUM(1)", "\t=1"]
    table["study"] = ["-17", "'=1"]
    path = tmp_path / f"predictions{suffix}"
    write_predictions(path, table)
    assert read_predictions(path)[list(TEXT_COLUMNS)].equals(table[list(TEXT_COLUMNS)])
    if suffix == ".csv":
        with path.open(newline="") as file:
            texts = [row[:4] for row in csv.reader(file)]
        assert not any(text.startswith(FORMULA_STARTS) for row in texts for text in row)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npz"])
def test_a_table_comes_back_as_it_was(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / f"predictions{suffix}"
    write_predictions(path, a_table())
    found = read_predictions(path)
    assert tuple(found.columns) == COLUMNS
    assert found["slice_id"].tolist() == ["0012", "b"]
    np.testing.assert_allclose(probs_NK(found), probs_NK(a_table()), rtol=1e-8)
    np.testing.assert_array_equal(labels_NK(found), labels_NK(a_table()))
    assert found["run"].tolist() == ["exp-00+exp-10", "exp-10"]
    assert found["trained_on"].tolist() == [False, pd.NA]
    np.testing.assert_array_equal(found["position_mm"], [1.5, np.nan])


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npz"])
@pytest.mark.parametrize("text", ["a\rb", "a\nb", 'a"b', "a,b", "NA", "ä\0\u2028z"])
def test_a_text_comes_back_letter_by_letter(
    tmp_path: Path, suffix: str, text: str
) -> None:
    if "\0" in text and suffix == ".csv" and sys.version_info < (3, 11):
        pytest.skip("Python 3.10 writes no NUL to a csv")
    table = a_table().assign(study=[text, "s"])
    write_predictions(tmp_path / f"p{suffix}", table)
    assert read_predictions(tmp_path / f"p{suffix}")["study"].tolist() == [text, "s"]


def test_a_text_that_csv_cannot_hold_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def to_csv(*_: object, **_options: object) -> str:
        raise csv.Error("need to escape")  # as Python 3.10 does for NUL

    monkeypatch.setattr(pd.DataFrame, "to_csv", to_csv)
    path = tmp_path / "p.csv"
    with pytest.raises(PredictionError) as refused:
        write_predictions(path, a_table())
    assert str(refused.value) == (
        f"cannot write {path}: need to escape; a text holds a character that csv "
        "cannot: name a .parquet file"
    )


@pytest.mark.parametrize(("suffix", "write"), RIGHT.values(), ids=RIGHT)
def test_a_right_table_from_elsewhere_is_read_with_a_warning(
    tmp_path: Path, suffix: str, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"p{suffix}"
    write(path)
    found = read_predictions(path)
    kinds = {"trained_on": "boolean", **dict.fromkeys(CLASSES, "float64")}
    expected = right_table().astype(kinds)
    pd.testing.assert_frame_equal(found, expected, check_exact=False, rtol=1e-6)
    assert f"no p{suffix}.sha256 beside it: not checked" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npz"])
def test_no_mutation_of_a_table_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p{suffix}"
    write_predictions(path, right_table())
    for content in mutations(path.read_bytes(), seed=1):
        path.write_bytes(content)
        with pytest.raises(PredictionError) as caught:
            read_predictions(path)
        assert str(caught.value) == (
            f"{path}: its checksum is not that in p{suffix}.sha256: it was edited, or "
            f"is damaged; make it again, or delete p{suffix}.sha256 to read it as it is"
        )


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npz"])
def test_a_mutation_of_a_checksum_is_refused_or_changes_nothing(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"p{suffix}"
    write_predictions(path, right_table())
    written, refusals = read_predictions(path), []
    for content in mutations(checksum_path(path).read_bytes(), seed=2):
        checksum_path(path).write_bytes(content)
        try:
            assert read_predictions(path).equals(written)
        except PredictionError as error:
            refusals.append(str(error))
    assert len(refusals) > 200
    assert len(set(refusals)) == 1
    assert refusals[0].endswith(
        f"make it again, or delete p{suffix}.sha256 to read it as it is"
    )


def test_a_file_that_cannot_be_read_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    write_predictions(tmp_path / "p.csv", a_table())
    monkeypatch.setattr(Path, "read_bytes", deny)
    with pytest.raises(
        PredictionError, match=r"cannot read .*p.csv: Permission denied"
    ):
        read_predictions(tmp_path / "p.csv")


def test_what_is_no_predictions_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PredictionError, match=r"\.csv or \.npz files, got 'p.txt'"):
        write_predictions(tmp_path / "p.txt", a_table())
    with pytest.raises(PredictionError, match=r"no predictions at .*ichfast predict"):
        read_predictions(tmp_path / "none.csv")
    (tmp_path / "p.csv").write_text("slice_id,any\na,0.5\n")
    with pytest.raises(PredictionError, match="lacks the columns series, study"):
        read_predictions(tmp_path / "p.csv")
    for suffix in ("parquet", "npz"):
        path = tmp_path / f"p.{suffix}"
        path.write_bytes(b"not a table")
        with pytest.raises(PredictionError, match="damaged or not a table"):
            read_predictions(path)


def test_a_path_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PredictionError, match=r"cannot write .*name another file"):
        check_destination(tmp_path / "file" / "p.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(PredictionError, match="it is a folder"):
        check_destination(tmp_path / "folder.csv")


def test_a_slice_without_a_patient_counts_as_one_of_its_study() -> None:
    table = a_table().assign(patient=["", np.nan], study=["s1", "s2"])
    assert patients_N(table).tolist() == ["s1", "s2"]
    assert patients_N(a_table()).tolist() == ["p", "p"]


@pytest.mark.parametrize("name", ["any", "label_subdural", "fold", "position_mm"])
def test_a_word_in_a_column_of_numbers_is_an_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / "p.csv"
    row = dict.fromkeys(COLUMNS, "1")
    pd.DataFrame([row, {**row, name: "high"}]).to_csv(path, index=False)
    with pytest.raises(
        PredictionError, match=f"other than numbers in the column {name}; write"
    ):
        read_predictions(path)


def zeros(path: Path) -> None:
    np.savez_compressed(path, any=np.zeros(10**6))


def unknown_method(path: Path) -> None:
    np.savez(path, any=np.zeros(3))
    content = bytearray(path.read_bytes())
    place = content.find(b"PK\1\2") + 10
    content[place : place + 2] = b"\x63\0"
    path.write_bytes(content)


def claims_a_shape(path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (10**14,)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("any.npy", header.getvalue())


@pytest.mark.parametrize("bomb", [zeros, unknown_method, claims_a_shape])
def test_a_hostile_npz_is_refused(tmp_path: Path, bomb: Callable[[Path], None]) -> None:
    bomb(tmp_path / "a.npz")
    with pytest.raises(PredictionError, match="is damaged or not a table"):
        read_predictions(tmp_path / "a.npz")


@pytest.mark.parametrize("text", ["a" + ",a" * 50_000, "a\n" + "," * 100_000])
def test_a_csv_with_endless_columns_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(PredictionError, match="a line has 65,536 bytes or more"):
        read_predictions(tmp_path / "a.csv")
