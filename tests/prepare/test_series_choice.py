"""`prepare --series one-per-study` stores one series of each study, by an order."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from ichfast.errors import StoreError
from ichfast.prepare.prepare import prepare_store
from ichfast.prepare.repair import repair_store
from ichfast.prepare.series_choice import chosen_rows_N
from ichfast.store.store import Store
from ichfast.store.verify import verify_store
from tests.conftest import contents, random_hu, write_dicom

run = partial(
    prepare_store,
    labels=None,
    workers=1,
    keep_ids=True,
    max_rejected="0",
    series="one-per-study",
)

BEST: dict[str, Any] = {
    "image_type": "original",
    "contrast": "no",
    "kernel": "soft",
    "thickness_mm": 5.0,
    "series_number": 4,
    "entry": 7,
}


def rows_of(*series: tuple[str, str, int, Mapping[str, Any]]) -> pa.Table:
    """Rows of series of one patient: study, series, number of slices, and changes."""
    return pa.Table.from_pylist(
        [
            {**BEST, **changes, "patient": "P", "study": study, "series": name}
            for study, name, num_slices, changes in series
            for _ in range(num_slices)
        ]
    )


def chosen(rows: pa.Table) -> list[str]:
    return sorted(set(rows["series"].filter(pa.array(chosen_rows_N(rows))).to_pylist()))


@pytest.mark.parametrize(
    "worse",
    [
        {"image_type": "derived"},
        {"image_type": None},
        {"image_type": "processed"},
        {"contrast": "yes"},
        {"contrast": None},
        {"kernel": "bone"},
        {"kernel": None},
        {"thickness_mm": 3.0},
        {"thickness_mm": 6.0},
        {"thickness_mm": 0.6},
        {"thickness_mm": None},
        {"series_number": 5},
        {"series_number": None},
    ],
)
def test_the_better_series_is_chosen(worse: dict[str, Any]) -> None:
    better: dict[str, Any] = {}
    both = ("S", "worse", 9, worse), ("S", "best", 9, better)
    assert chosen(rows_of(*both)) == ["best"]
    assert chosen(rows_of(*reversed(both))) == ["best"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"image_type": "original", "contrast": "yes"}, {"image_type": "derived"}),
        ({"image_type": "derived"}, {"image_type": None}),
        ({"image_type": None}, {"image_type": "processed"}),
        ({"image_type": "processed"}, {"image_type": "localizer"}),
        ({"contrast": "no", "kernel": "bone"}, {"contrast": None}),
        ({"contrast": None}, {"contrast": "yes"}),
        ({"kernel": "soft", "thickness_mm": 0.6}, {"kernel": None}),
        ({"kernel": None}, {"kernel": "bone"}),
        # From 2.5 to 5 mm goes before what is nearer to 5 mm.
        ({"thickness_mm": 2.5}, {"thickness_mm": 5.5}),
        ({"thickness_mm": 1.25}, {"thickness_mm": 0.6}),
        ({"thickness_mm": 20.0}, {"thickness_mm": None}),
    ],
)
def test_the_order_is_that_of_the_docs(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    rows = rows_of(("S", "second", 9, second), ("S", "first", 9, first))
    assert chosen(rows) == ["first"]


def test_more_slices_go_before_a_lower_number() -> None:
    rows = rows_of(("S", "few", 8, {"series_number": 1}), ("S", "many", 9, {}))
    assert chosen(rows) == ["many"]


def test_each_study_keeps_one_series() -> None:
    rows = rows_of(
        ("S1", "a", 3, {"kernel": "bone"}),
        ("S2", "b", 3, {"kernel": "bone"}),
        ("S2", "c", 2, {}),
        ("S3", "d", 2, {}),
    )
    assert chosen(rows) == ["a", "c", "d"]


def test_a_series_is_as_good_as_its_worst_slice() -> None:
    rows = rows_of(
        ("S", "mixed", 8, {}),
        ("S", "mixed", 1, {"contrast": "yes"}),
        ("S", "clean", 2, {}),
    )
    assert chosen(rows) == ["clean"]


def test_a_series_of_the_store_before_stays() -> None:
    rows = rows_of(
        ("S", "new", 9, {}), ("S", "old", 2, {"kernel": "bone", "entry": -1})
    )
    assert chosen(rows) == ["old"]


def test_two_equal_series_are_an_error_that_names_both() -> None:
    rows = rows_of(("S", "one", 30, {}), ("S", "other", 30, {}), ("T", "x", 1, {}))
    with pytest.raises(StoreError) as caught:
        chosen_rows_N(rows)
    assert str(caught.value) == (
        "--series one-per-study cannot choose for 1 of 2 studies, first S: series 4 "
        "(one, 30 slices) and series 4 (other, 30 slices) are equally good; leave one "
        "out with --select, or give --series all, after which nothing is decoded again"
    )


# ---- stores ----


def write_series(folder: Path, name: str, count: int, **tags: Any) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        write_dicom(
            folder / f"{name}-{number}.dcm",
            f"ID_{name}_{number}",
            hu_HW=random_hu(number),
            SeriesInstanceUID=f"1.88.{sum(map(ord, name))}",
            ImagePositionPatient=[0, 0, 5 * number],
            **tags,
        )


@pytest.fixture
def heads(tmp_path: Path) -> Path:
    """A study of a soft and a longer bone series."""
    folder = tmp_path / "heads"
    write_series(folder, "bone", 5, ConvolutionKernel="BONE", SeriesNumber="1")
    write_series(folder, "soft", 4, ConvolutionKernel="SOFT", SeriesNumber="2")
    return folder


def names_in(store: Path) -> set[str]:
    with Store(store) as opened:
        return {name.split("_")[1] for name in opened.table["slice_id"]}


def test_the_other_series_are_counted_as_not_selected(
    heads: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    report = run([heads], store)
    assert (report.slices, report.series) == (4, 1)
    assert report.rejected == {"not-selected": 5}
    assert names_in(store) == {"soft"}
    rejected = pd.read_csv(store / "rejected.csv")
    assert list(rejected["path"]) == [f"bone-{k}.dcm" for k in range(5)]
    assert set(rejected["detail"]) == {"another series of its study is stored"}
    assert verify_store(store) == []
    assert run([heads], store).already_finished


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_number_of_workers(
    heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ichfast.prepare.prepare.UNIT_ENTRIES", 2)
    run([heads], tmp_path / "one")
    run([heads], tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_study_of_one_series_loses_nothing(tmp_path: Path) -> None:
    write_series(tmp_path / "heads", "soft", 3)
    report = run([tmp_path / "heads"], tmp_path / "store")
    assert (report.slices, report.rejected) == (3, {})


def test_a_later_series_of_a_study_is_left_out(heads: Path, tmp_path: Path) -> None:
    store, more = tmp_path / "store", tmp_path / "more"
    run([heads], store)
    write_series(more, "best", 9, ConvolutionKernel="SOFT", SeriesNumber="1")
    write_series(more, "new", 2, StudyInstanceUID="1.77.9")
    report = run([more], store, append=True)
    assert (report.slices, report.rejected) == (6, {"not-selected": 14})
    assert names_in(store) == {"soft", "new"}
    (shard, _) = sorted((store / "level-512").iterdir())
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    assert len(repair_store(store, [heads, more]).repaired) == 1
    with pytest.raises(StoreError, match=r"series \(one-per-study, now all\)"):
        run([more], store, append=True, series="all")


def test_after_an_error_all_series_can_be_stored_without_decoding(
    heads: Path, tmp_path: Path
) -> None:
    write_series(heads, "same", 4, ConvolutionKernel="SOFT", SeriesNumber="2")
    with pytest.raises(StoreError, match="are equally good"):
        run([heads], tmp_path / "store")
    report = run([heads], tmp_path / "store", series="all")
    assert (report.files, report.slices) == (0, 13)
