"""A store as large as the competition's, without pixels, to measure its opening.

Its tables have full size. Its shards are links to two files that are holes. So it takes
about 60 MB of disk, opens like a real store, and its slices are black. Their checksums
are random, so they are read with ``check=False``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ichfast.labels import CLASSES
from ichfast.prepare.ingested import Intake, write_intake
from ichfast.prepare.prepare import UNIT_ENTRIES
from ichfast.store.header import ENTRIES_FILE, StoreHeader
from ichfast.store.levels import LEVELS, checksum_column, level_folder
from ichfast.store.raw_shards import npy_header
from ichfast.store.shards import Shard, shard_name, shard_path
from ichfast.store.store import finish_store
from ichfast.store.tables import rows_of

NUM_SLICES = 752_803
"""Training slices of the RSNA 2019 competition."""

SLICES_A_SERIES = 34


def write_big_store(path: Path, num_slices: int = NUM_SLICES) -> None:
    """Write a finished store of `num_slices` slices of 512x512 to `path`.

    Only `ichfast.store.verify.verify_store` notices that its checksums are wrong.

    Args:
        path: Does not exist yet.
        num_slices: 1 or more.
    """
    (path / "journal").mkdir(parents=True)
    shards = [
        Shard(
            name=shard_name(unit, 512, 512),
            rows=512,
            columns=512,
            count=min(UNIT_ENTRIES, num_slices - first),
            crc32c=dict.fromkeys(LEVELS, 0),
        )
        for unit, first in enumerate(range(0, num_slices, UNIT_ENTRIES))
    ]
    for level in LEVELS:
        (path / level_folder(level)).mkdir()
        for shard in shards:
            _write_hole(path, shard, level, shards[0])
    intake = _intake(num_slices)
    header = StoreHeader(
        levels=LEVELS,
        shards=tuple(shards),
        counts={
            "entries": num_slices,
            "slices": num_slices,
            "series": -(-num_slices // SLICES_A_SERIES),
            "patients": -(-num_slices // SLICES_A_SERIES),
            "duplicates": 0,
            "labelled": num_slices,
            "labels_without_slice": 0,
        },
        rejected={},
        keep_ids=False,
        plan={},
        versions={},
        entries_crc32c=write_intake(path / "journal" / ENTRIES_FILE, intake),
    )
    rejected = pd.DataFrame(columns=["path", "reason", "detail"])
    finish_store(path, header, [rows_of(_table(num_slices), LEVELS)], rejected)


def _write_hole(path: Path, shard: Shard, level: int, first: Shard) -> None:
    """Write a shard's file, or link it to the first shard's of the same length."""
    file = shard_path(path, shard.name, level)
    if shard is not first and shard.count == first.count:
        file.hardlink_to(shard_path(path, first.name, level))
        return
    with file.open("wb") as opened:
        opened.write(npy_header(shard.shape(level)))
        opened.truncate(shard.num_bytes(level))


def _intake(num_entries: int) -> Intake:
    rng = np.random.default_rng(0)
    name_E, place_E = rng.integers(0, 2**64, (2, num_entries), np.uint64)
    unit_E = np.arange(num_entries, dtype=np.int32) // UNIT_ENTRIES
    return Intake(unit_E=unit_E, name_E=name_E, place_E=place_E)


def _table(num_slices: int) -> pd.DataFrame:
    """Make a table in the order of prepare, with hashes as ids."""
    number_N = np.arange(num_slices)
    series_N = number_N // SLICES_A_SERIES
    rng = np.random.default_rng(1)
    order_N = rng.permutation(num_slices)
    table = pd.DataFrame(
        {
            "slice_id": _hashes(number_N, 1),
            "patient": [f"{series:016x}" for series in series_N],
            "study": _hashes(series_N, 2),
            "series": _hashes(series_N, 3),
            "position_mm": 5.0 * (number_N % SLICES_A_SERIES),
            "rows": 512,
            "columns": 512,
            "row_spacing_mm": 0.488281,
            "column_spacing_mm": 0.488281,
            "thickness_mm": 5.0,
            "instance_number": -1,
            "tilt_deg": rng.integers(-30, 1, num_slices) / 2,
            "shard": order_N // UNIT_ENTRIES,
            "row_in_shard": order_N % UNIT_ENTRIES,
            **{
                checksum_column(level): rng.integers(0, 2**32, num_slices)
                for level in LEVELS
            },
            "rescale_slope": 1.0,
            "rescale_intercept": -1024.0,
            "bits_stored": 16,
            "is_signed": True,
            "window_center": 30.0,
            "window_width": 80.0,
            "transfer_syntax_uid": "1.2.840.10008.1.2.1",
            "quirks": "",
        }
    )
    for name in CLASSES:
        table[name] = pd.array(rng.integers(0, 2, num_slices), dtype="Int8")
    return table


def _hashes(number_N: np.ndarray, seed: int) -> list[str]:
    """Make distinct ids of 16 hexadecimal digits that cannot be compressed."""
    factor = 0x9E3779B97F4A7C15 + 2 * seed
    return [f"{int(k) * factor + seed & 2**64 - 1:016x}" for k in number_N]
