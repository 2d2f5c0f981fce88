"""What several test files share: a small finished store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from ichfast.labels import CLASSES
from ichfast.store import Store, StoreHeader, UnitWriter, finish_store

# patient, study, series, slices, (rows, columns), labelled
SERIES = (
    ("P1", "S1", "R1", 7, (512, 512), True),
    ("P1", "S2", "R2", 5, (512, 512), True),
    ("P2", "S3", "R3", 6, (63, 65), True),
    ("P3", "S4", "R4", 5, (512, 512), True),
    ("P4", "S5", "R5", 3, (512, 512), False),
    ("P5", "S6", "R6", 3, (512, 512), True),
)
"""29 slices: five patients, two shapes, one series without labels."""

SLICES_A_UNIT = 17


def draw_slice(
    rng: np.random.Generator, rows: int, columns: int
) -> npt.NDArray[np.uint16]:
    """A bright disc with coarse structure and noise in air, shape (H, W), uint16."""
    y_H1, x_1W = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    blocks_hu = rng.integers(-50, 150, (rows // 8 + 1, columns // 8 + 1))
    hu_HW = np.kron(blocks_hu, np.ones((8, 8)))[:rows, :columns]
    hu_HW = hu_HW + rng.integers(-9, 10, (rows, columns))
    hu_HW[x_1W**2 + (y_H1 / 1.1) ** 2 > 0.6] = -1000
    return np.asarray(hu_HW + 1024, dtype=np.uint16)


def write_store(
    path: Path,
    *,
    levels: tuple[int, ...] = (512, 256),
    plan: Mapping[str, str] | None = None,
) -> list[npt.NDArray[np.uint16]]:
    """Write a finished store of `SERIES` to `path`.

    Returns:
        The slices at level 512, in the order of the table.
    """
    rng = np.random.default_rng(7)
    path.mkdir()
    rows: list[dict[str, Any]] = [
        {"patient": patient, "study": study, "series": series, "instance_number": k}
        | {"position_mm": 5.0 * k, "slice_id": f"ID_{series}_{k}"}
        | {"rows": shape[0], "columns": shape[1], "labelled": labelled}
        for patient, study, series, num_slices, shape, labelled in SERIES
        for k in range(num_slices)
    ]
    slices, shards = [], []
    for unit in range(2):
        with UnitWriter(path, unit, levels) as writer:
            for row in rows[unit * SLICES_A_UNIT : (unit + 1) * SLICES_A_UNIT]:
                stored_HW = draw_slice(rng, row["rows"], row["columns"])
                name, row_in_shard, sums = writer.add(stored_HW)
                row |= {"shard": name, "row_in_shard": row_in_shard}
                row |= {"crc32c": sums[512], "crc32c_256": sums.get(256)}
                slices.append(stored_HW)
        shards += writer.shards
    shards.sort(key=lambda shard: shard.name)
    table = pd.DataFrame(rows)
    table["shard"] = [[s.name for s in shards].index(name) for name in table["shard"]]
    for name, value in OTHER_COLUMNS.items():
        table[name] = value
    labels_NK = rng.integers(0, 2, (len(table), len(CLASSES)))
    labels_NK[:, 0] = labels_NK[:, 1:].max(axis=1)
    for k, name in enumerate(CLASSES):
        table[name] = pd.array(labels_NK[:, k], dtype="Int8")
        table.loc[~table["labelled"], name] = pd.NA
    header = StoreHeader(
        levels=levels,
        shards=tuple(shards),
        counts=dict.fromkeys(("duplicates", "labels_without_slice"), 0)
        | {"entries": len(table), "slices": len(table), "series": len(SERIES)}
        | {"patients": 5, "labelled": int(table["labelled"].sum())},
        rejected={},
        keep_ids=True,
        plan=plan or {},
        versions={},
    )
    rejected = pd.DataFrame(columns=["path", "reason", "detail"])
    finish_store(path, header, table, rejected)
    return slices


OTHER_COLUMNS: dict[str, object] = {
    "row_spacing_mm": 0.5,
    "column_spacing_mm": 0.5,
    "thickness_mm": 5.0,
    "tilt_deg": 0.0,
    "rescale_slope": 1.0,
    "rescale_intercept": -1024.0,
    "bits_stored": 12,
    "is_signed": False,
    "window_center": 40.0,
    "window_width": 80.0,
    "transfer_syntax_uid": "1.2.840.10008.1.2.1",
    "quirks": "",
}


@pytest.fixture(scope="session")
def tiny_store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished store: `SERIES`. Not to be changed."""
    path = tmp_path_factory.mktemp("tiny") / "store"
    write_store(path)
    return path


@pytest.fixture
def tiny_store(tiny_store_path: Path) -> Iterator[Store]:
    """That store, open: 29 slices, 23 of 512x512 and 5 patients, in two units."""
    with Store(tiny_store_path) as store:
        yield store
