"""What is measured: the synthetic set, the store, and the space they take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.harness.measure import BenchError
from bench.harness.session import (
    make_workload,
)
from bench.harness.workload import Workload, check_space, choose_scratch
from bench.inputs.copies import write_copies
from ichfast.dicom.slices import read_slices
from ichfast.synth.dataset import DRAWING

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_cached_store_of_another_version_is_made_anew(tmp_path: Path) -> None:
    workload = Workload(
        cache_dir=tmp_path,
        scratch_dir=tmp_path,
        num_files=12,
        file_size=64,
        batch_size=2,
    )
    with workload.open_store() as store:
        header = store.path / "store.json"
    header.write_text("{}")
    with workload.open_store() as store:
        assert len(store) > 0


def test_copies_differ_in_their_ids_only_and_all_become_slices(tmp_path: Path) -> None:
    write_copies(tmp_path / "copies", 1003)
    files = sorted((tmp_path / "copies").rglob("*.dcm"))
    assert len(files) == 1003
    assert {file.parent.name for file in files} == {"00000", "00001"}
    read = [next(read_slices(file.read_bytes())) for file in (files[0], files[-1])]
    assert read[0].slice_id != read[1].slice_id
    np.testing.assert_array_equal(read[0].stored_HW, read[1].stored_HW)


def test_too_little_disk_space_is_an_error_before_anything_is_made(
    tmp_path: Path,
) -> None:
    with pytest.raises(BenchError, match="GiB left, the benchmark needs"):
        check_space(tmp_path, 2**60)
    with pytest.raises(BenchError, match="make room"):
        choose_scratch(tmp_path, 2**60)
    (tmp_path / "file").touch()
    with pytest.raises(BenchError, match="cannot write"):
        check_space(tmp_path / "file" / "folder", 1)


def test_a_store_with_less_than_two_batches_is_too_small(
    tiny_store_path: Path, toy: Workload
) -> None:
    small = replace(toy, store=tiny_store_path, batch_size=16)
    with pytest.raises(BenchError, match="is too small: it has 23 slices of one shape"):
        small.open_store()
    replace(small, batch_size=11).open_store().close()


def test_the_short_form_makes_one_unit_of_work_for_each_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_store_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(2)))
    workload = make_workload(
        store=tiny_store_path,
        archs=("resnext50",),
        size=None,
        batch_size=4,
        device="cpu",
        peers=(),
        full=False,
    )
    assert (workload.num_files, workload.size) == (2048, 224)
    assert workload.cache_dir.is_relative_to(tmp_path)


def test_slices_of_an_older_drawing_are_not_used_again(tmp_path: Path) -> None:
    workload = Workload(
        cache_dir=tmp_path, scratch_dir=tmp_path, num_files=2, file_size=64
    )
    older = tmp_path / f"heads-{DRAWING - 1}-2x64"
    older.mkdir()
    assert len(list(workload.heads_dir.rglob("*.dcm"))) == 2
    assert workload.heads_dir != older
