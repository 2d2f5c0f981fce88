"""`prepare --select` stores the slices that an expression describes, and no others."""

from __future__ import annotations

import math
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from ichfast.cli.main import cli
from ichfast.dicom.acquisition import CLOSED_LISTS
from ichfast.errors import SourceError, StoreError
from ichfast.prepare.prepare import prepare_store
from ichfast.prepare.repair import repair_store
from ichfast.prepare.selection import COLUMNS, parse_selection
from ichfast.store.store import Store
from ichfast.store.tables import table_schema
from tests.conftest import contents, random_hu, write_dicom
from tests.dicom.dicom_files import ct_file, ramp

run = partial(prepare_store, labels=None, workers=1, keep_ids=True, max_rejected="0")

ROW: dict[str, Any] = {
    "kernel": "soft",
    "contrast": None,
    "manufacturer": "United Imaging",
    "thickness_mm": 5.0,
    "exposure_mas": math.nan,
    "series_number": 2,
    "kernel_name": "Hr40f",
}


@pytest.mark.parametrize(
    ("text", "is_kept"),
    [
        ("kernel == soft", True),
        ("kernel == 'soft'", True),
        ("kernel != soft", False),
        ("kernel == bone or thickness_mm >= 5", True),
        ("kernel == bone and thickness_mm >= 5", False),
        ("not (kernel == bone) and not thickness_mm < 2.5", True),
        ("kernel in (soft, bone)", True),
        ("kernel not in [bone, ]", True),
        ("series_number in (1, 3)", False),
        ("thickness_mm > -1", True),
        ("kernel_name == hr40F", True),
        ("manufacturer == 'united imaging'", True),
        # Unknown values.
        ("contrast == no", False),
        ("contrast != no", False),
        ("contrast in (yes, no)", False),
        ("contrast not in (yes, no)", False),
        ("not contrast == yes", True),
        ("exposure_mas < 1e9", False),
        ("exposure_mas != 3", False),
    ],
)
def test_an_expression_keeps_or_leaves_out(text: str, is_kept: bool) -> None:
    assert parse_selection(text).keeps(ROW) is is_kept


@pytest.mark.parametrize("depth", [*range(100, 1000, 50), 2000])
def test_nested_expressions_are_read_or_refused(depth: int) -> None:
    with suppress(ValueError):
        parse_selection("not " * depth + "kernel == soft")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kernal == bone", "unknown column in --select 'kernal'; did you mean kernel?"),
        ("kernel == sharp", "unknown kernel in --select 'sharp'; .*soft, bone"),
        ("sex in (M, X)", "unknown sex in --select 'X'"),
        ("kvp == high", "kvp is compared with high in --select, expected a number"),
        ("kvp == True", "kvp is compared with True"),
        ("kvp == '120'", "kvp is compared with '120'"),
        ("model == 3", "model is compared with 3 in --select, expected a word"),
        ("contrast == None", "contrast is compared with None"),
        ("kernel < soft", "kernel cannot be compared like this"),
        ("kernel == (soft, bone)", "kernel cannot be compared like this"),
        ("kernel in soft", "kernel cannot be compared like this"),
        ("kernel is soft", "kernel cannot be compared like this"),
        ("kernel", "cannot understand 'kernel' in --select"),
        ("kernel ==", "cannot understand"),
        ("kernel = bone", "cannot understand"),
        ("1 < kvp", "cannot understand"),
        ("1 < kvp < 3", "cannot understand"),
        ("2 < thickness_mm <= 5", "cannot understand"),
        ("__import__('os').system('true')", "cannot understand"),
        ("kvp == __import__('os')", "kvp is compared with"),
        ("kvp == 10 ** 10 ** 10", "kvp is compared with"),
        ("kernel == soft; kvp == 3", "cannot understand"),
        ("kernel == soft\0", "cannot understand"),
        ("(" * 500 + "kernel == soft" + ")" * 500, "cannot understand"),
        ("not " * 5000 + "kernel == soft", "cannot understand"),
    ],
)
def test_a_wrong_expression_is_refused_before_anything_is_read(
    text: str, expected: str, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match=expected) as caught:
        run([tmp_path / "nowhere"], tmp_path / "store", select=text)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_every_column_of_an_expression_is_one_of_the_table() -> None:
    schema = table_schema((512,))
    assert {name: schema.field(name).type for name in COLUMNS} == COLUMNS


def test_the_docs_name_every_column_and_every_value() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "select.md").read_text("utf-8")
    known = {value for values in CLOSED_LISTS.values() for value in values}
    assert [name for name in (*COLUMNS, *known) if f"`{name}`" not in docs] == []


# ---- stores ----


@pytest.fixture
def heads(tmp_path: Path) -> Path:
    """Four soft slices, two bone ones, and one of an unknown kernel."""
    folder = tmp_path / "heads"
    folder.mkdir()
    for number, kernel in enumerate(["STANDARD"] * 4 + ["BONE"] * 2 + [""]):
        write_dicom(
            folder / f"{number}.dcm",
            f"ID_{number}",
            hu_HW=random_hu(number),
            ConvolutionKernel=kernel,
            SliceThickness="5",
        )
    return folder


def test_slices_that_are_left_out_are_counted_but_have_not_failed(
    heads: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    report = run([heads], store, select="kernel != bone and thickness_mm >= 2")
    assert (report.slices, report.rejected) == (4, {"not-selected": 3})
    rejected = pd.read_csv(store / "rejected.csv")
    assert list(rejected["detail"]) == [
        "kernel bone, thickness_mm 5",
        "kernel bone, thickness_mm 5",
        "kernel unknown, thickness_mm 5",
    ]
    with Store(store) as opened:
        assert len(opened) == sum(shard.count for shard in opened.header.shards) == 4


def test_the_same_slices_alone_give_the_same_shards(
    heads: Path, tmp_path: Path
) -> None:
    run([heads], tmp_path / "selected", select="kernel == soft")
    for number in (4, 5, 6):
        (heads / f"{number}.dcm").unlink()
    run([heads], tmp_path / "alone")
    assert contents(tmp_path / "selected" / "level-512") == contents(
        tmp_path / "alone" / "level-512"
    )


def test_frames_of_one_file_are_selected_one_by_one(tmp_path: Path) -> None:

    (tmp_path / "heads").mkdir()
    frames = np.stack([ramp("<u2", first=0)] * 3)
    content = ct_file(frames, NumberOfFrames="3", KVP="120")
    (tmp_path / "heads" / "1.dcm").write_bytes(content)
    run([tmp_path / "heads"], tmp_path / "store", select="kvp == 120")
    with pytest.raises(SourceError, match="3 of 3 slices: kvp 120"):
        run([tmp_path / "heads"], tmp_path / "none", select="kvp == 140")


def test_append_and_repair_keep_to_the_selection(heads: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    select = "( kernel  ==  bone )"
    run([heads], store, select=select)
    assert run([heads], store, select="kernel == bone").already_finished
    (shard,) = (store / "level-512").iterdir()
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    assert len(repair_store(store, [heads]).repaired) == 1
    for number, kernel in ((7, "EDGE"), (8, "SOFT")):
        write_dicom(
            heads / f"{number}.dcm",
            f"ID_{number}",
            hu_HW=random_hu(number),
            ConvolutionKernel=kernel,
        )
    report = run([heads], store, append=True, select=select)
    assert (report.slices, report.rejected) == (3, {"not-selected": 6})
    with pytest.raises(StoreError, match=r"select \(kernel == bone, now nothing\)"):
        run([heads], store, append=True)
    with pytest.raises(StoreError, match=r"select .* now kernel == soft"):
        run([heads], store, select="kernel == soft")


def test_a_selection_that_keeps_nothing_counts_what_there_is(
    heads: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    result = CliRunner().invoke(
        cli, ["prepare", str(heads), "--store", str(store), "--select", "kvp > 100"]
    )
    assert result.exit_code == 1
    assert "--select keeps none of 7 files with slices: 7 with kvp unknown;" in (
        result.stderr
    )
    with pytest.raises(SourceError) as caught:
        run([heads], store, select="kernel == soft and thickness_mm < 2")
    assert str(caught.value) == (
        "--select keeps none of 7 files with slices: 4 with kernel soft, thickness_mm "
        "5; 2 with kernel bone, thickness_mm 5; 1 with kernel unknown, thickness_mm 5; "
        "change the expression, where a comparison with an unknown value is false"
    )
    assert not (store / "slices.parquet").exists()
