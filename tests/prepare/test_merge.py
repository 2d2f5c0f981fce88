"""The pages of a journal become one sorted table without repeats."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ichfast.labels import CLASSES
from ichfast.prepare import merge as merging
from ichfast.prepare.ingested import Intake
from ichfast.prepare.journal import Journal, Page
from ichfast.prepare.merge import Merged, find_repeats, finish, merge
from ichfast.prepare.plan import Unit, cut_units, entry_name
from ichfast.sources.listing import Listing
from ichfast.sources.walk import Found
from ichfast.store.header import read_header
from ichfast.store.shards import Shard, shard_name
from ichfast.store.tables import ORDER, read_table

NUM_ROWS, UNIT_ENTRIES = 500, 64


def mixed_rows() -> pd.DataFrame:
    """Rows whose order depends on every column of `ORDER`, and on missing values."""
    rng = np.random.default_rng(0)
    texts = np.array(["", "a", "B", "é", "a.b", "\U0001f9e0", "ﬀ"], dtype=object)
    position_mm = rng.choice([-2.5, -0.0, 0.0, 7.0, math.nan], NUM_ROWS)
    frame = pd.DataFrame({name: rng.choice(texts, NUM_ROWS) for name in ORDER[:3]})
    frame["position_mm"] = position_mm
    frame["instance_number"] = rng.integers(-1, 3, NUM_ROWS)
    frame["slice_id"] = [f"ID_{k * 7919 % 1009:04}" for k in range(NUM_ROWS)]
    return frame


def write_pages(store: Path, frame: pd.DataFrame) -> tuple[Journal, list[Unit]]:
    """Write the rows of a table as pages; return the journal and its units."""
    journal = Journal(store, (512,))
    journal.path.mkdir(parents=True)
    (journal.store / "level-512").mkdir()
    home = Path("heads")
    listing = Listing.of(
        [[Found(home, f"{k:03}", "", f"{k:03}", 1) for k in range(len(frame))]]
    )
    units = cut_units(listing, UNIT_ENTRIES, first_unit=0)
    for unit in units:
        part = frame.iloc[unit.first : unit.first + len(unit.entries)]
        shard = Shard(
            name=shard_name(unit.number, 1, 1),
            rows=1,
            columns=1,
            count=len(part),
            crc32c={512: 0},
        )
        rows = part.assign(shard=shard.name, row_in_shard=range(len(part)))
        if "entry" not in rows:
            rows["entry"] = part.index
        for field in journal.schema:
            if field.name not in rows:
                rows[field.name] = "x" if field.type == pa.string() else 1
        table = pa.Table.from_pandas(rows, journal.schema, preserve_index=False)
        journal.write(unit, Page(rows=table, rejects=[], shards=[shard]))
    return journal, units


def merged_store(journal: Journal, units: list[Unit]) -> Merged:
    name = partial(entry_name, keep_ids=True, first_unit=0)
    merged = merge(journal, units, None, name)
    unit_E = np.empty(0, dtype=np.int32)
    intake = Intake.of(Listing.of([]), unit_E, None)
    finish(journal, merged, None, None, {}, intake)
    return merged


@pytest.mark.parametrize("part_rows", [2**15, 7])
def test_rows_are_sorted_as_pandas_sorts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_rows: int
) -> None:
    monkeypatch.setattr(merging, "PART_ROWS", part_rows)
    frame = mixed_rows()
    journal, units = write_pages(tmp_path / "store", frame)
    merged = merged_store(journal, units)
    assert (len(merged.rows), merged.num_duplicates) == (NUM_ROWS, 0)
    found = read_table(journal.store, read_header(journal.store))
    expected = frame.sort_values(list(ORDER), ignore_index=True)
    pd.testing.assert_frame_equal(
        found[list(ORDER)], expected[list(ORDER)], check_dtype=False
    )
    assert found[list(CLASSES)].isna().all(axis=None)
    groups = pq.ParquetFile(journal.store / "slices.parquet").metadata
    assert groups.num_row_groups == math.ceil(NUM_ROWS / part_rows)


def test_the_first_of_several_equal_slices_is_kept(tmp_path: Path) -> None:
    frame = mixed_rows().assign(crc32c=1)
    ids = frame["slice_id"].tolist()
    # Pages apart and in one page; the third one has other pixels.
    for row, first in ((450, 3), (70, 69), (200, 100), (499, 450)):
        frame.loc[row, "slice_id"] = frame.loc[first, "slice_id"]
    frame.loc[200, "crc32c"] = 2
    # Two frames of one file, of which both differ, are one rejection.
    frame["entry"] = frame.index
    frame.loc[201, ["slice_id", "crc32c", "entry"]] = [ids[101], 2, 200]
    journal, units = write_pages(tmp_path / "store", frame)
    merged = merged_store(journal, units)
    assert (len(merged.rows), merged.num_duplicates) == (NUM_ROWS - 5, 3)
    assert merged.rejected.to_dict("records") == [
        {
            "entry": 200,
            "path": "200",
            "reason": "duplicate-conflict",
            "detail": "same SOPInstanceUID as 100, other pixels; that one is kept",
        }
    ]
    found = read_table(journal.store, read_header(journal.store))
    kept = set(range(NUM_ROWS)) - {450, 70, 200, 201, 499}
    assert sorted(found["slice_id"]) == sorted(ids[row] for row in kept)
    assert found.set_index("slice_id").loc[ids[3], "row_in_shard"] == 3


def test_a_repeat_names_the_first_of_its_kind() -> None:
    frame = mixed_rows().assign(entry=range(NUM_ROWS), rows=2, columns=3, crc32c=5)
    ids = frame["slice_id"].tolist()
    for row in (80, 300, 490):
        ids[row] = ids[5]
    frame["slice_id"] = ids
    found = find_repeats(pa.Table.from_pandas(frame))
    assert np.flatnonzero(found.is_repeat_N).tolist() == [80, 300, 490]
    assert found.entry_R.tolist() == [80, 300, 490]
    assert found.original_entry_R.tolist() == [5, 5, 5]
    assert not found.differs_R.any()


def test_slices_of_one_id_are_equal_in_size_and_pixels() -> None:
    """Empty slices of other shapes have equal bytes, and so equal checksums."""
    frame = mixed_rows().assign(entry=range(NUM_ROWS), rows=2, columns=3, crc32c=5)
    frame["slice_id"] = "same"
    for row, column in ((1, "rows"), (2, "columns"), (3, "crc32c")):
        frame.loc[row, column] = 6
    found = find_repeats(pa.Table.from_pandas(frame))
    assert np.flatnonzero(found.differs_R).tolist() == [0, 1, 2]


def test_a_shard_without_a_slice_that_counts_is_left_out(tmp_path: Path) -> None:
    frame = mixed_rows().iloc[: 2 * UNIT_ENTRIES].copy()
    half = frame.index[UNIT_ENTRIES:]
    frame.loc[half, "slice_id"] = frame["slice_id"].to_numpy()[:UNIT_ENTRIES]
    journal, units = write_pages(tmp_path / "store", frame)
    left_out = journal.store / "level-512" / shard_name(1, 1, 1)
    left_out.touch()
    merged_store(journal, units)
    header = read_header(journal.store)
    assert [shard.name for shard in header.shards] == [shard_name(0, 1, 1)]
    assert header.counts["slices"] == UNIT_ENTRIES
    assert not left_out.exists()
    assert [file.name for file in journal.path.iterdir()] == ["entries.parquet"]
