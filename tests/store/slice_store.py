"""A finished store of synthetic slices for tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ichfast.labels import CLASSES
from ichfast.store.header import PACKED_VERSION, RAW_VERSION, StoreHeader
from ichfast.store.levels import LEVELS, checksum_column
from ichfast.store.store import finish_store
from ichfast.store.tables import BAG_LABELS, rows_of
from ichfast.store.writer import UnitWriter

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
"""Defaults of the table's columns."""


def write_slices(  # noqa: PLR0913  what stores differ in
    path: Path,
    slices: Sequence[npt.NDArray[np.uint16]],
    rows: Sequence[Mapping[str, Any]],
    labels_NK: npt.NDArray[np.number],
    *,
    levels: tuple[int, ...] = LEVELS,
    slices_a_unit: int = 1024,
    plan: Mapping[str, str] | None = None,
    packed: bool = False,
) -> None:
    """Write a finished store.

    Args:
        path: the store's folder, which must not exist.
        slices: as they are stored, each (H, W) uint16, in the order of the table.
        rows: what the table says of each: patient, study, series, whether it is
            ``labelled``, and every column that is not in `OTHER_COLUMNS`. Labels of
            series and studies may be there.
        labels_NK: 0, 1 or NaN; left out where a slice is not labelled.
        levels: of the store.
        slices_a_unit: slices written at a time.
        plan: what the store says it is made from.
        packed: whether the store is packed.
    """
    path.mkdir()
    written: list[dict[str, Any]] = []
    shards = []
    for first in range(0, len(slices), slices_a_unit):
        unit = first // slices_a_unit
        with UnitWriter(path, unit, levels, packed=packed) as writer:
            for stored_HW in slices[first : first + slices_a_unit]:
                name, row_in_shard, sums = writer.add(stored_HW)
                written.append(
                    {"shard": name, "row_in_shard": row_in_shard}
                    | {"rows": stored_HW.shape[0], "columns": stored_HW.shape[1]}
                    | {checksum_column(level): sums[level] for level in levels}
                )
        shards += writer.shards
    shards.sort(key=lambda shard: shard.name)
    table = pd.DataFrame(
        [
            {**OTHER_COLUMNS, **row, **place}
            for row, place in zip(rows, written, strict=True)
        ]
    )
    numbers = {shard.name: number for number, shard in enumerate(shards)}
    table["shard"] = table["shard"].map(numbers)
    for k, name in enumerate(CLASSES):
        table[name] = pd.array(labels_NK[:, k].astype(np.float64), dtype="Int8")
        table.loc[~table["labelled"], name] = pd.NA
    header = StoreHeader(
        levels=levels,
        shards=tuple(shards),
        counts=dict.fromkeys(("duplicates", "labels_without_slice"), 0)
        | {"entries": len(table), "slices": len(table)}
        | {"series": table["series"].nunique(), "patients": table["patient"].nunique()}
        | {"labelled": int(table[list(CLASSES)].notna().all(axis=1).sum())},
        rejected={},
        keep_ids=True,
        plan=plan or {},
        versions={},
        format_version=PACKED_VERSION if packed else RAW_VERSION,
    )
    rejected = pd.DataFrame(columns=["path", "reason", "detail"])
    finish_store(path, header, [rows_of(table, levels)], rejected)


def simple_rows(
    count: int, *, slices_a_series: int = 1, **columns: Sequence[Any]
) -> list[dict[str, Any]]:
    """Table rows of slices in series of one patient each; `columns` say more."""
    return [
        {"patient": f"P{k // slices_a_series}", "study": f"S{k // slices_a_series}"}
        | {"series": f"R{k // slices_a_series}", "instance_number": k}
        | {"position_mm": 5.0 * k, "slice_id": f"ID_{k}", "labelled": True}
        | {name: values[k] for name, values in columns.items()}
        for k in range(count)
    ]


def bag_labels(bag: str, **labels: float) -> dict[str, float]:
    """Columns of a row: labels of its series or study, all others missing."""
    names = dict(zip(CLASSES, BAG_LABELS[bag], strict=True))
    return dict.fromkeys(names.values(), math.nan) | {
        names[name]: label for name, label in labels.items()
    }
