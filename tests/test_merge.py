"""The pages of a journal, put together."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ichfast import merge as merging
from ichfast.intake import Intake
from ichfast.journal import Journal, Page
from ichfast.labels import CLASSES
from ichfast.listing import Found, Listing
from ichfast.manifest import read_header
from ichfast.merge import finish, merge
from ichfast.plan import cut_units, entry_name
from ichfast.shards import Shard, shard_name
from ichfast.slicetable import ORDER, read_table

NUM_ROWS, UNIT_ENTRIES = 500, 64


def odd_rows() -> pd.DataFrame:
    """Rows whose order hangs on every column of `ORDER`, and on what is missing."""
    rng = np.random.default_rng(0)
    texts = np.array(["", "a", "B", "é", "a.b", "\U0001f9e0", "ﬀ"], dtype=object)
    position_mm = rng.choice([-2.5, -0.0, 0.0, 7.0, math.nan], NUM_ROWS)
    frame = pd.DataFrame({name: rng.choice(texts, NUM_ROWS) for name in ORDER[:3]})
    frame["position_mm"] = position_mm
    frame["instance_number"] = rng.integers(-1, 3, NUM_ROWS)
    frame["slice_id"] = [f"ID_{k * 7919 % 1009:04}" for k in range(NUM_ROWS)]
    return frame


@pytest.mark.parametrize("part_rows", [2**15, 7])
def test_rows_are_sorted_as_pandas_sorts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_rows: int
) -> None:
    monkeypatch.setattr(merging, "PART_ROWS", part_rows)
    journal = Journal(tmp_path / "store", (512,))
    journal.path.mkdir(parents=True)
    (journal.store / "level-512").mkdir()
    frame = odd_rows()
    home = Path("heads")
    listing = Listing.of(
        [[Found(home, f"{k:03}", "", f"{k:03}", 1) for k in range(NUM_ROWS)]]
    )
    units = cut_units(listing, UNIT_ENTRIES, first_unit=0, first_entry=0)
    for unit in units:
        part = frame.iloc[unit.first : unit.first + len(unit.entries)]
        shard = Shard(
            name=shard_name(unit.number, 1, 1),
            rows=1,
            columns=1,
            count=len(part),
            crc32c={512: 0},
        )
        rows = part.assign(
            entry=part.index, shard=shard.name, row_in_shard=range(len(part))
        )
        for field in journal.schema:
            if field.name not in rows:
                rows[field.name] = "x" if field.type == pa.string() else 1
        table = pa.Table.from_pandas(rows, journal.schema, preserve_index=False)
        journal.write(unit, Page(rows=table, rejects=[], shards=[shard]))
    name = partial(entry_name, keep_ids=True, first_unit=0)
    merged = merge(journal, units, None, name)
    assert (len(merged.rows), merged.num_duplicates) == (NUM_ROWS, 0)
    unit_E = np.zeros(NUM_ROWS, dtype=np.int32)
    finish(journal, merged, None, None, {}, Intake.of(listing, unit_E, None))
    found = read_table(journal.store, read_header(journal.store))
    expected = frame.sort_values(list(ORDER), ignore_index=True)
    pd.testing.assert_frame_equal(
        found[list(ORDER)], expected[list(ORDER)], check_dtype=False
    )
    assert found[list(CLASSES)].isna().all(axis=None)
