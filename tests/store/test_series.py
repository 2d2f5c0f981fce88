"""Irregularities in the order of a series are named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ichfast.dicom.slices import read_slices
from ichfast.errors import RejectError
from ichfast.sources.sources import list_entries, read_entries
from ichfast.store.series import SeriesOrder, describe_series
from ichfast.store.store import Store
from tests.dicom.real_files import DATA, needs_data


def describe(
    position_mm: list[float], numbers: list[int] | None = None, **changed: Any
) -> SeriesOrder:
    columns = {
        "patient": "P",
        "study": "S",
        "series": "R",
        "position_mm": position_mm,
        "instance_number": numbers or [-1] * len(position_mm),
    }
    [one] = describe_series(pd.DataFrame(columns | changed))
    return one


def test_an_even_series_has_nothing_odd() -> None:
    one = describe([0, 5, 10, 15.04], [1, 2, 3, 4])
    assert (one.series, one.count, one.spacing_mm) == ("R", 4, 5)
    assert one.irregularities == ()


def test_the_order_of_the_rows_does_not_matter() -> None:
    assert describe([10, 0, 15, 5], [3, 1, 4, 2]) == describe(
        [0, 5, 10, 15], [1, 2, 3, 4]
    )


def test_a_missing_slice_is_a_gap() -> None:
    one = describe([0, 5, 10, 20, 25])
    assert (one.gaps, one.spacing_mm) == (1, 5)
    assert one.irregularities == ("gaps", "uneven")


def test_two_thicknesses_are_uneven_without_a_gap() -> None:
    assert describe([0, 5, 10, 15, 22]).irregularities == ("uneven",)


def test_places_scanned_twice_are_counted_and_no_spacing() -> None:
    one = describe([0, 5, 5.001, 10, 10, 15], [1, 2, 7, 3, 8, 4])
    assert (one.repeated_positions, one.spacing_mm, one.gaps) == (2, 5, 0)
    assert "repeated_positions" in one.irregularities


@pytest.mark.parametrize(
    ("numbers", "irregularities"),
    [
        ([4, 3, 2, 1], ("reversed",)),
        ([1, 3, 2, 4], ("shuffled",)),
        ([-1, 3, 2, 4], ()),
        ([7, 7, 7, 7], ()),
    ],
)
def test_positions_are_checked_against_instance_numbers(
    numbers: list[int], irregularities: tuple[str, ...]
) -> None:
    assert describe([0, 5, 10, 15], numbers).irregularities == irregularities


def test_unknown_positions_are_counted_and_left_out() -> None:
    one = describe([math.nan, 0, 5, math.nan], [1, 2, 3, 4])
    assert (one.count, one.unknown_positions, one.spacing_mm) == (4, 2, 5)
    assert one.irregularities == ("unknown_positions",)


@pytest.mark.parametrize("position_mm", [[3.0], [math.nan], [2.0, 2.0]])
def test_what_has_no_spacing_says_so(position_mm: list[float]) -> None:
    assert math.isnan(describe(position_mm).spacing_mm)


def test_each_series_of_a_store_is_described(tiny_store: Store) -> None:
    found = describe_series(tiny_store.table)
    assert [one.series for one in found] == ["R1", "R2", "R3", "R4", "R5", "R6"]
    assert [one.count for one in found] == [7, 5, 6, 5, 3, 3]
    assert {one.spacing_mm for one in found} == {5.0}
    assert {one.irregularities for one in found} == {()}


def read_table(archive: Path) -> pd.DataFrame:
    rows = []
    for _, content in read_entries(list_entries([archive])):
        if isinstance(content, RejectError):
            raise content
        [one] = read_slices(content)
        rows.append(
            {
                "patient": one.series_header.patient_id,
                "study": one.series_header.study_uid,
            }
            | {"series": one.series_header.series_uid, "position_mm": one.position_mm}
            | {"instance_number": one.instance_number}
        )
    return pd.DataFrame(rows)


@needs_data
@pytest.mark.slow
def test_the_real_series_are_described() -> None:
    found = {
        path.name.partition(".")[0]: describe_series(read_table(path))
        for path in sorted(DATA.glob("*_series/*.tar.xz"))
    }
    assert {
        name: [
            (one.count, round(one.spacing_mm, 2), one.irregularities) for one in all_of
        ]
        for name, all_of in found.items()
    } == {
        "GE_HiSpeedDual_head": [(28, 4.0, ("gaps", "uneven"))],
        "ID_3d2ee1643b": [(36, 5.0, ())],
        "ID_5f8484c3e0": [(28, 5.0, ())],
        "ID_7518324893": [(34, 5.0, ())],
        "ID_7e2939f5a2": [(36, 5.0, ("uneven",))],
        "ID_84296c3845": [(36, 5.0, ())],
        "ID_a52a0112d5": [(28, 5.0, ())],
        "Philips_Ingenuity_phantom_S21570_2010": [(28, 5.0, ())],
    }
