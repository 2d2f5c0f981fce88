"""A run that was killed in any stage continues to the bytes of an undisturbed one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ichfast.store.header import tables_dir
from ichfast.store.store import Store
from ichfast.store.verify import verify_store
from tests.conftest import contents, random_hu, write_dicom
from tests.prepare.killing import PACK_STAGES, REPAIR_STAGES, STAGES, Killer, killer

UNIT_ENTRIES = 8


@pytest.fixture(scope="module")
def runs() -> Iterator[Killer]:
    with killer() as started:
        yield started


def options_for(
    source: Path, workers: int, *, packed: bool = False
) -> partial[dict[str, Any]]:
    """Options of a run, except the store."""
    return partial(
        dict[str, Any],
        sources=[source],
        workers=workers,
        packed=packed,
        keep_ids=True,
        unit_entries=UNIT_ENTRIES,
    )


def kill(
    runs: Killer,
    traces: Path,
    counts: Mapping[str, int],
    moment: tuple[str, int],
    **options: Any,
) -> None:
    """Kill a run in a stage, at or, every other time, soon after a random event."""
    stage, number = moment
    rng = np.random.default_rng(number)
    # A run that has less to import than the one that was counted has fewer events.
    event = int(rng.integers(1, 9 * counts[stage] // 10 + 1))
    delay_s = rng.uniform(0.0001, 0.003) if number % 2 else 0.0
    status = runs.run(traces, stage=stage, event=event, delay_s=delay_s, **options)
    assert (traces / "sprung").exists(), f"it did not come to event {event} of {stage}"
    assert os.WIFSIGNALED(status) or delay_s, "it was not killed"


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "packed"), [(1, False), (4, True)])
def test_a_run_killed_in_any_stage_ends_in_the_same_bytes(
    runs: Killer, source: Path, tmp_path: Path, workers: int, *, packed: bool
) -> None:
    run = options_for(source, workers=workers, packed=packed)
    counts = runs.count(tmp_path / "counts", **run(store=tmp_path / "calm"))
    assert set(counts) == set(STAGES)
    expected = contents(tmp_path / "calm")
    for number, stage in enumerate(STAGES * 3):
        store = tmp_path / f"store-{number}"
        kill(
            runs,
            tmp_path / f"kill-{number}",
            counts,
            (stage, number),
            **run(store=store),
        )
        # At once: workers of the killed run may still be at work.
        assert runs.run(tmp_path / f"again-{number}", **run(store=store)) == 0
        assert contents(store) == expected


@pytest.mark.slow
def test_an_append_killed_in_any_stage_leaves_the_old_store_or_the_new_one(
    runs: Killer, source: Path, tmp_path: Path
) -> None:
    run = options_for(source, workers=2)
    old, new = tmp_path / "old", tmp_path / "new"
    assert runs.run(tmp_path / "make", **run(store=old)) == 0
    for number in range(30, 42):
        write_dicom(source / f"a{number}", f"ID_{number}", hu_HW=random_hu(number))
    append = partial(run, append=True)
    shutil.copytree(old, new)
    counts = runs.count(tmp_path / "counts", **append(store=new))
    expected = contents(new)
    tables = [read(old), read(new)]
    was_new = []
    # The store changes while it is published, and at no other time.
    for number, stage in enumerate((*STAGES, *("publishing",) * 14)):
        store = Path(shutil.copytree(old, tmp_path / f"store-{number}"))
        kill(
            runs,
            tmp_path / f"kill-{number}",
            counts,
            (stage, number),
            **append(store=store),
        )
        assert verify_store(store) == []
        was_new.append([read(store).equals(table) for table in tables].index(True))
        assert runs.run(tmp_path / f"again-{number}", **append(store=store)) == 0
        assert contents(store) == expected
    assert set(was_new) == {0, 1}


@pytest.mark.slow
def test_a_repair_killed_at_any_moment_leaves_each_file_as_before_or_as_after(
    runs: Killer, source: Path, tmp_path: Path
) -> None:
    made, damaged = tmp_path / "made", tmp_path / "damaged"
    make = options_for(source, workers=2)
    assert runs.run(tmp_path / "make", **make(store=made)) == 0
    shutil.copytree(made, damaged)
    for name in ("level-512/00000-24x32.npy", "level-256/00002-24x32.npy"):
        content = bytearray((damaged / name).read_bytes())
        content[5000] ^= 4
        (damaged / name).write_bytes(content)
    after, before = contents(made), contents(damaged)
    repair = partial(dict[str, Any], sources=[source])
    shutil.copytree(damaged, tmp_path / "calm")
    counts = runs.count(tmp_path / "counts", **repair(store=tmp_path / "calm"))
    assert set(counts) == set(REPAIR_STAGES)
    assert contents(tmp_path / "calm") == after
    for number, stage in enumerate((*REPAIR_STAGES * 2, *("copying",) * 6)):
        store = Path(shutil.copytree(damaged, tmp_path / f"store-{number}"))
        kill(
            runs,
            tmp_path / f"kill-{number}",
            counts,
            (stage, number),
            **repair(store=store),
        )
        found = contents(store)
        for name in set(after) - {".lock"}:
            assert found[name] in (before[name], after[name])
        assert read(store).equals(read(made))
        assert runs.run(tmp_path / f"again-{number}", **repair(store=store)) == 0
        assert contents(store) == after
        assert folders(store) == folders(made)


@pytest.mark.slow
def test_a_pack_killed_at_any_moment_ends_in_the_same_bytes(
    runs: Killer, source: Path, tmp_path: Path
) -> None:
    original, calm = tmp_path / "original", tmp_path / "calm"
    make = options_for(source, workers=2)
    assert runs.run(tmp_path / "make", **make(store=original)) == 0
    before = contents(original)
    pack = partial(dict[str, Any], original=original)
    counts = runs.count(tmp_path / "counts", **pack(store=calm))
    assert set(counts) == set(PACK_STAGES)
    expected = contents(calm)
    assert verify_store(calm) == []
    was_finished = set()
    for number, stage in enumerate(PACK_STAGES * 5):
        store = tmp_path / f"store-{number}"
        kill(
            runs,
            tmp_path / f"kill-{number}",
            counts,
            (stage, number),
            **pack(store=store),
        )
        is_finished = (tables_dir(store) / "store.json").exists()
        was_finished.add(is_finished)
        assert not is_finished or verify_store(store) == []
        assert runs.run(tmp_path / f"again-{number}", **pack(store=store)) == 0
        assert contents(store) == expected
        assert folders(store) == folders(calm)
    assert was_finished == {False, True}
    assert contents(original) == before


def folders(store: Path) -> set[str]:
    return {
        path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_dir()
    }


def read(path: Path) -> pd.DataFrame:
    with Store(path) as store:
        return store.table
