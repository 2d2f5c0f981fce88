"""A submission is exactly what the competition takes, or an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ichfast.errors import SubmissionError
from ichfast.labels import CLASSES
from ichfast.predict.submission import SubmissionReport, write_submission

SAMPLE_CLASSES = (*CLASSES[1:], "any")
"""The order within a slice in the competition's own sample: `any` last."""

REAL_SAMPLE = (
    Path(__file__).parents[3] / "shared/data/labels/test_sample_submission.csv"
)


def make_table(slice_ids: list[str], *, seed: int = 0) -> pd.DataFrame:
    """Only the columns that a submission needs."""
    probs = np.random.default_rng(seed).random((len(slice_ids), 6))
    table = pd.DataFrame(probs, columns=list(CLASSES))
    table.insert(0, "slice_id", slice_ids)
    return table


def write_sample(path: Path, slice_ids: list[str]) -> Path:
    rows = [
        f"{slice_id}_{name},0.5" for slice_id in slice_ids for name in SAMPLE_CLASSES
    ]
    path.write_text("\n".join(["ID,Label", *rows]) + "\n")
    return path


@pytest.fixture
def table() -> pd.DataFrame:
    return make_table(["ID_b", "ID_a", "ID_with_any", "ID_c", "ID_e"])


@pytest.fixture
def sample(tmp_path: Path, table: pd.DataFrame) -> Path:
    return write_sample(tmp_path / "sample.csv", sorted(table["slice_id"]))


def test_without_a_sample_the_table_decides_the_order(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    report = write_submission(table, tmp_path / "out.csv", sample=None)
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0] == "ID,Label"
    assert lines[1:] == [
        f"{slice_id}_{name},{prob:.10f}"
        for slice_id, *probs in table.itertuples(index=False)
        for name, prob in zip(CLASSES, probs, strict=True)
    ]
    assert report == SubmissionReport(slices=5, rows=30, clipped=0, order="table")


def test_with_a_sample_its_rows_decide_the_order(
    table: pd.DataFrame, sample: Path, tmp_path: Path
) -> None:
    report = write_submission(table, tmp_path / "out.csv", sample=sample)
    written = pd.read_csv(tmp_path / "out.csv")
    assert list(written["ID"]) == list(pd.read_csv(sample)["ID"])
    prob_of = table.set_index("slice_id")
    for row_id, label in zip(written["ID"], written["Label"], strict=True):
        slice_id, _, name = row_id.rpartition("_")
        assert label == pytest.approx(prob_of.loc[slice_id, name], abs=5.1e-11)
    assert report.order == "sample"


@pytest.mark.skipif(not REAL_SAMPLE.exists(), reason="the shared data are not here")
def test_the_competitions_own_sample_is_followed(tmp_path: Path) -> None:
    ids = pd.read_csv(REAL_SAMPLE)["ID"]
    slices = ids.str.rpartition("_")[0].drop_duplicates()
    table = make_table(list(slices.sample(frac=1.0, random_state=0)))
    out = tmp_path / "out.csv"
    report = write_submission(table, out, sample=REAL_SAMPLE)
    assert report.rows == len(ids) == 6 * len(slices)
    assert list(pd.read_csv(out)["ID"]) == list(ids)


def test_zero_and_one_are_clipped_and_counted(tmp_path: Path) -> None:
    table = make_table(["ID_a"]).assign(any=1.0, epidural=0.0, subdural=1e-9)
    report = write_submission(table, tmp_path / "out.csv", sample=None)
    text = (tmp_path / "out.csv").read_text()
    assert "ID_a_any,0.9999990000\n" in text
    assert "ID_a_epidural,0.0000010000\n" in text
    assert "ID_a_subdural,0.0000010000\n" in text
    assert report.clipped == 3


@pytest.mark.parametrize("clip", [0.0, -1.0, 0.5, float("nan")])
def test_a_clip_out_of_range_is_refused(
    table: pd.DataFrame, tmp_path: Path, clip: float
) -> None:
    with pytest.raises(SubmissionError, match="clip must be from 1e-10"):
        write_submission(table, tmp_path / "out.csv", sample=None, clip=clip)


def refusal(table: pd.DataFrame, out: Path, sample: Path | None = None) -> str:
    """The error message; nothing may have been written."""
    files_before = sorted(out.parents[0].glob("*"))
    with pytest.raises(SubmissionError) as caught:
        write_submission(table, out, sample=sample)
    assert sorted(out.parents[0].glob("*")) == files_before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("odd", [-0.01, 1.01, 4.2, float("nan"), float("inf")])
def test_values_that_are_no_probabilities_are_refused(
    table: pd.DataFrame, tmp_path: Path, odd: float
) -> None:
    table.loc[1, "subdural"] = odd
    message = refusal(table, tmp_path / "out.csv")
    assert message.startswith("1 of 30 predictions are not probabilities")
    assert f"ID_a_subdural = {odd:g}" in message


def test_a_slice_predicted_twice_is_refused(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    doubled = pd.concat([table, table.iloc[[1, 1]]])
    message = refusal(doubled, tmp_path / "out.csv")
    assert message.startswith("1 slices are predicted more than once, such as ID_a")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_an_id_that_a_spreadsheet_would_run_is_refused(
    tmp_path: Path, start: str
) -> None:
    table = make_table(["ID_1", f"{start}HYPERLINK(1)"])
    message = refusal(table, tmp_path / "out.csv")
    assert message.startswith("1 slice id(s) begin like a formula, such as")
    assert "HYPERLINK(1)" in message


def test_missing_and_extra_slices_are_counted_and_shown(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    sample = write_sample(tmp_path / "sample.csv", ["ID_a", "ID_b", "ID_x", "ID_y"])
    message = refusal(table, tmp_path / "out.csv", sample)
    assert "2 of 4 slices are not predicted (such as ID_x, ID_y)" in message
    assert "3 predicted slices are not in it (such as ID_with_any, ID_c" in message


def test_extra_slices_alone_are_refused(table: pd.DataFrame, tmp_path: Path) -> None:
    sample = write_sample(tmp_path / "sample.csv", list(table["slice_id"][1:]))
    message = refusal(table, tmp_path / "out.csv", sample)
    assert "0 of 4 slices are not predicted; 1 predicted slices are not" in message


@pytest.mark.parametrize("missing", [None, "", float("nan")])
def test_a_missing_slice_id_is_refused(
    table: pd.DataFrame, tmp_path: Path, missing: str | float | None
) -> None:
    table["slice_id"] = table["slice_id"].astype(object)
    table.loc[2, "slice_id"] = missing
    assert "1 predictions have no slice id" in refusal(table, tmp_path / "out.csv")


def test_no_slices_are_refused(table: pd.DataFrame, tmp_path: Path) -> None:
    assert "hold no slices" in refusal(table.iloc[:0], tmp_path / "out.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a csv file"),
        ("ID,Label\n", "found 0 rows"),
        ("id,label\nID_a_any,0.5\n", "columns id,label, expected ID,Label"),
        ("ID,Label\nID_a,0.5\n", "1 of 1 ids do not end in _any"),
        ("ID,Label\nID_a_any,0.5\n", "1 slices lack some of the six classes"),
        ("ID,Label\n" + 2 * "ID_a_any,0.5\n", "1 ids occur more than once"),
        ("ID,Label\n1,2,3\n1,2,3,4\n", "is not a csv file"),
    ],
)
def test_a_wrong_sample_is_refused(
    table: pd.DataFrame, tmp_path: Path, text: str, message: str
) -> None:
    sample = tmp_path / "sample.csv"
    sample.write_text(text)
    assert message in refusal(table, tmp_path / "out.csv", sample)


def test_a_missing_sample_is_refused(table: pd.DataFrame, tmp_path: Path) -> None:
    message = refusal(table, tmp_path / "out.csv", tmp_path / "absent.csv")
    assert message.endswith("absent.csv: No such file or directory")


def test_a_refusal_leaves_the_old_file_unchanged(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    out.write_text("older")
    refusal(table.assign(any=2.0), out)
    assert out.read_text() == "older"


def test_a_path_that_cannot_be_written_is_an_error(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot write" in refusal(table, tmp_path / "file" / "out.csv")
