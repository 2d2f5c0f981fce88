"""A store remembers how its slices were acquired, also beside rows that do not."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from ichfast.prepare.prepare import prepare_store
from ichfast.prepare.repair import repair_store
from ichfast.store.header import read_header, write_header
from ichfast.store.store import Store
from ichfast.store.tables import ACQUISITION_COLUMNS, ADDED_COLUMNS
from ichfast.system.files import file_crc32c
from tests.conftest import random_hu, write_dicom

run = partial(prepare_store, labels=None, workers=1, keep_ids=True)

KNOWN = {
    "Manufacturer": "GE MEDICAL SYSTEMS",
    "ManufacturerModelName": "LightSpeed VCT",
    "ConvolutionKernel": "STANDARD",
    "KVP": "120",
    "SpacingBetweenSlices": "5",
    "PatientSex": "M",
    "PatientAge": "095Y",
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    "SeriesNumber": "2",
}


def write_known(path: Path, number: int) -> None:
    write_dicom(
        path / f"{number}.dcm",
        f"ID_{number}",
        hu_HW=random_hu(number),
        Exposure=str(100 + number),
        **KNOWN,
    )


def acquired(store: Path) -> pd.DataFrame:
    with Store(store) as opened:
        return opened.table.set_index("slice_id")[list(ACQUISITION_COLUMNS)]


def make_old(store: Path) -> None:
    """Take away the columns that version 0.1 does not write."""
    file = store / "slices.parquet"
    pq.write_table(pq.read_table(file).drop_columns(list(ADDED_COLUMNS)), file)
    write_header(store, replace(read_header(store), table_crc32c=file_crc32c(file)))


def test_a_store_has_what_the_headers_tell(tmp_path: Path) -> None:
    (tmp_path / "heads").mkdir()
    write_known(tmp_path / "heads", 1)
    write_known(tmp_path / "heads", 2)
    write_dicom(tmp_path / "heads" / "3.dcm", "ID_3", hu_HW=random_hu(3))
    run([tmp_path / "heads"], tmp_path / "store")
    table = acquired(tmp_path / "store")
    assert table.loc["ID_2"].to_dict() == {
        "manufacturer": "GE",
        "model": "LightSpeed VCT",
        "kernel": "soft",
        "kernel_name": "STANDARD",
        "kvp": 120.0,
        "exposure_mas": 102.0,
        "contrast": "no",
        "slice_spacing_mm": 5.0,
        "sex": "M",
        "age_decade": 90,
        "image_type": "original",
        "series_number": 2,
    }
    assert table.loc["ID_3"].isna().all()


def test_a_store_of_version_0_1_is_appended_to_and_repaired(tmp_path: Path) -> None:
    store, heads, more = (tmp_path / name for name in ("store", "heads", "more"))
    for number, folder in ((1, heads), (2, more)):
        folder.mkdir()
        write_known(folder, number)
    run([heads], store)
    make_old(store)
    assert acquired(store).isna().all(axis=None)
    (shard,) = (store / "level-512").iterdir()
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    assert len(repair_store(store, [heads]).repaired) == 1
    assert run([heads, more], store, append=True).slices == 2
    table = acquired(store)
    assert table.loc["ID_1"].isna().all()
    assert table.loc["ID_2", "exposure_mas"] == 102
