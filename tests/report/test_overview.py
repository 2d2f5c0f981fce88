"""The overview counts what is in a store, and the contact sheet shows it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ichfast.errors import IchfastError
from ichfast.labels import CLASSES
from ichfast.prepare.prepare import prepare_store
from ichfast.report.overview import (
    _caption,
    describe_store,
    format_overview,
    write_contact_sheet,
)
from ichfast.store.store import Store
from tests.conftest import write_store
from tests.dicom.real_files import DATA, needs_data
from tests.store.slice_store import simple_rows, write_slices


def test_the_overview_counts_what_is_there(tiny_store: Store) -> None:
    overview = describe_store(tiny_store)
    assert (overview.slices, overview.series, overview.patients) == (29, 6, 5)
    assert overview.shapes == {"512x512": 23, "63x65": 6}
    assert overview.labelled == 26
    labels_NK = tiny_store.labels_NK()
    for k, name in enumerate(CLASSES):
        assert overview.positives[name] == np.nansum(labels_NK[:, k])
    assert overview.ids == "kept"


def test_a_class_is_counted_among_the_slices_whose_label_is_known(
    tiny_store: Store,
) -> None:
    tiny_store.table.loc[0, ["any", "epidural"]] = pd.NA
    overview = describe_store(tiny_store)
    assert (overview.labelled, overview.partly_labelled) == (25, 1)
    assert (overview.known["any"], overview.known["subdural"]) == (25, 26)
    assert "labelled     25; partly 1" in format_overview(overview)


def test_series_are_listed_by_kind_and_slices_by_acquisition(tmp_path: Path) -> None:
    rows = simple_rows(
        5,
        kernel=["soft"] * 3 + ["bone"] * 2,
        contrast=[None] * 3 + ["no"] * 2,
        thickness_mm=[5.0] * 3 + [0.625] * 2,
    )
    slices = [np.zeros((2, 2), np.uint16)] * 5
    labels_NK = np.zeros((5, len(CLASSES)), int)
    write_slices(tmp_path / "store", slices, rows, labels_NK, levels=(512,))
    with Store(tmp_path / "store") as store:
        overview = describe_store(store)
    assert [asdict(kind) for kind in overview.series_kinds] == [
        {"image_type": "unknown", "kernel": "soft", "contrast": "unknown"}
        | {"thickness_mm": 5.0, "series": 3, "slices": 3},
        {"image_type": "unknown", "kernel": "bone", "contrast": "no"}
        | {"thickness_mm": 0.6, "series": 2, "slices": 2},
    ]
    assert overview.acquisition["kernel"] == {"soft": 3, "bone": 2}
    assert overview.acquisition["thickness_mm"] == {"2.5 to 5": 3, "up to 1": 2}
    assert overview.acquisition["sex"] == {"unknown": 5}
    lines = format_overview(overview).splitlines()
    assert (
        "  unknown image, bone kernel, contrast no, 0.6 mm: 2 series, 2 slices" in lines
    )
    assert "contrast         unknown: 3, no: 2" in lines
    assert not any(line.startswith("sex") for line in lines)


def test_percentiles_are_in_hu(tiny_store: Store) -> None:
    found = describe_store(tiny_store).hu_percentiles
    hu = np.concatenate(
        [tiny_store.slice_HW(k, 256).ravel().astype(int) - 1024 for k in range(29)]
    )
    for percent, value in found.items():
        expected = np.percentile(hu, float(percent), method="inverted_cdf")
        assert abs(value - expected) <= 1


def test_the_text_says_what_it_counts(tiny_store: Store) -> None:
    text = format_overview(describe_store(tiny_store))
    assert "29 slices of 6 series and 5 patients; ids are kept" in text
    assert "512x512: 23, 63x65: 6" in text
    assert "subdural" in text


def test_a_packed_store_is_said_to_be_packed(tiny_store: Store, tmp_path: Path) -> None:
    write_store(tmp_path / "packed", packed=True)
    with Store(tmp_path / "packed") as store:
        packed, raw = describe_store(store), describe_store(tiny_store)
    assert (packed.is_packed, raw.is_packed) == (True, False)
    assert replace(packed, is_packed=False, bytes=raw.bytes) == raw
    assert packed.bytes < raw.bytes / 3
    text = format_overview(packed)
    assert "levels       512, 256; 0.00 GiB, packed\n" in text
    assert "packed" not in format_overview(raw)


def test_series_are_counted_by_irregularity(
    tiny_store: Store,
) -> None:
    assert describe_store(tiny_store).irregular_series == {}
    table = tiny_store.table
    rows = {name: table.index[table["series"] == name] for name in table["series"]}
    table.loc[rows["R1"][4:], "position_mm"] += 5  # a slice is missing
    table.loc[rows["R2"][1], "position_mm"] = 0  # as the first, and a gap after
    table.loc[rows["R3"], "instance_number"] *= -1
    table.loc[rows["R3"], "instance_number"] += 9  # from 9 down
    table.loc[rows["R5"][2], "position_mm"] = np.nan
    overview = describe_store(tiny_store)
    assert overview.irregular_series == {
        "gaps": 2, "uneven": 2, "repeated_positions": 1, "reversed": 1,
        "unknown_positions": 1,
    }  # fmt: skip
    assert "odd series   gaps: 2, uneven: 2, repeated" in format_overview(overview)


@needs_data
@pytest.mark.slow
def test_the_irregularities_of_real_series_are_shown(tmp_path: Path) -> None:
    archives = ("headct_series/GE_HiSpeedDual_head", "rsna_series/ID_7e2939f5a2")
    prepare_store(
        [DATA / f"{name}.tar.xz" for name in archives],
        tmp_path / "store",
        labels=None,
        levels=(512,),
        workers=1,
        keep_ids=False,
    )
    with Store(tmp_path / "store") as store:
        assert describe_store(store).irregular_series == {"uneven": 2, "gaps": 1}


def test_captions_name_bleeds_and_fold(tiny_store: Store) -> None:
    table = tiny_store.table
    table.loc[0, list(CLASSES)] = [1, 1, 0, 0, 0, 1]
    table.loc[1, list(CLASSES)] = [0] * 6
    assert _caption(tiny_store, 0, 3) == "EDH + SDH, fold 3"
    assert _caption(tiny_store, 1, -1) == "negative"
    unlabelled = int(np.flatnonzero(table["any"].isna())[0])
    assert _caption(tiny_store, unlabelled, -1) == "no labels"
    table.loc[0, "epidural"] = pd.NA
    assert _caption(tiny_store, 0, -1) == "SDH + others unknown"


@pytest.mark.slow
def test_the_contact_sheet_is_a_picture(tiny_store: Store, tmp_path: Path) -> None:
    write_contact_sheet(tiny_store, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.size == (10 * 256, 832)
        assert np.asarray(picture.convert("L")).max() == 255
    with pytest.raises(IchfastError, match="name another file with --sheet"):
        write_contact_sheet(tiny_store, tmp_path / "sheet.png" / "sheet.png")
