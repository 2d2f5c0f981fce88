"""Label csvs are read exactly, and refused when they cannot be trusted."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ichfast import labels
from ichfast.errors import LabelError
from ichfast.labels import CLASSES, read_labels

REAL = Path(__file__).parents[2] / "shared" / "data" / "labels"

SUBTYPES = CLASSES[1:]


def long_rows(slice_id: str, *positive: str) -> list[str]:
    """Six rows as Kaggle writes them: `any` last."""
    positive = (*positive, "any") if positive else ()
    return [f"{slice_id}_{name},{int(name in positive)}" for name in (*SUBTYPES, "any")]


def write_csv(path: Path, rows: list[str], header: str = "ID,Label") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_the_long_form_becomes_one_row_a_slice(tmp_path: Path) -> None:
    rows = [*long_rows("ID_b", "subdural"), *long_rows("ID_a")]
    table = read_labels(write_csv(tmp_path / "labels.csv", rows))
    assert table.slice_ids.tolist() == ["ID_b", "ID_a"]
    np.testing.assert_array_equal(
        table.labels_NK, [[1, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]]
    )
    assert table.num_duplicates == 0


def test_identical_rows_count_once_and_are_counted(tmp_path: Path) -> None:
    rows = [
        *long_rows("ID_a", "epidural"),
        *long_rows("ID_b"),
        *long_rows("ID_a", "epidural"),
    ]
    table = read_labels(write_csv(tmp_path / "labels.csv", rows))
    assert table.slice_ids.tolist() == ["ID_a", "ID_b"]
    assert table.num_duplicates == 6


def test_the_wide_form_becomes_one_row_a_slice(tmp_path: Path) -> None:
    header = "image," + ",".join(CLASSES)
    rows = ["ID_b,1,0,0,0,0,1", "ID_a,0,0,0,0,0,0", "ID_c,,,,,,", "ID_a,0,0,0,0,0,0"]
    table = read_labels(write_csv(tmp_path / "labels.csv", rows, header))
    assert table.slice_ids.tolist() == ["ID_b", "ID_a"]
    np.testing.assert_array_equal(table.labels_NK[0], [1, 0, 0, 0, 0, 1])
    assert table.num_duplicates == 1


@pytest.mark.parametrize(
    ("suffix", "opener"), [(".gz", gzip.open), (".bz2", bz2.open), (".xz", lzma.open)]
)
def test_a_compressed_csv_is_read_without_unpacking_it(
    tmp_path: Path, suffix: str, opener: type
) -> None:
    path = tmp_path / f"labels.csv{suffix}"
    with opener(path, "wt") as stream:
        stream.write("\n".join(["ID,Label", *long_rows("ID_a", "epidural")]))
    assert read_labels(path).slice_ids.tolist() == ["ID_a"]


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([*long_rows("ID_a"), "ID_a_any,1"], "both 0 and 1 in 2 row.*ID_a_any"),
        (["ID_a_epidural,2"], "not 0 or 1 in 1 row.*ID_a_epidural"),
        (["ID_a_epidural,0.5"], "not 0 or 1"),
        (["ID_a_frontal,1"], "class in ID is unknown.*ID_a_frontal"),
        (["nounderscore,1"], "ID is not `slice_class`.*nounderscore"),
        (long_rows("ID_a")[:-1], "fewer than six classes.*ID_a"),
        (
            [*long_rows("ID_a", "epidural")[:-1], "ID_a_any,0"],
            "not the OR of the five.*ID_a",
        ),
        ([], "has no row"),
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
        (["ID_a,0,0,0,0,0,0", "ID_a,1,1,0,0,0,0"], "two rows of the slice disagree"),
        (["ID_a,0,0,0,,0,0"], "a class is not 0 or 1"),
        (["ID_a,,,,,,"], "no labelled row"),
    ],
)
def test_a_wide_csv_that_contradicts_itself_is_refused(
    tmp_path: Path, rows: list[str], problem: str
) -> None:
    header = "image," + ",".join(CLASSES)
    with pytest.raises(LabelError, match=problem):
        read_labels(write_csv(tmp_path / "labels.csv", rows, header))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="no label csv at"):
        read_labels(tmp_path / "none.csv")
    with pytest.raises(LabelError, match=r"is not a label csv.*found name, age"):
        read_labels(write_csv(tmp_path / "other.csv", ["x,1"], "name,age"))
    with pytest.raises(LabelError, match="names no slice"):
        read_labels(write_csv(tmp_path / "nameless.csv", [], ",".join(CLASSES)))
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)) * 9)
    with pytest.raises(LabelError, match=r"cannot read|is not a label csv"):
        read_labels(tmp_path / "binary.csv")


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
        ("excel.csv", "ID,Label\n".encode("utf-16")),
    ],
)
def test_a_csv_that_cannot_be_read_is_refused(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LabelError, match="cannot read the label csv"):
        read_labels(tmp_path / name)


@pytest.mark.parametrize(
    ("header", "name"),
    [("ID,Label,Label", "Label"), (",".join(["ID", "any", *CLASSES]), "any")],
)
def test_a_repeated_column_is_refused(tmp_path: Path, header: str, name: str) -> None:
    with pytest.raises(LabelError, match=f"more than one column {name}"):
        read_labels(write_csv(tmp_path / "labels.csv", [], header))


@pytest.mark.slow
def test_the_whole_kaggle_csv_is_read_with_its_repeated_rows() -> None:
    path = REAL / "stage_1_train.csv.xz"
    if not path.is_file():
        pytest.skip("needs the real label csv beside the repository")
    table = read_labels(path)
    assert len(table.slice_ids) == 674_258
    assert table.num_duplicates == 24
    # Prevalence as published for stage 1.
    assert table.labels_NK.sum(axis=0).tolist() == [
        97_103, 2_761, 32_564, 23_766, 32_122, 42_496,
    ]  # fmt: skip


class _WatchedStream(io.BytesIO):
    """Records the order of its calls."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.calls: list[str] = []

    def read(self, size: int | None = -1, /) -> bytes:
        self.calls.append("read")
        return super().read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self.calls.append("seek")
        return super().seek(offset, whence)


def test_the_header_is_read_without_taking_rows() -> None:
    """A regression: Arrow reads ahead, and its header reader sometimes took rows."""
    row = "ID_0123456789ab_any,0\n"
    count = 5 * 2**20 // len(row)
    stream = _WatchedStream(("ID,Label\n" + row * count).encode())
    table = labels._parse_csv(stream)
    assert len(table) == count
    assert table.column_names == ["ID", "Label"]
    assert "read" not in stream.calls[: stream.calls.index("seek")]


def test_a_first_line_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    content = b"x" * (labels.MAX_HEADER_BYTES + 100)
    stream = io.BytesIO(content)
    with pytest.raises(pa.ArrowInvalid):
        labels._parse_csv(stream)
    assert stream.tell() == labels.MAX_HEADER_BYTES
    (tmp_path / "endless.csv").write_bytes(content)
    with pytest.raises(LabelError, match="cannot read the label csv"):
        read_labels(tmp_path / "endless.csv")


def test_a_csv_that_would_unpack_to_far_more_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv.gz"
    path.write_bytes(gzip.compress(b"ID,Label\n" + b"ID_1_any,0\n" * 300_000))
    with pytest.raises(LabelError, match="it would unpack to more than"):
        read_labels(path)
