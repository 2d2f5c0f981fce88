"""No damaged file of a store is read as something else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from ichfast.errors import IchfastError, StoreError
from ichfast.prepare.ingested import read_intake
from ichfast.store.header import intake_path
from ichfast.store.shards import NPY_HEADER_BYTES
from ichfast.store.store import Store
from ichfast.store.tables import read_rejected
from tests.mutations import mutations
from tests.store.conftest import FILES, SHARDS, TABLES

ADVICE = ("copy it back", "ichfast prepare", "ichfast verify")


def check_line(error: IchfastError) -> None:
    """The message is one line, and says what to do."""
    assert "\n" not in str(error)
    assert any(advice in str(error) for advice in ADVICE), error


def read_tables(path: Path) -> None:
    """Read all files of a store but its shards."""
    with Store(path) as store:
        read_rejected(path, store.header)
        read_intake(intake_path(path), store.header.entries_crc32c)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["store.json", *TABLES])
def test_a_table_or_header_that_is_not_as_written_is_refused(
    store: Path, name: str
) -> None:
    read_tables(store)
    for mutated in mutations((store / name).read_bytes(), FILES.index(name)):
        (store / name).write_bytes(mutated)
        with pytest.raises(StoreError) as caught:
            read_tables(store)
        check_line(caught.value)


def intact_rows(before: bytes, after: bytes, count: int) -> list[bool]:
    """Whether the header of a shard's file, and each row, are as they were."""
    row_bytes = (len(before) - NPY_HEADER_BYTES) // count
    ends = [NPY_HEADER_BYTES + row_bytes * k for k in range(count + 1)]
    starts = [0, *ends[:-1]]
    parts = [slice(*each) for each in zip(starts, ends, strict=True)]
    header_is_intact, *intact = [before[part] == after[part] for part in parts]
    return [header_is_intact and each for each in intact]


@pytest.mark.slow
@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("name", [SHARDS[1], SHARDS[5]])
def test_a_damaged_slice_is_refused_and_all_others_are_read(
    store: Path, name: str, *, is_open: bool
) -> None:
    level, before = int(name[6:9]), (store / name).read_bytes()
    with Store(store) as opened:
        table, shards = opened.table, opened.header.shards
        expected = [opened.slice_HW(k, level) for k in range(len(opened))]
    (number,) = (k for k, s in enumerate(shards) if s.name == Path(name).name)
    inside = np.flatnonzero(table["shard"] == number).tolist()
    row_N = table["row_in_shard"].tolist()
    for after in mutations(before, SHARDS.index(name)):
        (store / name).write_bytes(before)
        opened = Store(store)
        if is_open:  # its file has been read, and is damaged now
            opened.slice_HW(inside[0], level)
        (store / name).write_bytes(after)
        intact = intact_rows(before, after, shards[number].count)
        if is_open:  # its header is not read again
            body = after[NPY_HEADER_BYTES:]
            intact = intact_rows(
                before, before[:NPY_HEADER_BYTES] + body, shards[number].count
            )
        for position in range(len(table)):
            if position not in inside or intact[row_N[position]]:
                found_HW = opened.slice_HW(position, level)
                np.testing.assert_array_equal(found_HW, expected[position])
                continue
            with pytest.raises(StoreError) as caught:
                opened.slice_HW(position, level)
            check_line(caught.value)
            assert name in str(caught.value)
        opened.close()
        if len(after) != len(before):
            with pytest.raises(StoreError) as caught:
                Store(store)
            check_line(caught.value)


def messages(store: Store, positions: Sequence[int], level: int) -> list[str]:
    """What is said of slices; nothing of a sound one."""
    found = []
    for position in positions:
        try:
            store.slice_HW(position, level)
        except StoreError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize(("level", "column"), [(512, "crc32c"), (256, "crc32c_256")])
def test_the_error_names_file_slice_both_checksums_and_the_remedy(
    store: Path, level: int, column: str
) -> None:
    with Store(store) as opened:
        row = opened.table.iloc[2]
        file = store / f"level-{level}" / opened.header.shards[row["shard"]].name
        stored_HW = opened.slice_HW(2, level)
        stored_HW[0, 0] ^= 1
        content = bytearray(file.read_bytes())
        content[NPY_HEADER_BYTES + row["row_in_shard"] * stored_HW.nbytes] ^= 1
        file.write_bytes(content)
        (message,) = messages(opened, range(len(opened)), level)
    assert message == (
        f"{file} is damaged: row {row['row_in_shard']} has the CRC-32C "
        f"{google_crc32c.value(stored_HW):#010x}, expected {row[column]:#010x}; find "
        f"all damage with `ichfast verify {store}`, mend it with `ichfast verify "
        f"{store} --repair SOURCE`, or copy it back"
    )


def test_a_slice_is_read_unchecked_if_asked_for(store: Path) -> None:
    with Store(store) as opened:
        expected = [opened.slice_HW(k) for k in range(len(opened))]
        for name in SHARDS:
            content = bytearray((store / name).read_bytes())
            content[NPY_HEADER_BYTES::2] = bytes(len(content[NPY_HEADER_BYTES::2]))
            (store / name).write_bytes(content)
        assert len(messages(opened, range(len(opened)), 512)) == len(opened)
        for position, before_HW in enumerate(expected):
            found_HW = opened.slice_HW(position, check=False)
            np.testing.assert_array_equal(found_HW, before_HW & 0xFF00)
